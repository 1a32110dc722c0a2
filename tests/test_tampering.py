"""Promise 4: whoever has the database may do what they like to the log, and it is found.

Each attack is run as somebody would who has all rights on the tables and knows how the chain is
computed, but has neither the installation's secret nor the file of checkpoints.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.audit import chain
from app.audit.checkpoints import Checkpoint, Signer, audit_checkpoints, log_name
from app.audit.continuity import RolledBack
from app.audit.events import audit_events
from app.audit.segments import FileVerification
from app.audit.stored import stored_rows
from app.runtime import Runtime
from tests.clock import StandingClock
from tests.conftest import on_postgresql, on_sqlite
from tests.installation import Installation, installation_of

SIGNED = (10, 20, 30)
"""The rows after which there is a checkpoint."""

END = 34
"""The last row."""


@pytest.fixture
async def owner(runtime: Runtime, clock: StandingClock) -> Installation:
    owner = installation_of(runtime, clock)
    for _ in SIGNED:
        await owner.append(10)
        await owner.checkpoint()
    await owner.append(END - SIGNED[-1])
    return owner


# The attacks ------------------------------------------------------------------------------------

c, said = audit_events.c, audit_checkpoints.c


def edit(tx: sa.Connection, seq: int) -> None:
    text = sa.func.replace(c.canon, "test.act", "test.fake")
    tx.execute(audit_events.update().where(c.seq == seq).values(canon=text))


def rehash(tx: sa.Connection, first: int) -> None:
    """Compute the hashes from *first* to the end anew, as the chain wants them."""
    rows = {row.seq: row for row in stored_rows(tx)}
    previous = rows[first - 1].row_hash
    for seq in range(first, max(rows) + 1):
        row = rows[seq]
        previous = chain.row_hash(previous, seq=seq, recorded_at=row.recorded_at, canon=row.canon)
        tx.execute(audit_events.update().where(c.seq == seq).values(row_hash=previous))


def delete(tx: sa.Connection, first: int, last: int) -> None:
    tx.execute(audit_events.delete().where(c.seq >= first, c.seq <= last))


def renumber(tx: sa.Connection, first: int, by: int) -> None:
    """Move the rows from *first* on, by way of numbers that nobody has."""
    tx.execute(audit_events.update().where(c.seq >= first).values(seq=-(c.seq + by)))
    tx.execute(audit_events.update().where(c.seq < 0).values(seq=-c.seq))


def insert(tx: sa.Connection, seq: int, canon: str) -> None:
    row = {"seq": seq, "recorded_at": 1, "canon": canon, "row_hash": bytes(32)}
    tx.execute(audit_events.insert(), row)


def edited_text(tx: sa.Connection) -> None:
    edit(tx, 14)


def recomputed_row(tx: sa.Connection) -> None:
    edit(tx, 14)
    row = next(row for row in stored_rows(tx) if row.seq == 14)
    before = tx.scalar(sa.select(c.row_hash).where(c.seq == 13)) or b""
    fitting = chain.row_hash(before, seq=14, recorded_at=row.recorded_at, canon=row.canon)
    tx.execute(audit_events.update().where(c.seq == 14).values(row_hash=fitting))


def recomputed_tail(tx: sa.Connection) -> None:
    edit(tx, 14)
    rehash(tx, 14)


def recomputed_signed_row(tx: sa.Connection) -> None:
    edit(tx, 11)
    rehash(tx, 11)
    tx.execute(audit_checkpoints.update().where(said.seq == 20).values(seq=11))


def deleted_middle(tx: sa.Connection) -> None:
    delete(tx, 14, 15)


def deleted_middle_and_recomputed(tx: sa.Connection) -> None:
    delete(tx, 14, 15)
    renumber(tx, 16, -2)
    rehash(tx, 14)


def deleted_first(tx: sa.Connection) -> None:
    delete(tx, 1, 3)


def deleted_tail(tx: sa.Connection) -> None:
    delete(tx, 26, END)


def deleted_everything(tx: sa.Connection) -> None:
    delete(tx, 1, END)


def swapped(tx: sa.Connection) -> None:
    for seq, to in ((14, -1), (17, 14), (-1, 17)):
        tx.execute(audit_events.update().where(c.seq == seq).values(seq=to))


def inserted(tx: sa.Connection) -> None:
    renumber(tx, 14, 1)
    insert(tx, 14, '{"event_id":"evt_forged","action":"test.fake","outcome":"done"}')


def inserted_and_recomputed(tx: sa.Connection) -> None:
    inserted(tx)
    rehash(tx, 14)


def inserted_before_the_first(tx: sa.Connection) -> None:
    insert(tx, 0, '{"event_id":"evt_forged","action":"test.fake","outcome":"done"}')


def duplicated(tx: sa.Connection) -> None:
    text = tx.scalar(sa.select(c.canon).where(c.seq == 12)) or ""
    renumber(tx, 14, 1)
    insert(tx, 14, text.replace('"evt_', '"evt_x'))  # no two have the same id


def duplicated_and_recomputed(tx: sa.Connection) -> None:
    duplicated(tx)
    rehash(tx, 14)


def replaced_checkpoint(tx: sa.Connection) -> None:
    """Let the checkpoint of row 20 say what the rewritten row has."""
    recomputed_tail(tx)
    was, now = (
        signed_hash(tx, 20),
        (tx.scalar(sa.select(c.row_hash).where(c.seq == 20)) or b"").hex(),
    )
    text = sa.func.replace(said.signed, was, now)
    tx.execute(audit_checkpoints.update().where(said.seq == 20).values(signed=text))


def older_checkpoint_in_its_place(tx: sa.Connection) -> None:
    recomputed_tail(tx)
    older = tx.execute(audit_checkpoints.select().where(said.seq == 10)).one()
    same = {"signed": older.signed, "signature": older.signature}
    tx.execute(audit_checkpoints.update().where(said.seq > 10).values(same))


def forged_checkpoint(tx: sa.Connection) -> None:
    """Sign the rewritten rows with a key of one's own."""
    recomputed_tail(tx)
    forge(tx, {})


