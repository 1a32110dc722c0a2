"""Finding the rows that a search asks for, by index, whatever it asks for.

Each filter names a set of rows. For some there is an index that has them in order of ``seq``: those
of an actor, of an address, … And those of a kind, see `app.audit.events.KIND`: which kinds there
are is looked up, and of each that fits the rows are walked. A search walks one such set from its
end, the smallest as far as can be told, and looks at each row for whatever else is asked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeAlias

import sqlalchemy as sa

from app.audit.events import KIND, audit_events, audit_personal
from app.audit.rollup import seqs_between
from app.base.clock import to_unix_microseconds
from app.base.ids import is_plain

WALKS_AT_ONCE = 100
"""Of one statement; SQLite takes up to 500."""

SIZES = (1_000, 50_000)
"""Up to so many rows of each set are counted, to tell which is the smallest."""

NO_ROW = 2**62
"""A ``seq`` behind every row."""

_c = audit_events.c
_Condition: TypeAlias = sa.ColumnExpressionArgument[bool]
_Seq: TypeAlias = int | sa.ColumnElement[int]

_IDS = {
    "usr": (_c.actor, _c.target),
    "eus": (_c.actor, _c.target),
    "key": (_c.credential, _c.actor, _c.target),
    "sgn": (_c.sign_in,),
    "evt": (_c.event_id,),
}
ENDED = "outcome IN ('issued', 'failed', 'unknown')"
_OTHER_IDS = (_c.request_id, _c.upstream_request_id, _c.credential)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which rows are wanted; every member left at ``None`` lets all pass."""

    id: str | None = None  # whatever it is of: a row, an attempt, a user, a request, …
    actor: str | None = None
    target: str | None = None
    credential: str | None = None
    address: str | None = None  # of the client
    action: str | None = None
    outcome: str | None = None
    reason: str | None = None
    profile: str | None = None
    model: str | None = None  # asked or used
    token_fingerprint: str | None = None
    since: datetime | None = None  # from here on, inclusive
    until: datetime | None = None  # up to here, exclusive

    def given(self, *names: str) -> dict[str, str]:
        """Return those of the named members that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def told(self) -> str:
        """Return the filters in the words of a row of the log, which is kept for good.

        So it has no address, nor anything else that may be a person's or a secret.
        """
        members = {f.name: getattr(self, f.name) for f in fields(self)}
        return "&".join(
            f"{name}={_harmless(name, value)}"
            for name, value in members.items()
            if value is not None
        )


def _harmless(name: str, value: str | datetime) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if name != "address" and is_plain(value) else "withheld"


@dataclass(frozen=True, slots=True)
class Walk:
    """Rows that an index has in order of ``seq``: where *column* is *value*, or all there are."""

    column: sa.Column[Any]
    value: str | None = None
    also: tuple[_Condition, ...] = ()

    def between(self, after: _Seq, before: _Seq, dialect: str) -> list[_Condition]:
        """Return the conditions for the rows between two, both excluded."""
        seq = self.column.table.c.seq
        if self.value is None:
            return [seq > after, seq < before]
        if dialect == "sqlite":
            return [self.column == self.value, seq > after, seq < before, *self.also]
        # A condition on both columns together leaves PostgreSQL one way to go: the index of both.
        # It might else look for the newest rows of some value among all from the newest on, for its
        # statistics tell how many there are, and not that the last was long ago.
        place, types = sa.tuple_(self.column, seq), (sa.Text, sa.BigInteger)
        return [
            self.column.is_not(None),  # so that it may use an index of what is given
            place > sa.tuple_(self.value, after, types=types),
            place < sa.tuple_(self.value, before, types=types),
            *self.also,
        ]

    def in_order(self, *, newest_first: bool) -> list[sa.UnaryExpression[Any]]:
        """Return what puts the rows in order, in the words of the index."""
        columns = [self.column, self.column.table.c.seq]
        return [c.desc() if newest_first else c.asc() for c in columns]


@dataclass(frozen=True, slots=True)
class Matches:
    """The rows that match some filters, as they can be found; good for later reads too.

    Args:
        walks: Sets of rows without overlap that hold all matches.
        rest: What else must hold of a row.
        after: All matches lie behind this ``seq``,
        before: and before this one.
    """

    walks: Sequence[Walk]
    rest: Sequence[_Condition]
    after: int
    before: int

    @classmethod
    def of(cls, tx: sa.Connection, filters: Filters) -> "Matches":
        """Return where to look for the rows that match *filters*."""
        first, last = seqs_between(tx, filters.since, filters.until)
        after, before = first - 1, NO_ROW if last is None else last + 1
        dialect = tx.dialect.name
        sets = dict(_sets(tx, filters))
        name = _smallest(tx, sets, after, before) if sets else None
        walks = sets[name] if name else [Walk(_c.seq)]
        rest = [is_so for of, is_so in _conditions(filters, dialect) if of != name]
        return cls(walks, rest, after, before)

    def newest(self, tx: sa.Connection, *, limit: int, before: int = NO_ROW) -> list[int]:
        """Return the ``seq`` of the newest matches, newest first, of those before another row."""
        return self._ends(tx, self.after, min(before, self.before), limit, newest=True)

    def oldest(self, tx: sa.Connection, *, limit: int, after: int) -> list[int]:
        """Return the ``seq`` of the oldest matches after another row, oldest first."""
        return self._ends(tx, max(after, self.after), self.before, limit, newest=False)

    def count(self, tx: sa.Connection, *, most: int) -> int:
        """Return how many matches there are, counting no further than *most*."""
        found = 0
        for walks in _in_parts(self.walks):
            rows = sa.union_all(
                *(self._walk(w, self.after, self.before, tx.dialect.name) for w in walks)
            )
            some = sa.select(sa.literal(1)).select_from(rows.subquery()).limit(most - found)
            found += tx.scalar(sa.select(sa.func.count()).select_from(some.subquery())) or 0
            if found >= most:
                break
        return found

    def _ends(
        self, tx: sa.Connection, after: int, before: int, limit: int, *, newest: bool
    ) -> list[int]:
        found: list[int] = []
        for walks in _in_parts(self.walks):
            ends = (
                self._walk(walk, after, before, tx.dialect.name)
                .order_by(*walk.in_order(newest_first=newest))
                .limit(limit)
                .subquery()
                for walk in walks
            )
            found += tx.scalars(sa.union_all(*(sa.select(end.c.seq) for end in ends)))
        return sorted(found, reverse=newest)[:limit]

    def _walk(self, walk: Walk, after: int, before: int, dialect: str) -> sa.Select[Any]:
        table = walk.column.table
        rows = sa.select(table.c.seq).where(*walk.between(after, before, dialect))
        if not self.rest:
            return rows
        if table is not audit_events:
            rows = rows.join_from(table, audit_events, table.c.seq == _c.seq)
        return rows.where(*self.rest)


def _conditions(filters: Filters, dialect: str) -> Iterator[tuple[str, _Condition]]:
    """Give what must hold of a row, each condition with the name of the set it describes."""
    if filters.id is not None:
        yield "id", sa.or_(*(sa.and_(c == filters.id, *also) for c, also in _places(filters.id)))
    for name, value in filters.given(*_INDEXED).items():
        yield name, _is_in(Walk(audit_events.alias().c[name], value), dialect)
    if filters.address is not None:
        yield "address", _is_in(Walk(audit_personal.c.ip, filters.address), dialect)
    for name, value in filters.given("action", "outcome", "reason", "profile").items():
        yield "kind", _c[name] == value
    if filters.model is not None:
        yield "kind", (_c.model_used == filters.model) | (_c.model_asked == filters.model)
    if filters.since is not None:
        yield "time", _c.recorded_at >= to_unix_microseconds(filters.since)
    if filters.until is not None:
        yield "time", _c.recorded_at < to_unix_microseconds(filters.until)


def _is_in(walk: Walk, dialect: str) -> _Condition:
    """Return the condition that a row is among those of a walk, by a look into their index.

    To look into the row itself takes several times as long: in SQLite its text is parsed for it.
    """
    return sa.exists().where(*walk.between(_c.seq - 1, _c.seq + 1, dialect))


_INDEXED = ("token_fingerprint", "target", "credential", "actor")


def _sets(tx: sa.Connection, filters: Filters) -> Iterator[tuple[str, list[Walk]]]:
    """Give every set of rows that an index has, with its name."""
    if filters.id is not None:
        yield "id", list(_walks_of_id(filters.id))
    for name, value in filters.given(*_INDEXED).items():
        yield name, [Walk(_c[name], value)]
    if filters.address is not None:
        yield "address", [Walk(audit_personal.c.ip, filters.address)]
    if filters.given("action", "outcome", "reason", "profile", "model"):
        yield "kind", [Walk(_c.kind, kind) for kind in kinds(tx) if _fits(kind, filters)]


def _places(wanted: str) -> list[tuple[sa.Column[Any], tuple[_Condition, ...]]]:
    """Return the columns in which this id may stand, with the conditions of their indexes."""
    prefix, _, _ = wanted.partition("_")
    if prefix == "tok":
        # Literals, not bound: only so do indexes of some outcomes serve.
        some = ("outcome = 'requested'", "outcome = 'denied'", ENDED)
        attempts = [(_c.attempt_id, (sa.text(outcome),)) for outcome in some]
        return [*attempts, (_c.target, ())]
    return [(column, ()) for column in _IDS.get(prefix, _OTHER_IDS)]


def _walks_of_id(wanted: str) -> Iterator[Walk]:
    before: list[sa.Column[Any]] = []
    for column, also in _places(wanted):
        # A row may have the id in two places, and is walked for the first alone.
        elsewhere = (c.is_distinct_from(wanted) for c in before if c is not column)
        yield Walk(column, wanted, (*also, *elsewhere))
        before.append(column)


def kinds(tx: sa.Connection) -> list[str]:
    """Return the kinds of rows that there are, by one look into the index for each."""
    return list(tx.scalars(_KINDS))


_KINDS = sa.text("""
    WITH RECURSIVE kinds (kind) AS (
        SELECT min(kind) FROM audit_events
        UNION ALL
        SELECT (SELECT min(e.kind) FROM audit_events AS e WHERE e.kind > kinds.kind)
        FROM kinds WHERE kinds.kind IS NOT NULL
    )
    SELECT kind FROM kinds WHERE kind IS NOT NULL
""")


def _fits(kind: str, filters: Filters) -> bool:
    members = dict(zip(KIND, kind.split("\n"), strict=False))
    asked = filters.given("action", "outcome", "reason", "profile")
    models = {members["model_asked"], members["model_used"]}
    return asked.items() <= members.items() and filters.model in {None, *models}


def _smallest(tx: sa.Connection, sets: dict[str, list[Walk]], after: int, before: int) -> str:
    """Return the name of the set with the fewest rows between two, as far as can be told."""
    if len(sets) == 1:
        return next(iter(sets))
    for most in SIZES:
        sizes = {
            name: Matches(walks, (), after, before).count(tx, most=most)
            for name, walks in sets.items()
        }
        name = min(sizes, key=sizes.__getitem__)
        if sizes[name] < most:
            return name
    # All are large. Whether a row is in another set is an index that tells, but not its kind.
    return "kind" if "kind" in sets else name


def _in_parts(walks: Sequence[Walk]) -> Iterator[Sequence[Walk]]:
    for start in range(0, len(walks), WALKS_AT_ONCE):
        yield walks[start : start + WALKS_AT_ONCE]
