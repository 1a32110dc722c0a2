"""Make the first tables. There is no previous release."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

GENERATED = (
    "event_id",
    "attempt_id",
    "action",
    "outcome",
    "reason",
    "actor",
    "target",
    "credential",
    "request_id",
    "profile",
    "model_asked",
    "model_used",
    "token_fingerprint",
)


OF_CANON = {
    "sqlite": "json_extract(canon, '$.{}')",
    "postgresql": "(canon::jsonb ->> '{}')",
}


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    op.create_table(
        "installation",
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("environment", name="pk_installation"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
    )
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("user_id", sa.String(40), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_sign_ins"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sign_ins_user_id_users"),
    )
    op.create_index("ix_sign_ins_user_id", "sign_ins", ["user_id"])
    op.create_table(
        "audit_personal",
        sa.Column("event_id", sa.String(40), nullable=False),
        sa.Column("salt", sa.LargeBinary(16), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_audit_personal"),
    )
    op.create_table(
        "audit_events",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            nullable=False,
            autoincrement=False,
        ),
        sa.Column("recorded_at", sa.BigInteger, nullable=False),
        sa.Column("canon", sa.Text, nullable=False),
        sa.Column("row_hash", sa.LargeBinary(32), nullable=False),
        *(
            sa.Column(
                name,
                sa.Text,
                # PostgreSQL cannot index what it does not store; SQLite can, and need not.
                sa.Computed(OF_CANON[dialect].format(name), persisted=dialect == "postgresql"),
            )
            for name in GENERATED
        ),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_events"),
    )
    op.create_index("uq_audit_events_event_id", "audit_events", ["event_id"], unique=True)
    op.create_index(
        "uq_audit_events_requested",
        "audit_events",
        ["attempt_id"],
        unique=True,
        sqlite_where=sa.text("outcome = 'requested'"),
        postgresql_where=sa.text("outcome = 'requested'"),
    )
    op.create_index(
        "uq_audit_events_outcome",
        "audit_events",
        ["attempt_id"],
        unique=True,
        sqlite_where=sa.text("outcome IN ('issued', 'failed', 'unknown')"),
        postgresql_where=sa.text("outcome IN ('issued', 'failed', 'unknown')"),
    )
    for column in ("actor", "action", "outcome"):
        op.create_index(f"ix_audit_events_{column}_seq", "audit_events", [column, "seq"])

    # Append-only is the database's promise, not the application's.
    if dialect == "sqlite":
        protect_on_sqlite()
    else:
        protect_on_postgresql()


def protect_on_sqlite() -> None:
    for verb in ("UPDATE", "DELETE"):
        op.execute(f"""
            CREATE TRIGGER audit_events_no_{verb.lower()} BEFORE {verb} ON audit_events
            BEGIN SELECT RAISE(ABORT, 'audit_events is append-only'); END
        """)
    op.execute("""
        CREATE TRIGGER audit_events_in_sequence BEFORE INSERT ON audit_events
        WHEN NEW.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM audit_events)
        BEGIN SELECT RAISE(ABORT, 'audit_events takes only the next seq'); END
    """)
    # INSERT OR REPLACE takes rows away without asking the DELETE trigger unless the connection
    # has recursive triggers on, so what it could replace is refused here.
    op.execute("""
        CREATE TRIGGER audit_events_no_replace BEFORE INSERT ON audit_events
        WHEN EXISTS (
            SELECT 1 FROM audit_events WHERE event_id = json_extract(NEW.canon, '$.event_id')
        ) OR EXISTS (
            SELECT 1 FROM audit_events
            WHERE attempt_id = json_extract(NEW.canon, '$.attempt_id')
            AND outcome = 'requested' AND json_extract(NEW.canon, '$.outcome') = 'requested'
        ) OR EXISTS (
            SELECT 1 FROM audit_events
            WHERE attempt_id = json_extract(NEW.canon, '$.attempt_id')
            AND outcome IN ('issued', 'failed', 'unknown')
            AND json_extract(NEW.canon, '$.outcome') IN ('issued', 'failed', 'unknown')
        )
        BEGIN SELECT RAISE(ABORT, 'audit_events has this event already'); END
    """)
    # Erasing a person deletes the row; the data of a row never changes.
    op.execute("""
        CREATE TRIGGER audit_personal_no_update BEFORE UPDATE ON audit_personal
        BEGIN SELECT RAISE(ABORT, 'audit_personal is written once'); END
    """)
    op.execute("""
        CREATE TRIGGER audit_personal_no_replace BEFORE INSERT ON audit_personal
        WHEN EXISTS (SELECT 1 FROM audit_personal WHERE event_id = NEW.event_id)
        BEGIN SELECT RAISE(ABORT, 'audit_personal is written once'); END
    """)


def protect_on_postgresql() -> None:
    op.execute("""
        CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
        END $$
    """)
    for verb in ("UPDATE", "DELETE", "TRUNCATE"):
        op.execute(f"""
            CREATE TRIGGER audit_events_no_{verb.lower()} BEFORE {verb} ON audit_events
            FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()
        """)
    # Erasing a person deletes the row; the data of a row never changes.
    for verb in ("UPDATE", "TRUNCATE"):
        op.execute(f"""
            CREATE TRIGGER audit_personal_no_{verb.lower()} BEFORE {verb} ON audit_personal
            FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()
        """)
    op.execute("""
        CREATE FUNCTION audit_in_sequence() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.seq IS DISTINCT FROM (SELECT coalesce(max(seq), 0) + 1 FROM audit_events) THEN
                RAISE EXCEPTION 'audit_events takes only the next seq'
                    USING ERRCODE = 'restrict_violation';
            END IF;
            RETURN NEW;
        END $$
    """)
    op.execute("""
        CREATE TRIGGER audit_events_in_sequence BEFORE INSERT ON audit_events
        FOR EACH ROW EXECUTE FUNCTION audit_in_sequence()
    """)
    # The append. It runs with its owner's rights, so that the application's role needs none of its
    # own on these tables but to read. An event that is there already counts as appended, so that a
    # client that lost its connection may ask again; a second outcome of an attempt does not.
    op.execute("""
        CREATE FUNCTION audit_append(
            canons text[], recorded_ats bigint[], salts bytea[], personals text[]
        ) RETURNS boolean[]
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        DECLARE
            given record;
            event jsonb;
            head bigint;
            previous bytea;
            appended boolean[] := '{}';
        BEGIN
            PERFORM pg_advisory_xact_lock(7245, 1);
            SELECT seq, row_hash INTO head, previous FROM audit_events ORDER BY seq DESC LIMIT 1;
            IF NOT FOUND THEN
                head := 0;
                previous := decode(repeat('00', 32), 'hex');
            END IF;
            FOR given IN
                SELECT * FROM unnest(canons, recorded_ats, salts, personals)
                AS rows (canon, recorded_at, salt, personal)
            LOOP
                event := given.canon::jsonb;
                IF EXISTS (SELECT 1 FROM audit_events WHERE event_id = event ->> 'event_id') THEN
                    appended := appended || true;
                    CONTINUE;
                END IF;
                IF event ->> 'outcome' IN ('issued', 'failed', 'unknown') AND EXISTS (
                    SELECT 1 FROM audit_events WHERE attempt_id = event ->> 'attempt_id'
                    AND outcome IN ('issued', 'failed', 'unknown')
                ) THEN
                    appended := appended || false;
                    CONTINUE;
                END IF;
                head := head + 1;
                previous := sha256(
                    '\\x01'::bytea || previous || int8send(head) || int8send(given.recorded_at)
                    || convert_to(given.canon, 'UTF8')
                );
                INSERT INTO audit_events (seq, recorded_at, canon, row_hash)
                    VALUES (head, given.recorded_at, given.canon, previous);
                IF given.personal IS NOT NULL THEN
                    INSERT INTO audit_personal (event_id, salt, data)
                        VALUES (event ->> 'event_id', given.salt, given.personal);
                END IF;
                appended := appended || true;
            END LOOP;
            RETURN appended;
        END $$
    """)
    # The same for the rows of a change, which wait in a setting of its transaction.
    op.execute("""
        CREATE FUNCTION audit_append_pending() RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        DECLARE
            appended boolean[];
        BEGIN
            IF EXISTS (
                SELECT 1 FROM jsonb_array_elements(current_setting('audit.pending')::jsonb) AS row
                JOIN audit_events ON event_id = (row ->> 'canon')::jsonb ->> 'event_id'
            ) THEN
                RAISE EXCEPTION 'audit_events has this event already'
                    USING ERRCODE = 'unique_violation';
            END IF;
            SELECT audit_append(
                array_agg(pending.canon ORDER BY pending.place),
                array_agg(pending.recorded_at ORDER BY pending.place),
                array_agg(decode(pending.salt, 'hex') ORDER BY pending.place),
                array_agg(pending.personal ORDER BY pending.place)
            ) INTO appended
            FROM ROWS FROM (
                jsonb_to_recordset(current_setting('audit.pending')::jsonb)
                AS (canon text, recorded_at bigint, salt text, personal text)
            ) WITH ORDINALITY AS pending (canon, recorded_at, salt, personal, place);
            IF false = ANY (appended) THEN
                RAISE EXCEPTION 'audit_events has this outcome already'
                    USING ERRCODE = 'unique_violation';
            END IF;
        END $$
    """)


def downgrade() -> None:
    for table in ("audit_events", "audit_personal", "sign_ins", "users", "installation"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        for function in (
            "audit_append_pending()",
            "audit_append(text[], bigint[], bytea[], text[])",
            "audit_in_sequence()",
            "audit_refuse()",
        ):
            op.execute(f"DROP FUNCTION {function}")
