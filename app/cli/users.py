"""The commands ``users …``."""

import sys
from typing import Annotated

import typer
from rich.table import Table

from app.base.ids import is_id
from app.cli.terminal import found, in_runtime, out
from app.identity.external_users import ExternalUser
from app.identity.users import OPERATOR, User
from app.runtime import (
    Runtime,
)

commands = typer.Typer(help="Add users and change what they may do.", no_args_is_help=True)


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from the first line of stdin.")
]


@commands.command("add")
def add_user(
    email: str,
    *,
    role: Annotated[str, typer.Option(help="user, auditor or admin.")] = "user",
    password_stdin: PasswordStdin = False,
) -> None:
    """Create a user and print the new identifier."""
    password = _password(from_stdin=password_stdin)
    user = in_runtime(
        lambda runtime: runtime.users.add(email, role=role, password=password, by=OPERATOR)
    )
    typer.echo(user.id)


@commands.command("list")
def list_users() -> None:
    """List all users, oldest first; those of external issuers by what these call them."""

    async def everybody(runtime: Runtime) -> list[User | ExternalUser]:
        both: list[User | ExternalUser] = [*await runtime.users.all()]
        both += await runtime.external_users.all()
        return sorted(both, key=lambda user: user.created_at)

    table = Table("id", "email or subject", "role", "issuer", "created", "disabled", box=None)
    for user in in_runtime(everybody):
        if isinstance(user, User):
            who = (user.email, str(user.role), "")
        else:
            who = (user.subject, "", user.issuer)
        disabled = f"{user.disabled_at:%Y-%m-%d %H:%M}" if user.disabled_at else ""
        table.add_row(user.id, *who, f"{user.created_at:%Y-%m-%d %H:%M}", disabled)
    out.print(table)


async def _switch(runtime: Runtime, who: str, *, on: bool) -> User | ExternalUser:
    external = await runtime.external_users.get(who) if is_id(who, "usr") else None
    holder = runtime.users if external is None else runtime.external_users
    return await (holder.enable if on else holder.disable)(who, by=OPERATOR)


Who = Annotated[str, typer.Argument(help="An address, or the usr_… of a user.")]


@commands.command("disable")
def disable_user(who: Who) -> None:
    """Stop a user at once: no mint that begins later succeeds."""
    user = in_runtime(lambda runtime: _switch(runtime, who, on=False))
    typer.echo(f"{user.id} is disabled")


@commands.command("enable")
def enable_user(who: Who) -> None:
    """Let a user act again, after a new sign-in."""
    user = in_runtime(lambda runtime: _switch(runtime, who, on=True))
    typer.echo(f"{user.id} is enabled")


@commands.command("set-password")
def set_password(email: str, *, password_stdin: PasswordStdin = False) -> None:
    """Give a user another password and end their sign-ins."""
    password = _password(from_stdin=password_stdin)
    user = in_runtime(lambda runtime: runtime.users.set_password(email, password, by=OPERATOR))
    typer.echo(f"{user.id} has a new password")


@commands.command("reset-link")
def make_reset_link(email: str) -> None:
    """Print a link by which whoever has it may set the user's password, once, within an hour."""

    async def make(runtime: Runtime) -> str:
        user = found(await runtime.users.find(email))
        return (await runtime.password_changes.make_link(user.id, by=OPERATOR)).url

    typer.echo(in_runtime(make))
