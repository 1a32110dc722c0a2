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
    """Rows that an index has in order of ``seq``: where its *columns* have these *values*.

    Args:
        columns: Those before ``seq``; none for all rows there are.
        values: As many.
        also: What else has to hold.
    """

    columns: tuple[sa.Column[Any], ...] = ()
    values: tuple[str, ...] = ()
    also: tuple[_Condition, ...] = ()

    @property
    def table(self) -> sa.FromClause:
        """The table of the index."""
        return self.columns[0].table if self.columns else audit_events

    def between(self, after: int, before: int, dialect: str) -> list[_Condition]:
        """Return the conditions for the rows between two, both excluded."""
        seq = self.table.c.seq
        if dialect == "sqlite" or not self.columns:
            same = (
                column == value for column, value in zip(self.columns, self.values, strict=True)
            )
            return [*same, seq > after, seq < before, *self.also]
        # A condition on all of them together leaves PostgreSQL one way to go: the index of them.
        # It might else look for the newest rows of some value among all from the newest on, for its
        # statistics tell how many there are, and not that the last was long ago.
        types = (*(sa.Text for _ in self.columns), sa.BigInteger)
        place = sa.tuple_(*self.columns, seq)
        return [
            *(column.is_not(None) for column in self.columns),  # for indexes of what is given
            place > sa.tuple_(*self.values, after, types=types),
            place < sa.tuple_(*self.values, before, types=types),
            *self.also,
        ]

    def in_order(self, *, newest_first: bool) -> list[sa.UnaryExpression[Any]]:
        """Return what puts the rows in order, in the words of the index."""
        columns = [*self.columns, self.table.c.seq]
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
        _walk_by_index(tx)
        first, last = seqs_between(tx, filters.since, filters.until)
        after, before = first - 1, NO_ROW if last is None else last + 1
        sets = dict(_sets(tx, filters))
        name = _smallest(tx, sets, after, before) if sets else None
        walks = sets[name] if name else [Walk()]
        told = {name, KINDS} if name in _WITH_KIND else {name}
        rest = [is_so for of, is_so in _conditions(filters) if of not in told]
        return cls(walks, rest, after, before)

    def newest(self, tx: sa.Connection, *, limit: int, before: int = NO_ROW) -> list[int]:
        """Return the ``seq`` of the newest matches, newest first, of those before another row."""
        return self._ends(tx, self.after, min(before, self.before), limit, newest=True)

    def oldest(self, tx: sa.Connection, *, limit: int, after: int) -> list[int]:
        """Return the ``seq`` of the oldest matches after another row, oldest first."""
        return self._ends(tx, max(after, self.after), self.before, limit, newest=False)

    def count(self, tx: sa.Connection, *, most: int) -> int:
        """Return how many matches there are, counting no further than *most*."""
        _walk_by_index(tx)
        found = 0
        for walks in _in_parts(self.walks):
            rows = self._from(tx, walks, self.after, self.before, most - found).subquery()
            some = sa.select(rows.c.seq).limit(most - found).subquery()
            found += tx.scalar(sa.select(sa.func.count()).select_from(some)) or 0
            if found >= most:
                break
        return found

    def _ends(
        self, tx: sa.Connection, after: int, before: int, limit: int, *, newest: bool
    ) -> list[int]:
        _walk_by_index(tx)
        found: list[int] = []
        for walks in _in_parts(self.walks):
            found += tx.scalars(self._from(tx, walks, after, before, limit, newest=newest))
        return sorted(found, reverse=newest)[:limit]

    def _from(
        self,
        tx: sa.Connection,
        walks: Sequence[Walk],
        after: int,
        before: int,
        limit: int,
        *,
        newest: bool = True,
    ) -> sa.CompoundSelect[Any]:
        """Return a select of up to *limit* rows from the end of each walk, one after the other."""
        ends = (
            self._walk(walk, after, before, tx.dialect.name)
            .order_by(*walk.in_order(newest_first=newest))
            .limit(limit)
            .subquery()
            for walk in walks
        )
        return sa.union_all(*(sa.select(end.c.seq) for end in ends))

    def _walk(self, walk: Walk, after: int, before: int, dialect: str) -> sa.Select[Any]:
        table = walk.table
        rows = sa.select(table.c.seq).where(*walk.between(after, before, dialect))
        if not self.rest:
            return rows
        if table is not audit_events:
            rows = rows.join_from(table, audit_events, table.c.seq == _c.seq)
        return rows.where(*self.rest)


def _walk_by_index(tx: sa.Connection) -> None:
    """Let PostgreSQL go along indexes, in order, until this transaction ends.

    It would else read whatever a statement may need at the worst, to sort or to hash it, and that
    for each walk anew.
    """
    if tx.dialect.name == "postgresql":
        others = ("seqscan", "bitmapscan", "hashjoin", "mergejoin")
        off = ", ".join(f"set_config('enable_{other}', 'off', true)" for other in others)
        alone = "set_config('max_parallel_workers_per_gather', '0', true)"
        tx.exec_driver_sql(f"SELECT {off}, {alone}")


