"""The commands ``keys …``."""

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from app.base.clock import system_clock
from app.cli.terminal import in_runtime, out
from app.identity.key_ring import LIFETIME_DAYS, OVERLAP_HOURS, NewKey, ends_soon
from app.identity.service_keys import KEY_SCOPE_MEANINGS, ServiceKey

commands = typer.Typer(help="Give keys to backends, replace and revoke them.", no_args_is_help=True)


LifetimeDays = Annotated[int, typer.Option("--days", help="How long it is good, up to 366 days.")]


@commands.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="For people: which backend has it.")],
    *,
    scope: Annotated[
        list[str], typer.Option(help=f"{' or '.join(KEY_SCOPE_MEANINGS)}; may be repeated.")
    ] = ["mint:on-behalf"],  # noqa: B006 - typer copies it
    profile: Annotated[
        list[str] | None,
        typer.Option(help="A session profile it may be used for; may be repeated. Default: all."),
    ] = None,
    days: LifetimeDays = LIFETIME_DAYS,
) -> None:
    """Make a key and print it, this once."""
    made = in_runtime(
        lambda runtime: runtime.key_ring.create(
            name, scopes=scope, profiles=profile or None, lifetime_days=days, by=None
        )
    )
    _show_once(made)


@commands.command("list")
def list_keys() -> None:
    """List all keys, oldest first."""
    now = system_clock()
    columns = ("id", "name", "scopes", "profiles", "created", "last used", "ends", "")
    table = Table(*columns, box=None)
    for key in in_runtime(lambda runtime: runtime.key_ring.all()):
        table.add_row(
            key.id,
            key.name,
            " ".join(sorted(key.scopes)),
            "all" if key.profiles is None else " ".join(sorted(key.profiles)),
            f"{key.created_at:%Y-%m-%d %H:%M}",
            f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "",
            f"{key.expires_at:%Y-%m-%d %H:%M}",
            _remark(key, now),
        )
    out.print(table)


def _remark(key: ServiceKey, now: datetime) -> str:
    """Return what is special about *key* at *now*, in a few words."""
    if fault := key.fault(now):
        return fault.removeprefix("service_key_")
    if key.successor_id:
        return f"replaced by {key.successor_id}"
    return f"ends in {(key.expires_at - now).days} days" if ends_soon(key, now) else ""


@commands.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The key_… of the key.")]) -> None:
    """End a key at once: no mint that begins later succeeds."""
    key = in_runtime(lambda runtime: runtime.key_ring.revoke(key_id, by=None))
    typer.echo(f"{key.id} is revoked")


@commands.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(help="The key_… of the key.")],
    *,
    overlap_hours: Annotated[
        int, typer.Option(help="How long the old key stays good, up to 168 hours.")
    ] = OVERLAP_HOURS,
    days: LifetimeDays = LIFETIME_DAYS,
) -> None:
    """Make the successor of a key and print it, this once; the old one stays good for a while."""
    made = in_runtime(
        lambda runtime: runtime.key_ring.rotate(
            key_id, overlap_hours=overlap_hours, lifetime_days=days, by=None
        )
    )
    _show_once(made)
    typer.echo(f"{key_id} ends in {overlap_hours} hours at the latest.", err=True)


def _show_once(made: NewKey) -> None:
    """Print a key on stdout, where it can be piped from, and what to know about it on stderr."""
    typer.echo(made.text.get_secret_value())
    typer.echo(
        f"{made.key.id} is good until {made.key.expires_at:%Y-%m-%d}. It is shown this once:"
        " give it to the backend, and to nobody else.",
        err=True,
    )