def forged_checkpoint_in_our_name(tx: sa.Connection) -> None:
    recomputed_tail(tx)
    forge(tx, {Signer(b"of somebody else").public_key.id: key_of(tx)})


def forged_acceptance(tx: sa.Connection) -> None:
    forged_checkpoint(tx)
    tx.execute(audit_checkpoints.update().where(said.seq == 30).values(kind="accepted"))


def forged_mark_of_pruning(tx: sa.Connection) -> None:
    """Delete the first rows and say that they were pruned."""
    forge(tx, {'"kind":"checkpoint"': '"kind":"pruned"'}, only=10)
    tx.execute(audit_checkpoints.update().where(said.seq == 10).values(kind="pruned"))
    delete(tx, 1, 10)


def checkpoint_dressed_as_a_mark(tx: sa.Connection) -> None:
    """Delete the first rows, and let a real checkpoint say that they were pruned."""
    tx.execute(audit_checkpoints.update().where(said.seq == 10).values(kind="pruned"))
    delete(tx, 1, 10)


def checkpoint_dressed_as_an_acceptance(tx: sa.Connection) -> None:
    """Rewrite rows, and let a real checkpoint say that what was signed before counts no more."""
    recomputed_tail(tx)
    tx.execute(audit_checkpoints.update().where(said.seq == 30).values(kind="accepted"))


def no_checkpoints_left(tx: sa.Connection) -> None:
    recomputed_tail(tx)
    tx.execute(audit_checkpoints.delete())


def restored_backup(tx: sa.Connection) -> None:
    """Put everything back as it was after row 15; only the file remembers more."""
    delete(tx, 16, END)
    tx.execute(audit_checkpoints.delete().where(said.seq > 15))


def restored_backup_and_new_rows(tx: sa.Connection) -> None:
    """Let the log go on differently after that, as whole as before."""
    restored_backup(tx)
    rows = {row.seq: row for row in stored_rows(tx)}
    text, previous = rows[15].canon, rows[15].row_hash
    for seq in range(16, END + 1):
        canon = text.replace('"evt_', f'"evt_{seq}')
        previous = chain.row_hash(previous, seq=seq, recorded_at=1, canon=canon)
        row = {"seq": seq, "recorded_at": 1, "canon": canon, "row_hash": previous}
        tx.execute(audit_events.insert(), row)


def signed_hash(tx: sa.Connection, seq: int) -> str:
    text = tx.scalar(sa.select(said.signed).where(said.seq == seq)) or ""
    return str(json.loads(text)["row_hash"])


def key_of(tx: sa.Connection) -> str:
    return str(json.loads(tx.scalar(sa.select(said.signed).limit(1)) or "")["key"])


