"""Changing a password: by its owner, or by a link that an admin makes for who has forgotten it."""

from dataclasses import dataclass, field, replace
from datetime import datetime

import sqlalchemy as sa

from app.audit.denials import Denials
from app.audit.events import Event
from app.audit.log import Log
from app.base.clock import Clock, to_unix_microseconds
from app.base.db import Database
from app.base.errors import (
    Conflict,
    FieldError,
    InvalidRequest,
    InvalidToken,
    NotFound,
    RateLimited,
)
from app.base.ids import is_id
from app.identity import reset_links
from app.identity.acts import By, act
from app.identity.callers import Caller, Origin
from app.identity.erased import ERASED, is_erased
from app.identity.guessing import PasswordGuesses
from app.identity.password_rules import PasswordRules
from app.identity.passwords import Passwords
from app.identity.users import User, Users, end_all_credentials, users


@dataclass(frozen=True, slots=True)
class NewLink:
    """A link to set a password. Whoever has it has the account: hand it out, never log it."""

    url: str = field(repr=False)
    expires_at: datetime


class _NotGood(Exception):
    """The link is not good; *reason* in the words of the log."""

    def __init__(self, reason: str, user: User | None = None) -> None:
        self.reason = reason
        self.user = user
        super().__init__(reason)


class PasswordChanges:
    """Changes passwords, and ends the sign-ins that stood on the old one.

    Args:
        guesses: Who has to wait before a password is looked at.
        page: Address of the page where a link leads.
    """

    def __init__(
        self,
        *,
        users: Users,
        passwords: Passwords,
        rules: PasswordRules,
        guesses: PasswordGuesses,
        page: str,
        database: Database,
        log: Log,
        denials: Denials,
        clock: Clock,
    ) -> None:
        self._users = users
        self._passwords = passwords
        self._rules = rules
        self._guesses = guesses
        self._page = page
        self._database = database
        self._log = log
        self._denials = denials
        self._clock = clock

    async def by_owner(self, caller: Caller, *, current: str, new: str) -> None:
        """Set *new*, and end every sign-in of the caller but this one.

        Raises:
            InvalidToken: The account has changed meanwhile.
            Conflict: The caller has none here.
            InvalidRequest: *current* is wrong, or *new* may not be set.
            RateLimited: Too many wrong passwords.
            Overloaded: Too many passwords are being checked.
            AuditUnavailable: It cannot be written down; nothing is changed.
        """
        user = await self._users.get(caller.user_id)
        if user is None:
            raise Conflict("You are signed in at your identity provider. Change it there.")
        event = replace(
            _event(caller.origin, user),
            credential=caller.credential,
            sign_in=caller.sign_in_id,
        )
        try:
            async with self._guesses.guess(user.email, caller.origin.ip) as guess:
                guess.right = await self._passwords.verify(current, user.password_hash)
        except RateLimited as refusal:
            await self._deny(event, refusal.code)
            raise
        if not guess.right:
            await self._deny(event, "wrong_password")
            raise InvalidRequest(errors=[FieldError("currentPassword", "is wrong")])
        self._rules.check(new, email=user.email, field="newPassword")
        password_hash = await self._passwords.hash(new)

        def change(tx: sa.Connection) -> None:
            if not _set(tx, user, password_hash):
                raise InvalidToken  # whatever changed the account has ended this sign-in too
            now = to_unix_microseconds(self._clock())
            end_all_credentials(tx, user.id, now=now, but_sign_in=caller.sign_in_id)

        await self._log.record([event], change)

    async def make_link(self, user_id: str, *, by: By) -> NewLink:
        """Return a link by which whoever has it may set the user's password once, within an hour.

        Args:
            user_id: Whose.
            by: An admin, or the operator.

        Raises:
            NotFound: No account has this id.
            Conflict: The account is disabled, or erased.
            AuditUnavailable: It cannot be written down; there is no link.
        """
        if not is_id(user_id, "usr"):  # PostgreSQL would not take every text, such as a NUL
            raise NotFound("No account has this id.")
        expires_at = self._clock() + reset_links.LIFETIME

        def change(tx: sa.Connection) -> str:
            row = tx.execute(users.select().where(users.c.id == user_id).with_for_update()).first()
            if row is None:
                raise NotFound("No account has this id.")
            if is_erased(row.id, row.email):
                raise Conflict(ERASED)
            if row.disabled_at is not None:
                raise Conflict("The account is disabled. Enable it first.")
            return reset_links.issue(tx, user_id, expires_at=to_unix_microseconds(expires_at))

        token = await self._log.record([act("user.make_reset_link", user_id, by)], change)
        # Browsers keep what follows the # to themselves: it is in no log and no Referer.
        return NewLink(f"{self._page}#{token}", expires_at)

    async def by_link(self, origin: Origin, *, token: str, new: str) -> None:
        """Set *new* for whoever the link was made for, and end all of their sign-ins.

        Args:
            origin: Where the request comes from.
            token: That of the link, or the whole link; anything a stranger may have sent.
            new: A password that may not be set leaves the link as it is.

        Raises:
            InvalidRequest: The link is not good, or *new* may not be set.
            RateLimited: Too many attempts from this address.
            Overloaded: Too many passwords are being checked.
            AuditUnavailable: It cannot be written down; nothing is changed.
        """
        try:
            await self._guesses.attempt(origin.ip)
            sent, user = await self._holder(token)
            self._rules.check(new, email=user.email)
            await self._use(sent, user, await self._passwords.hash(new), origin)
        except RateLimited as refusal:
            await self._deny(_event(origin, None), refusal.code)
            raise
        except _NotGood as fault:
            await self._deny(_event(origin, fault.user), fault.reason)
            told = "is not good any more, or never was; ask for a new link"
            raise InvalidRequest(errors=[FieldError("token", told)]) from None

    async def _holder(self, text: str) -> tuple[str, User]:
        """Return the token in *text*, and whom the link is for.

        Raises:
            _NotGood: There is no such link, or it has expired.
        """
        token = reset_links.token_in(text)
        if token is None:  # nothing is read for what we cannot have issued
            raise _NotGood("unknown_reset_link")
        link = await self._database.read(lambda tx: reset_links.find(tx, token))
        user = await self._users.get(link.user_id) if link else None
        if link is None or user is None:
            raise _NotGood("unknown_reset_link")
        if link.expires_at <= to_unix_microseconds(self._clock()):
            raise _NotGood("reset_link_expired", user)
        return token, user

    async def _use(self, token: str, user: User, password_hash: str, origin: Origin) -> None:
        """Use the link up; of those who try at once, one gets it."""

        def change(tx: sa.Connection) -> None:
            if not reset_links.use_up(tx, token) or not _set(tx, user, password_hash):
                raise _NotGood("reset_link_used", user)
            end_all_credentials(tx, user.id, now=to_unix_microseconds(self._clock()))

        event = replace(_event(origin, user), reason="reset_link")
        await self._log.record([event], change)

    async def _deny(self, event: Event, reason: str) -> None:
        await self._denials.record(replace(event, outcome="denied", reason=reason))


def _event(origin: Origin, user: User | None) -> Event:
    return Event(
        action="user.set_password",
        outcome="succeeded",
        actor=user.id if user else None,
        request_id=origin.request_id,
        personal=origin.personal(user.email if user else None),
    )


def _set(tx: sa.Connection, user: User, password_hash: str) -> bool:
    """Set the password, unless the account is not any more what was looked at."""
    unchanged = (
        (users.c.id == user.id)
        & users.c.disabled_at.is_(None)
        & (users.c.password_hash == user.password_hash)
    )
    changed = users.update().where(unchanged).values(password_hash=password_hash)
    return tx.execute(changed).rowcount == 1
