"""The people who have an account here, and what their role lets them do."""

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

import sqlalchemy as sa

from app.audit.log import Log
from app.base.clock import Clock, from_unix_microseconds, to_unix_microseconds
from app.base.db import Database, metadata
from app.base.errors import Conflict, FieldError, InvalidRequest, NotFound
from app.base.ids import is_id, new_id
from app.identity import reset_links
from app.identity.acts import By, act
from app.identity.erased import ERASED, is_erased
from app.identity.password_rules import PasswordRules
from app.identity.passwords import Passwords

Role = Literal["user", "auditor", "admin"]

SCOPES: dict[Role, frozenset[str]] = {
    "user": frozenset({"mint"}),
    "auditor": frozenset({"audit:read"}),
    "admin": frozenset({"mint", "audit:read", "admin"}),
}
"""What each role may do, as OAuth scopes."""

OPERATOR = "operator"
"""The actor of what is done on the command line."""

LONGEST_EMAIL = 254  # RFC 5321, with the angle brackets taken off

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),  # usr_…
    sa.Column("email", sa.String(LONGEST_EMAIL), nullable=False, unique=True),  # lower case
    sa.Column("password_hash", sa.String(255), nullable=False),  # argon2id, PHC string
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),  # Unix µs
    sa.Column("disabled_at", sa.BigInteger),  # Unix µs
    sa.Column("last_sign_in_at", sa.BigInteger),  # Unix µs; with the password
)

sign_ins = sa.Table(
    "sign_ins",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),  # sgn_…, the `sid` of access tokens
    sa.Column("user_id", sa.String(40), sa.ForeignKey("users.id"), nullable=False, index=True),
    sa.Column("created_at", sa.BigInteger, nullable=False),  # Unix µs
    sa.Column("revoked_at", sa.BigInteger),  # Unix µs
    # Null in both: of the release before refresh tokens, and good for one access token.
    sa.Column("expires_at", sa.BigInteger, index=True),  # Unix µs
    sa.Column("scopes", sa.String(255)),  # as granted, separated by blanks
)


@dataclass(frozen=True, slots=True)
class User:
    """One account."""

    id: str
    email: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None
    password_hash: str = field(repr=False)

    @classmethod
    def of(cls, row: sa.Row[Any]) -> "User":
        """Read a row of the table `users`."""
        return cls(
            id=row.id,
            email=row.email,
            role=row.role,
            created_at=from_unix_microseconds(row.created_at),
            disabled_at=from_unix_microseconds(row.disabled_at) if row.disabled_at else None,
            password_hash=row.password_hash,
        )