def forge(tx: sa.Connection, changes: dict[str, str], *, only: int | None = None) -> None:
    """Put checkpoints of a stranger in the place of ours, with these *changes* to their texts."""
    stranger = Signer(b"of somebody else")
    for one in tx.execute(audit_checkpoints.select()).all():
        if only not in {None, one.seq}:
            continue
        head = chain.Head(one.seq, tx.scalar(sa.select(c.row_hash).where(c.seq == one.seq)) or b"")
        forged = stranger.sign("checkpoint", log_name(tx), head, at=one.at)
        text = forged.signed
        for old, new in changes.items():
            text = text.replace(old, new)
        row = {"signed": text, "signature": forged.signature}
        tx.execute(audit_checkpoints.update().where(said.at == one.at).values(row))


NAMED: dict[Callable[[sa.Connection], None], tuple[list[tuple[int, str]], set[int]]] = {
    edited_text: ([(14, "changed")], {14}),
    recomputed_row: ([(15, "changed")], {15}),
    recomputed_tail: ([(20, "it or a row since 11 was rewritten")], {20}),
    recomputed_signed_row: ([(11, "does not say")], {30}),
    deleted_middle: ([(14, "missing, up to 15")], {14}),
    deleted_middle_and_recomputed: ([(20, "rewritten")], {20}),
    deleted_first: ([(1, "missing, up to 3")], {1}),
    deleted_tail: ([(26, "missing, up to 30 at least")], set()),
    deleted_everything: ([(1, "missing, up to 30 at least")], set()),
    swapped: (
        [(14, "changed"), (15, "changed"), (17, "changed"), (18, "changed")],
        {14, 15, 17, 18},
    ),
    inserted: ([(14, "changed"), (15, "changed"), (20, "rewritten")], {14, 15, 20}),
    inserted_and_recomputed: ([(20, "rewritten")], {20}),
    inserted_before_the_first: ([(0, "added")], set()),
    duplicated: ([(14, "changed"), (15, "changed"), (20, "rewritten")], {14, 15, 20}),
    duplicated_and_recomputed: ([(20, "rewritten")], {20}),
    replaced_checkpoint: ([(20, "not signed by the key that it names")], set()),
    older_checkpoint_in_its_place: ([(30, "does not say")], set()),
    forged_checkpoint: ([(20, "a key that is not known here")], set()),
    forged_checkpoint_in_our_name: ([(20, "not signed by the key that it names")], set()),
    forged_acceptance: ([(30, "database: a checkpoint")], set()),
    forged_mark_of_pruning: ([(1, "missing, up to 10")], set()),
    checkpoint_dressed_as_a_mark: ([(1, "missing, up to 10")], set()),
    checkpoint_dressed_as_an_acceptance: ([(20, "rewritten")], {20}),
    restored_backup: ([(16, "missing, up to 30 at least")], set()),
    restored_backup_and_new_rows: ([(20, "rewritten")], set()),
    no_checkpoints_left: ([(20, "it or a row since 11 was rewritten")], set()),
}
"""What is named for each attack: of the database, and of a file that is exported afterwards."""


@pytest.mark.parametrize("attack", NAMED, ids=lambda attack: attack.__name__)
async def test_an_attack_on_the_database_is_found_and_named(
    owner: Installation, tmp_path: Path, attack: Callable[[sa.Connection], None]
) -> None:
    assert await owner.faults() == []

    await owner.attack(attack)

    found = await owner.faults()
    online, offline = NAMED[attack]
    for seq, what in online:
        assert any(fault.seq == seq and what in fault.what for fault in found), found
    exported = await owner.export(tmp_path / "log.jsonl") if offline else []
    assert offline <= {fault.seq for fault in owner.faults_of_file(exported)}


@on_postgresql
async def test_a_row_that_is_there_twice_is_named(owner: Installation) -> None:
    def duplicate(tx: sa.Connection) -> None:
        tx.exec_driver_sql("ALTER TABLE audit_events DROP CONSTRAINT pk_audit_events")
        text = tx.scalar(sa.select(c.canon).where(c.seq == 12)) or ""
        insert(tx, 12, text.replace('"evt_', '"evt_x'))

    await owner.attack(duplicate)

    assert 12 in {fault.seq for fault in await owner.faults()}


async def test_whoever_replaces_the_file_of_checkpoints_too_is_found_by_the_key(
    owner: Installation,
) -> None:
    await owner.attack(forged_checkpoint)
    stranger = Signer(b"of somebody else")
    lines = await owner.database.read(
        lambda tx: [
            stranger.sign("checkpoint", log_name(tx), row.head, at=row.recorded_at).line
            for row in stored_rows(tx)
        ]
    )
    owner.file.path.write_text("".join(f"{line}\n" for line in lines))

    found = await owner.faults()

    assert any(fault.what.startswith("line 14 of service-checkpoints.jsonl") for fault in found)
    assert all("a key that is not known here" in fault.what for fault in found)


