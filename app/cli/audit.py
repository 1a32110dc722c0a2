"""The commands ``audit …``."""

import asyncio
import sys
from datetime import UTC
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.table import Table

from app.audit.matches import Filters
from app.audit.search import Entry, Search
from app.base.ids import is_id
from app.cli import proof
from app.cli.terminal import command_settings, fail, in_runtime, open_database, out
from app.identity.users import OPERATOR
from app.minting.lookup import NOT_OURS
from app.runtime import Runtime, end_users, installation_secret

commands = typer.Typer(help="Read the log and prove that nobody edited it.", no_args_is_help=True)
commands.add_typer(proof.commands)


@commands.command("list")
def list_events(
    *,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Rows to show.")] = 20,
    actor: Annotated[str | None, typer.Option(help="A user's id.")] = None,
    action: Annotated[str | None, typer.Option(help="For instance client_secret.mint.")] = None,
    outcome: Annotated[str | None, typer.Option(help="For instance denied.")] = None,
    key: Annotated[str | None, typer.Option(help="The key_… of the service key used.")] = None,
    end_user: Annotated[
        str | None, typer.Option(help="An end user, as a backend names them; in place of --actor.")
    ] = None,
) -> None:
    """Show the newest rows of the log."""
    settings = command_settings()
    if end_user is not None:
        actor = end_users(installation_secret(settings)).pseudonym_of(end_user)

    async def run() -> None:
        async with open_database(settings) as database:
            search = Search(database, cursor_key=b"")  # one page, no cursor
            filters = Filters(actor=actor, action=action, outcome=outcome, credential=key)
            page = await search.page(filters, limit=limit)
        columns = ("seq", "time", "action", "outcome", "reason", "actor", "service key", "model")
        table = Table(*columns, box=None)
        for entry in page.entries:
            credential = str(entry.members.get("credential", ""))
            shown = {**entry.members, "key": credential if is_id(credential, "key") else ""}
            names = ("action", "outcome", "reason", "actor", "key", "model_used")
            cells = (str(shown.get(name, "")) for name in names)
            at = entry.recorded_at.astimezone(UTC)
            table.add_row(str(entry.seq), f"{at:%Y-%m-%d %H:%M:%S}", *cells)
        out.print(table)

    asyncio.run(run())


@commands.command("trace")
def trace_token() -> None:
    """Read a leaked token (ek_…) from stdin, and print the mint that it came from."""
    from app.web.audit import EventResponse, EventView  # noqa: PLC0415 - see `app.cli.serving`

    value = SecretStr(sys.stdin.readline())

    async def find(runtime: Runtime) -> list[Entry]:
        return await runtime.token_lookup.find(value, by={"actor": OPERATOR})

    rows = in_runtime(find)
    if not rows:
        fail(NOT_OURS)
    views = [EventView.of(row) for row in rows]
    answer = EventResponse(event=views[-1], attempt=views)  # as GET /audit/events/{id} has it
    typer.echo(answer.model_dump_json(by_alias=True, exclude_none=True, indent=2))