class Users:
    """Adds users and changes what they may do; each act leaves its row in the log."""

    def __init__(
        self,
        *,
        database: Database,
        log: Log,
        passwords: Passwords,
        rules: PasswordRules,
        clock: Clock,
    ) -> None:
        self._database = database
        self._log = log
        self._passwords = passwords
        self._rules = rules
        self._clock = clock

    async def add(self, email: str, *, role: str, password: str | None, by: By) -> User:
        """Create an account.

        Args:
            email: Not yet that of an account.
            role: One of `Role`.
            password: None for one that nobody knows: then a link is needed to set another.
            by: Who does it.

        Raises:
            InvalidRequest: The address, role or password cannot be used.
            Conflict: The address has an account already.
            Overloaded: Too many passwords are being checked.
        """
        email = _checked_email(email)
        checked_role = _checked_role(role)
        if password is None:
            password = secrets.token_urlsafe(32)
        else:
            self._rules.check(password, email=email)
        password_hash = await self._passwords.hash(password)
        row = {
            "id": new_id("usr"),
            "email": email,
            "password_hash": password_hash,
            "role": checked_role,
            "created_at": to_unix_microseconds(self._clock()),
            "disabled_at": None,
        }

        def insert(tx: sa.Connection) -> User:
            if tx.execute(sa.select(users.c.id).where(users.c.email == email)).first():
                raise Conflict("An account with this address exists already.")
            tx.execute(users.insert(), row)
            return User.of(tx.execute(users.select().where(users.c.id == row["id"])).one())

        event = act("user.create", str(row["id"]), by, role=checked_role)
        return await self._log.record([event], insert)

    async def find(self, email: str) -> User | None:
        """Return the account with this address, if there is one."""
        if not email.isprintable():
            return None  # nobody has such an address, and PostgreSQL refuses a NUL
        wanted = users.select().where(users.c.email == email.strip().lower())
        row = await self._database.read(lambda tx: tx.execute(wanted).first())
        return User.of(row) if row else None

    async def get(self, user_id: str) -> User | None:
        """Return the account with this id, if there is one."""
        wanted = users.select().where(users.c.id == user_id)
        row = await self._database.read(lambda tx: tx.execute(wanted).first())
        return User.of(row) if row else None

    async def all(self) -> list[User]:
        """Return every account, oldest first."""
        wanted = users.select().order_by(users.c.created_at, users.c.id)
        rows = await self._database.read(lambda tx: tx.execute(wanted).all())
        return [User.of(row) for row in rows]

    async def disable(self, who: str, *, by: By) -> User:
        """Stop the account: no mint that begins later succeeds, and its sign-ins end.

        Raises:
            NotFound: No such account.
            Conflict: An admin would stop the last admin; the operator, who can add one, may.
        """
        now = to_unix_microseconds(self._clock())
        return await self._change(
            who,
            {"disabled_at": sa.func.coalesce(users.c.disabled_at, now)},
            action="user.disable",
            by=by,
            end_credentials=True,
            takes_an_admin=True,
        )

    async def enable(self, who: str, *, by: By) -> User:
        """Let the account act again; it has to sign in anew.

        Raises:
            NotFound: No such account.
            Conflict: It was erased.
        """
        return await self._change(who, {"disabled_at": None}, action="user.enable", by=by)

    async def set_role(self, who: str, role: str, *, by: By) -> User:
        """Give the account another role, and end its sign-ins: the next has the new scopes.

        Raises:
            InvalidRequest: There is no such role.
            NotFound: No such account.
            Conflict: An admin would take the role of the last admin.
        """
        checked_role = _checked_role(role)
        return await self._change(
            who,
            {"role": checked_role},
            action="user.set_role",
            by=by,
            end_credentials=True,
            takes_an_admin=checked_role != "admin",
            role=checked_role,
        )

    async def set_password(self, who: str, password: str, *, by: By) -> User:
        """Give the account another password; whoever is signed in with the old one is out.

        A link to set the password ends too.

        Raises:
            NotFound: No such account.
            InvalidRequest: The password cannot be used.
        """
        user = await self._account(who)
        self._rules.check(password, email=user.email)
        values = {"password_hash": await self._passwords.hash(password)}
        return await self._change(
            user.id, values, action="user.set_password", by=by, end_credentials=True
        )

    async def _account(self, who: str) -> User:
        """Return the account with this id or address.

        Raises:
            NotFound: There is none.
        """
        user = await (self.get(who) if is_id(who, "usr") else self.find(who))
        if user is None:
            raise NotFound("No such account; see: realtime-tokens users list")
        return user

    async def _change(
        self,
        who: str,
        values: dict[str, Any],
        *,
        action: str,
        by: By,
        end_credentials: bool = False,
        takes_an_admin: bool = False,
        **facts: Any,
    ) -> User:
        """Set *values* of an account, by its id or address, and record it.

        Args:
            who: An id or an address.
            values: Columns of `users`.
            action: What the row calls it.
            by: Who does it.
            end_credentials: End its sign-ins, and a link to set its password.
            takes_an_admin: If it is an admin, it will not be one any more.
            facts: Further members of the row.
        """
        user = await self._account(who)
        now = to_unix_microseconds(self._clock())
        needs_another_admin = takes_an_admin and by != OPERATOR

        def change(tx: sa.Connection) -> User:
            if needs_another_admin:
                see_another_admin(tx, user.id)
            tx.execute(users.update().where(users.c.id == user.id).values(values))
            if end_credentials:
                end_all_credentials(tx, user.id, now=now)
            changed = User.of(tx.execute(users.select().where(users.c.id == user.id)).one())
            if changed.disabled_at is None and is_erased(changed.id, changed.email):
                raise Conflict(ERASED)
            return changed

        return await self._log.record([act(action, user.id, by, **facts)], change)


def see_another_admin(tx: sa.Connection, user_id: str) -> None:
    """See that somebody can still administer without this user.

    Raises:
        Conflict: They are the last one who can.
    """
    # Locked, so that of two admins who stop each other at once one comes second.
    able = (users.c.role == "admin") & users.c.disabled_at.is_(None)
    wanted = sa.select(users.c.id).where(able).order_by(users.c.id).with_for_update()
    if set(tx.scalars(wanted)) == {user_id}:
        raise Conflict("This is the last admin. Make another one first.")


def end_all_credentials(
    tx: sa.Connection, user_id: str, *, now: int, but_sign_in: str | None = None
) -> None:
    """End what lets anybody act for the user: sign-ins, and a link to set the password.

    Args:
        tx: In which the user changes.
        user_id: Whose.
        now: Unix µs.
        but_sign_in: The one that goes on.
    """
    live = (sign_ins.c.user_id == user_id) & sign_ins.c.revoked_at.is_(None)
    if but_sign_in is not None:
        live &= sign_ins.c.id != but_sign_in
    tx.execute(sign_ins.update().where(live).values(revoked_at=now))
    reset_links.end(tx, user_id)


def _checked_email(email: str) -> str:
    email = email.strip().lower()
    name, _, domain = email.rpartition("@")
    plain = email.isascii() and email.isprintable() and not any(c in email for c in ' "<>,;:\\')
    if not (name and domain and plain and len(email) <= LONGEST_EMAIL):
        raise InvalidRequest(
            "The address cannot be used.",
            errors=[FieldError("email", "must be an address such as ada@example.com")],
        )
    return email


def _checked_role(role: str) -> Role:
    for known in get_args(Role):
        if role == known:
            return known  # type: ignore[no-any-return]  # get_args does not carry the type
    raise InvalidRequest(
        "The role is not known.",
        errors=[FieldError("role", f"must be one of {', '.join(get_args(Role))}")],
    )