async def test_checkpoints_that_are_gone_hide_nothing_and_accuse_nobody(
    owner: Installation,
) -> None:
    """Without the table the file tells what was rewritten, and without the file the table."""
    everything = owner.file.path.read_text()
    await owner.attack(lambda tx: tx.execute(audit_checkpoints.delete()))
    assert await owner.faults() == []

    await owner.append(1)
    await owner.checkpoint()
    owner.file.path.unlink()
    assert await owner.faults() == []

    assert (await owner.verify()).checkpoints_in_file == 0  # so that who looks sees it

    await owner.attack(recomputed_tail)
    assert [fault.seq for fault in await owner.faults()] == [35]  # by the table
    owner.file.path.write_text(everything)
    await owner.attack(lambda tx: tx.execute(audit_checkpoints.delete()))
    assert [fault.seq for fault in await owner.faults()] == [20]  # by the file


@on_sqlite
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO audit_checkpoints VALUES ('x', 'checkpoint', 12, 'x', x'00')",
        "UPDATE audit_checkpoints SET seq = 'x' WHERE seq = 20",
        "UPDATE audit_checkpoints SET at = 'x', kind = 'pruned' WHERE seq = 20",
        "UPDATE audit_checkpoints SET signed = x'00', signature = 'x' WHERE seq = 20",
        "UPDATE audit_events SET recorded_at = 'x' WHERE seq = 14",
        "UPDATE audit_events SET row_hash = 'x' WHERE seq = 14",
        "UPDATE audit_personal SET salt = 1, data = 2",
    ],
)
async def test_values_of_another_type_end_no_walk(owner: Installation, statement: str) -> None:
    await owner.attack(lambda tx: tx.exec_driver_sql(statement))

    assert await owner.faults() != []
    await owner.append(1)
    await owner.checkpoint()


async def test_a_line_that_is_no_checkpoint_is_named(owner: Installation) -> None:
    lines = owner.file.path.read_text().splitlines(keepends=True)
    owner.file.path.write_text("".join([lines[0], "{}\n", *lines[1:]]))

    [fault] = await owner.faults()

    assert fault.what == "line 2 of service-checkpoints.jsonl: is no checkpoint"


async def test_what_is_not_signed_yet_this_process_knows(owner: Installation) -> None:
    await owner.runtime.continuity.look(owner.database)

    def rewrite_the_end(tx: sa.Connection) -> None:
        edit(tx, 32)
        rehash(tx, 32)

    await owner.attack(rewrite_the_end)

    assert await owner.faults() == []  # the newest checkpoint is of row 30
    with pytest.raises(RolledBack, match="does not have row 34"):
        await owner.runtime.continuity.look(owner.database)


# Files ------------------------------------------------------------------------------------------


def line_of(lines: list[bytes], seq: int) -> int:
    return next(n for n, line in enumerate(lines) if json.loads(line).get("seq") == seq)