def _conditions(filters: Filters) -> Iterator[tuple[str, _Condition]]:
    """Give what must hold of a row, each condition with the name of the set it describes."""
    if filters.id is not None:
        yield "id", sa.or_(*(sa.and_(c == filters.id, *also) for c, also in _places(filters.id)))
    for name, value in filters.given(*_INDEXED).items():
        yield name, _c[name] == value
    if filters.address is not None:
        p = audit_personal.c
        yield "address", sa.exists().where(p.ip == filters.address, p.seq == _c.seq)
    for name, value in filters.given(*_PLAIN_KIND).items():
        yield KINDS, _c[name] == value
    if filters.model is not None:
        yield KINDS, (_c.model_used == filters.model) | (_c.model_asked == filters.model)
    if filters.since is not None:
        yield "time", _c.recorded_at >= to_unix_microseconds(filters.since)
    if filters.until is not None:
        yield "time", _c.recorded_at < to_unix_microseconds(filters.until)


KINDS = "kinds"
_PLAIN_KIND = ("action", "outcome", "reason", "profile")
_WITH_KIND = ("actor", "credential")  # their indexes have the kind before seq
_INDEXED = ("token_fingerprint", "target", *_WITH_KIND)


def _sets(tx: sa.Connection, filters: Filters) -> Iterator[tuple[str, list[Walk]]]:
    """Give every set of rows that an index has, with its name."""
    if filters.id is not None:
        yield "id", list(_walks_of_id(tx, filters.id))
    for name, value in filters.given(*_INDEXED).items():
        yield name, list(_walks(tx, _c[name], value, filters))
    if filters.address is not None:
        yield "address", [Walk((audit_personal.c.ip,), (filters.address,))]
    if filters.given(*_PLAIN_KIND, "model") and not filters.given(*_WITH_KIND):
        yield KINDS, [Walk((_c.kind,), (kind,)) for kind in kinds(tx) if _fits(kind, filters)]


def _walks(
    tx: sa.Connection, column: sa.Column[Any], value: str, filters: Filters, *also: _Condition
) -> Iterator[Walk]:
    """Give the walks along the rows where *column* is *value*, of kinds that fit if it can be."""
    if column.name not in _WITH_KIND:
        yield Walk((column,), (value,), also)
        return
    for kind in kinds(tx, column, value):
        if _fits(kind, filters):
            yield Walk((column, _c.kind), (value, kind), also)


def _places(wanted: str) -> list[tuple[sa.Column[Any], tuple[_Condition, ...]]]:
    """Return the columns in which this id may stand, with the conditions of their indexes."""
    prefix, _, _ = wanted.partition("_")
    if prefix == "tok":
        # Literals, not bound: only so do indexes of some outcomes serve.
        some = ("outcome = 'requested'", "outcome = 'denied'", ENDED)
        attempts = [(_c.attempt_id, (sa.text(outcome),)) for outcome in some]
        return [*attempts, (_c.target, ())]
    return [(column, ()) for column in _IDS.get(prefix, _OTHER_IDS)]


def _walks_of_id(tx: sa.Connection, wanted: str) -> Iterator[Walk]:
    before: list[sa.Column[Any]] = []
    for column, also in _places(wanted):
        # A row may have the id in two places, and is walked for the first alone.
        elsewhere = (c.is_distinct_from(wanted) for c in before if c is not column)
        yield from _walks(tx, column, wanted, Filters(), *also, *elsewhere)
        before.append(column)


def kinds(
    tx: sa.Connection, column: sa.Column[Any] | None = None, value: str | None = None
) -> list[str]:
    """Return the kinds of the rows where *column* is *value*, by one look into the index for each.

    Args:
        tx: A read.
        column: One that has the kind behind it in its index; None for all rows.
        value: Of the column.
    """
    mine = [column == value] if column is not None else []
    found = sa.select(sa.func.min(_c.kind)).where(*mine).cte("kinds", recursive=True)
    kind = found.c[0]
    following = sa.select(sa.func.min(_c.kind)).where(*mine, _c.kind > kind).scalar_subquery()
    found = found.union_all(sa.select(following).where(kind.is_not(None)))
    return list(tx.scalars(sa.select(found.c[0]).where(found.c[0].is_not(None))))


def _fits(kind: str, filters: Filters) -> bool:
    members = dict(zip(KIND, kind.split("\n"), strict=False))
    asked = filters.given(*_PLAIN_KIND)
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
    # All are large. Whether a row is of an address an index tells, and of a kind only the row.
    return KINDS if KINDS in sets else name


def _in_parts(walks: Sequence[Walk]) -> Iterator[Sequence[Walk]]:
    for start in range(0, len(walks), WALKS_AT_ONCE):
        yield walks[start : start + WALKS_AT_ONCE]
