"""The rows that match some filters, however many, in constant memory."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import sqlalchemy as sa

from app.audit.events import Event, audit_events
from app.audit.log import Log
from app.audit.matches import Filters, Matches
from app.audit.search import Entry, entries_of
from app.base.db import Database

ACTION = "audit_log.export"

ROWS_AT_ONCE = 500
"""Rows of one read; a few milliseconds, in which others wait at the most."""


class Exports:
    """Hands out parts of the log.

    All exports of a process together read one part at a time, so that ten of them are no more of a
    burden than one, and hold no connection in between, however slowly they are taken.
    """

    def __init__(self, *, database: Database, log: Log) -> None:
        self._database = database
        self._log = log
        self._turn = asyncio.Lock()

    async def begin(self, filters: Filters, *, by: Mapping[str, Any]) -> AsyncIterator[list[Entry]]:
        """Write down that somebody exports, and return what matches, newest first, in parts.

        Rows that are written from now on are not part of it, so it ends.

        Args:
            filters: Which rows.
            by: Who exports, as members of `Event`.

        Raises:
            AuditUnavailable: It cannot be written down, so nothing is handed out.
        """
        event = Event(action=ACTION, outcome="succeeded", filters=filters.told(), **by)
        await self._log.record([event])
        matches, end = await self._database.read(partial(_plan, filters=filters))
        return self._parts(matches, end)

    async def _parts(self, matches: Matches, before: int) -> AsyncIterator[list[Entry]]:
        while True:
            async with self._turn:
                part = await self._database.read(partial(_part, matches=matches, before=before))
            if not part:
                return
            yield part
            before = part[-1].seq


def _plan(tx: sa.Connection, *, filters: Filters) -> tuple[Matches, int]:
    newest = tx.scalar(sa.select(sa.func.max(audit_events.c.seq))) or 0
    return Matches.of(tx, filters), newest + 1


def _part(tx: sa.Connection, *, matches: Matches, before: int) -> list[Entry]:
    return entries_of(tx, matches.newest(tx, before=before, limit=ROWS_AT_ONCE))