def at_row(seq: int, old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    def change(lines: list[bytes]) -> list[bytes]:
        place = line_of(lines, seq)
        return [*lines[:place], lines[place].replace(old, new), *lines[place + 1 :]]

    return change


def without(first: int, last: int) -> Callable[[list[bytes]], list[bytes]]:
    return lambda lines: [
        line for line in lines if not first <= json.loads(line).get("seq", 0) <= last
    ]


def swapped_lines(lines: list[bytes]) -> list[bytes]:
    place = line_of(lines, 14)
    return [*lines[:place], lines[place + 1], lines[place], *lines[place + 2 :]]


def rewritten_lines(lines: list[bytes]) -> list[bytes]:
    """Edit row 14 and compute every hash behind it anew."""
    changed, previous = [], b""
    for line in lines:
        members = json.loads(line)
        if members.get("seq", 0) >= 14:
            members["canon"] = members["canon"].replace("test.act", "test.fake")
            previous = chain.row_hash(
                previous,
                seq=members["seq"],
                recorded_at=members["recorded_at"],
                canon=members["canon"],
            )
            members["row_hash"] = previous.hex()
        elif "row_hash" in members:
            previous = bytes.fromhex(members["row_hash"])
        changed.append(json.dumps(members).encode())
    return changed


def inserted_line(lines: list[bytes]) -> list[bytes]:
    """Put a row of one's own between 13 and 14, and move the others on."""
    place = line_of(lines, 14)
    moved = [json.loads(line) for line in lines[place:]]
    for members in moved:
        if "seq" in members:
            members["seq"] += 1
    forged = moved[0] | {"seq": 14, "canon": moved[0]["canon"].replace("test.act", "test.fake")}
    return lines[:place] + [json.dumps(members).encode() for members in [forged, *moved]]


def recomputed_line(lines: list[bytes]) -> list[bytes]:
    """Edit row 14, and give it the hash that it has to have now."""
    before, place = json.loads(lines[line_of(lines, 13)]), line_of(lines, 14)
    members = json.loads(lines[place])
    members["canon"] = members["canon"].replace("test.act", "test.fake")
    fitting = chain.row_hash(
        bytes.fromhex(before["row_hash"]),
        **{name: members[name] for name in ("seq", "recorded_at", "canon")},
    )
    line = json.dumps(members | {"row_hash": fitting.hex()}).encode()
    return [*lines[:place], line, *lines[place + 1 :]]


def signed_by_a_stranger(lines: list[bytes]) -> list[bytes]:
    """Rewrite the rows, and sign everything that is signed with a key of one's own."""
    changed = rewritten_lines(lines)
    heads = {row["seq"]: row["row_hash"] for row in map(json.loads, changed) if "seq" in row}
    stranger = Signer(b"of somebody else")
    for place, line in enumerate(lines):
        if line.startswith(b'{"checkpoint"'):
            one = Checkpoint.read_line(line)
            head = chain.Head(one.seq, bytes.fromhex(heads.get(one.seq, one.row_hash.hex())))
            changed[place] = stranger.sign(one.kind, one.log, head, at=one.at).line.encode()
    return changed


def rewritten_and_unsigned(lines: list[bytes]) -> list[bytes]:
    """Rewrite the rows, and leave nothing that is signed but the ends of the file."""
    changed = rewritten_lines(lines)
    inner = [line for line in changed[1:-1] if not line.startswith(b'{"checkpoint"')]
    return [changed[0], *inner, changed[-1]]


EDITED_FILES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], set[int]]] = {
    "an edited text": (at_row(14, b"test.act", b"test.fake"), {14}),
    "an edited time": (at_row(14, b'"recorded_at":1', b'"recorded_at":2'), {14}),
    "an edited address": (at_row(14, b"192.0.2.1", b"192.0.2.9"), {14}),
    "a deleted row": (without(14, 14), {14}),
    "deleted first rows": (without(1, 3), {1}),
    "deleted last rows": (without(31, END), {31}),
    "a cut-off end": (lambda lines: lines[:-6], {31}),
    "nothing but the beginning": (lambda lines: lines[:1], {1}),
    "no beginning": (lambda lines: lines[1:], {0}),
    "swapped rows": (swapped_lines, {14}),
    "a repeated row": (lambda lines: [*lines[:15], lines[14], *lines[15:]], {13}),
    "all rewritten": (rewritten_lines, {20}),
    "an inserted row": (inserted_line, {14, 15, 20}),
    "a recomputed row": (recomputed_line, {15}),
    "an edited checkpoint": (
        lambda lines: [line.replace(b'\\"seq\\":20', b'\\"seq\\":19') for line in lines],
        {19},
    ),
    "all rewritten, signed by a stranger": (signed_by_a_stranger, {0, 1}),
    "all rewritten, nothing signed but the ends": (rewritten_and_unsigned, {END}),
    "half a line": (lambda lines: [*lines[:-1], lines[-1][:40]], {END}),
    "nothing": (lambda _: [], {1}),
}


@on_sqlite
@pytest.mark.parametrize(("change", "named"), EDITED_FILES.values(), ids=EDITED_FILES)
async def test_an_edited_file_is_found_by_the_public_key_alone(
    owner: Installation,
    tmp_path: Path,
    change: Callable[[list[bytes]], list[bytes]],
    named: set[int],
) -> None:
    lines = await owner.export(tmp_path / "log.jsonl", personal=True)
    assert owner.faults_of_file(lines) == []

    found = owner.faults_of_file(change(lines))

    assert named <= {fault.seq for fault in found}, found


@on_sqlite
async def test_a_file_of_another_installation_proves_nothing(
    owner: Installation, tmp_path: Path
) -> None:
    lines = await owner.export(tmp_path / "log.jsonl")
    walk = FileVerification(Signer(b"of somebody else").public_key)

    walk.run(lines)

    assert walk.findings.count > 0


async def test_a_part_of_the_log_proves_itself(owner: Installation, tmp_path: Path) -> None:
    lines = await owner.export(tmp_path / "log.jsonl", first=15, last=25)

    assert owner.faults_of_file(lines) == []
    seqs = [json.loads(line)["seq"] for line in lines if b'"seq"' in line[:6]]
    assert seqs == list(range(15, 26))
    assert b"192.0.2.1" not in b"".join(lines)
