"""The operator's commands. Each is one domain call and its answer in plain lines."""

import asyncio
import contextlib
import json
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import sqlalchemy as sa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app import __version__
from app.audit import chain
from app.audit.search import Entry, Filters, Search, row_count, stored_rows
from app.base.clock import system_clock, to_unix_microseconds
from app.base.db import Database, DatabaseFault
from app.base.errors import Problem
from app.base.ids import is_id
from app.base.keys import SecretFault
from app.base.logs import configure_logging
from app.base.metrics import Metrics, share_between_workers
from app.identity.callers import Caller, Origin
from app.identity.external_users import ExternalUser
from app.identity.issuer_settings import read_issuers
from app.identity.key_ring import LIFETIME_DAYS, OVERLAP_HOURS, NewKey, ends_soon
from app.identity.service_keys import KEY_SCOPE_MEANINGS, ServiceKey
from app.identity.sign_in import GrantRefused
from app.identity.users import OPERATOR, SCOPES, User
from app.main import create_app, sandbox_models
from app.minting.catalogue import Catalogue
from app.minting.profiles import Profiles, ProfilesFault, Wish
from app.runtime import (
    Runtime,
    database_of,
    end_users,
    installation_secret,
    issuers_of,
    open_runtime,
    openai_client,
)
from app.sandbox.faults import FAULTS, create_stand_in
from app.settings import Settings, SettingsFault, read_settings
from app.web.audit import EventResponse, EventView
from app.web.realtime import TokenResponse
from app.web.server import run as run_server
from app.web.server import spare_the_collector

T = TypeVar("T")

app = typer.Typer(
    name="realtime-tokens",
    help="Mints short-lived OpenAI Realtime tokens for your users, and writes down that it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with local variables would show secrets
)
users_cli = typer.Typer(help="Add users and change what they may do.", no_args_is_help=True)
audit_cli = typer.Typer(help="Read the log and prove that nobody edited it.", no_args_is_help=True)
keys_cli = typer.Typer(help="Give keys to backends, replace and revoke them.", no_args_is_help=True)
app.add_typer(users_cli, name="users")
app.add_typer(keys_cli, name="keys")
app.add_typer(audit_cli, name="audit")

PIPE_WIDTH = 200  # what is not read on a terminal need not fit one
out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


# Serving ------------------------------------------------------------------------------------


@app.command()
def serve() -> None:
    """Start the service."""
    settings = _settings()
    if settings.app_env == "production" and settings.environment == "sandbox":
        _fail("APP_ENV is production and OPENAI_API_KEY is not set: set the key, or set APP_ENV")
    asyncio.run(_preflight(settings))
    listener = _listener(settings.host, settings.port)
    configure_logging(settings.log_level)
    if settings.workers > 1:
        asyncio.run(_announce_workers(settings))
        share_between_workers(settings.data_dir / "metrics")
        run_server("app.main:create_worker", listener, workers=settings.workers)
    else:
        application = create_app(settings, on_ready=_on_ready)
        run_server(application, listener, websockets=settings.environment == "sandbox")


async def _preflight(settings: Settings) -> None:
    """Fail with one line for what would otherwise fail inside the server."""
    async with open_runtime(settings) as runtime:
        runtime.database.claim_for_serving()


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        _fail(
            f"{host}:{port} cannot be used: {error.strerror};"
            " stop what listens there, or set another PORT"
        )
    return listener


async def _announce_workers(settings: Settings) -> None:
    """Say it once for all of them, before they start."""
    async with open_runtime(settings) as runtime:
        await _announce(runtime)


async def _on_ready(runtime: Runtime) -> None:
    await _announce(runtime)
    spare_the_collector()


async def _announce(runtime: Runtime) -> None:
    """Say on stderr where to look; stdout belongs to the log."""
    settings = runtime.settings
    url = settings.public_url
    lines = ["", f"  Realtime token service {__version__}", ""]
    lines += [f"  API docs   {url}/docs", f"  Health     {url}/readyz", ""]
    if settings.environment == "sandbox":
        lines += await _announce_sandbox(runtime)
    elif not runtime.issuers and not await runtime.users.all():
        lines += [
            "  Nobody can sign in yet. Make the first admin with:",
            "    .venv/bin/realtime-tokens users add YOU@EXAMPLE.COM --role admin",
            "",
        ]
    for warning in runtime.profiles.warnings(runtime.clock().date()):
        lines.append(f"  Note: {warning}")
    lines += [f"  Note: {warning}" for warning in await runtime.key_ring.warnings()]
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()


async def _announce_sandbox(runtime: Runtime) -> list[str]:
    url = runtime.settings.public_url
    lines = [
        "  SANDBOX: there is no OPENAI_API_KEY, so a built-in stand-in answers instead of OpenAI.",
        "  Its tokens are good for this process alone, and its answers are canned.",
        "",
    ]
    if not await runtime.users.all():
        lines.append("  Two accounts were made; their passwords are shown this once:")
        for email, role in (("admin@example.com", "admin"), ("demo@example.com", "user")):
            password = secrets.token_urlsafe(15)
            await runtime.users.add(email, role=role, password=password, by=OPERATOR)
            lines.append(f"    {email:<18} {password}")
        lines.append("")
    demo = await runtime.users.find("demo@example.com")
    if demo is not None and demo.disabled_at is None:
        granted = await runtime.sign_in.begin(demo, SCOPES[demo.role], Origin())
        bearer = f"Bearer {granted.access_token}"
        lines += [
            f"  Paste this for a first token; it works for {granted.expires_in // 60} minutes:",
            "",
            f"curl -sS -X POST {url}/realtime/token -H 'Authorization: {bearer}'",
            "",
        ]
    return lines


@app.command()
def sandbox(
    *,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on 127.0.0.1.")] = 8001,
    api_key: Annotated[str, typer.Option(help="The key it takes.")] = "sk-sandbox",
) -> None:
    """Start the stand-in for OpenAI alone, for tests of other projects. It stores nothing."""
    configure_logging("warning", stream=sys.stderr)
    models = sandbox_models(Catalogue.built_in(), system_clock().date())
    stand_in = create_stand_in(api_key=api_key, clock=system_clock, models=models)
    listener = _listener("127.0.0.1", port)
    listener.listen()  # whoever has read where it is can connect
    url = f"http://127.0.0.1:{port}"
    out.print(f"OpenAI     {url}/v1, with the key {api_key}")
    out.print(f"bad days   {url}/faults/NAME/v1: {', '.join(FAULTS)}")
    sys.stdout.flush()
    run_server(stand_in, listener, websockets=True)


@app.command()
def migrate(
    *, quiet: Annotated[bool, typer.Option(help="Say nothing when it went well.")] = False
) -> None:
    """Make the database, or bring it to this release."""
    name = asyncio.run(_migrate(_settings()))
    if not quiet:
        out.print(f"{name} is up to date")


async def _migrate(settings: Settings) -> str:
    database = database_of(settings)
    try:
        now = to_unix_microseconds(system_clock())
        await database.migrate(environment=settings.environment, now=now)
    finally:
        await database.close()
    return database.name


@app.command()
def check(
    *,
    online: Annotated[
        bool, typer.Option(help="Also ask OpenAI whether the key works, and issuers for theirs.")
    ] = False,
) -> None:
    """Check settings, profiles, models and issuers without starting."""
    settings = _settings()
    today = system_clock().date()
    profiles = Profiles.read(settings, catalogue=Catalogue.built_in(), today=today)
    for warning in [*profiles.warnings(today), *asyncio.run(_database_notes(settings))]:
        out.print(f"note: {warning}")
    read_issuers(settings)
    if online:
        asyncio.run(_check_online(settings))
        asyncio.run(_check_issuers(settings))
    out.print("ok")


async def _database_notes(settings: Settings) -> list[str]:
    """Return what there is to say about the database, if there is one already."""
    if settings.database_url is None and not settings.database_path.exists():
        return []
    try:
        async with open_runtime(settings) as runtime:
            return await runtime.key_ring.warnings()
    except DatabaseFault as fault:
        return [str(fault)]


async def _check_online(settings: Settings) -> None:
    client = openai_client(settings, installation_secret(settings))
    try:
        visible = {model.id for model in await client.list_models()}
    finally:
        await client.aclose()
    today = system_clock().date()
    live = [m for m in Catalogue.built_in().models if m.family == "mini"]
    live = [m for m in live if m.status_on(today) != "retired"]
    out.print(f"the key works; {len(visible)} models are visible")
    if not any(model.id in visible for model in live):
        _fail(
            "the key does not see a mini realtime model"
            f" ({', '.join(model.id for model in live)}): allow it in the project's model settings"
        )


async def _check_issuers(settings: Settings) -> None:
    issuers = issuers_of(settings, clock=system_clock, metrics=Metrics())
    if issuers is None:
        return
    try:
        faults = await issuers.look()
    finally:
        await issuers.aclose()
    for issuer in (name for name, fault in faults.items() if not fault):
        out.print(f"the keys of {issuer} are there")
    if lines := [f"the keys of {name}: {fault}" for name, fault in faults.items() if fault]:
        _fail(*lines)


@app.command()
def token(
    email: Annotated[str, typer.Argument(help="The user the token is for.")],
    *,
    profile: Annotated[str, typer.Option(help="A session profile.")] = "default",
) -> None:
    """Mint a token for a user, as if they had asked; prints the service's answer."""

    async def run() -> str:
        async with open_runtime(_settings()) as runtime:
            user = _found(await runtime.users.find(email))
            origin = Origin(user_agent=f"realtime-tokens/{__version__}")
            granted = await runtime.sign_in.begin(user, SCOPES[user.role], origin)
            claims = runtime.access_tokens.verify(granted.access_token)
            caller = Caller(claims.sub, claims.sid, claims.jti, claims.scope, origin)
            minted = await runtime.minter.mint(caller, Wish(profile=profile))
            return TokenResponse.of(minted).model_dump_json(
                by_alias=True, exclude_none=True, indent=2
            )

    typer.echo(asyncio.run(run()))


@app.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    typer.echo(json.dumps(create_app(_settings()).openapi(), indent=2, ensure_ascii=False))


@app.command()
def version() -> None:
    """Print the release."""
    typer.echo(__version__)


# Users --------------------------------------------------------------------------------------


def _in_runtime(act: Callable[[Runtime], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        async with open_runtime(_settings()) as runtime:
            return await act(runtime)

    return asyncio.run(run())


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


PasswordStdin = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from the first line of stdin.")
]


@users_cli.command("add")
def add_user(
    email: str,
    *,
    role: Annotated[str, typer.Option(help="user, auditor or admin.")] = "user",
    password_stdin: PasswordStdin = False,
) -> None:
    """Create a user and print the new identifier."""
    password = _password(from_stdin=password_stdin)
    user = _in_runtime(
        lambda runtime: runtime.users.add(email, role=role, password=password, by=OPERATOR)
    )
    typer.echo(user.id)


@users_cli.command("list")
def list_users() -> None:
    """List all users, oldest first; those of external issuers by what these call them."""

    async def everybody(runtime: Runtime) -> list[User | ExternalUser]:
        both: list[User | ExternalUser] = [*await runtime.users.all()]
        both += await runtime.external_users.all()
        return sorted(both, key=lambda user: user.created_at)

    table = Table("id", "email or subject", "role", "issuer", "created", "disabled", box=None)
    for user in _in_runtime(everybody):
        if isinstance(user, User):
            who = (user.email, str(user.role), "")
        else:
            who = (user.subject, "", user.issuer)
        disabled = f"{user.disabled_at:%Y-%m-%d %H:%M}" if user.disabled_at else ""
        table.add_row(user.id, *who, f"{user.created_at:%Y-%m-%d %H:%M}", disabled)
    out.print(table)


async def _switch(runtime: Runtime, who: str, *, on: bool) -> User | ExternalUser:
    holder = runtime.external_users if is_id(who, "usr") else runtime.users
    return await (holder.enable if on else holder.disable)(who, by=OPERATOR)


Who = Annotated[str, typer.Argument(help="An address; the usr_… of an external issuer's user.")]


@users_cli.command("disable")
def disable_user(who: Who) -> None:
    """Stop a user at once: no mint that begins later succeeds."""
    user = _in_runtime(lambda runtime: _switch(runtime, who, on=False))
    typer.echo(f"{user.id} is disabled")


@users_cli.command("enable")
def enable_user(who: Who) -> None:
    """Let a user act again, after a new sign-in."""
    user = _in_runtime(lambda runtime: _switch(runtime, who, on=True))
    typer.echo(f"{user.id} is enabled")


@users_cli.command("set-password")
def set_password(email: str, *, password_stdin: PasswordStdin = False) -> None:
    """Give a user another password and end their sign-ins."""
    password = _password(from_stdin=password_stdin)
    user = _in_runtime(lambda runtime: runtime.users.set_password(email, password, by=OPERATOR))
    typer.echo(f"{user.id} has a new password")


# Service keys -------------------------------------------------------------------------------


LifetimeDays = Annotated[int, typer.Option("--days", help="How long it is good, up to 366 days.")]


@keys_cli.command("create")
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
    made = _in_runtime(
        lambda runtime: runtime.key_ring.create(
            name, scopes=scope, profiles=profile or None, lifetime_days=days, by=None
        )
    )
    _show_once(made)


@keys_cli.command("list")
def list_keys() -> None:
    """List all keys, oldest first."""
    now = system_clock()
    columns = ("id", "name", "scopes", "profiles", "created", "last used", "ends", "")
    table = Table(*columns, box=None)
    for key in _in_runtime(lambda runtime: runtime.key_ring.all()):
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


@keys_cli.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The key_… of the key.")]) -> None:
    """End a key at once: no mint that begins later succeeds."""
    key = _in_runtime(lambda runtime: runtime.key_ring.revoke(key_id, by=None))
    typer.echo(f"{key.id} is revoked")


@keys_cli.command("rotate")
def rotate_key(
    key_id: Annotated[str, typer.Argument(help="The key_… of the key.")],
    *,
    overlap_hours: Annotated[
        int, typer.Option(help="How long the old key stays good, up to 168 hours.")
    ] = OVERLAP_HOURS,
    days: LifetimeDays = LIFETIME_DAYS,
) -> None:
    """Make the successor of a key and print it, this once; the old one stays good for a while."""
    made = _in_runtime(
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


# The log ------------------------------------------------------------------------------------


@audit_cli.command("list")
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
    settings = _settings()
    if end_user is not None:
        actor = end_users(installation_secret(settings)).pseudonym_of(end_user)

    async def run() -> None:
        async with _database(settings) as database:
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


@audit_cli.command("trace")
def trace_token() -> None:
    """Read a leaked token (ek_…) from stdin, and print the mint that it came from."""
    value = sys.stdin.readline().strip()

    async def find(runtime: Runtime) -> list[Entry]:
        fingerprint = runtime.minter.fingerprint(value)
        page = await runtime.search.page(Filters(token_fingerprint=fingerprint), limit=1)
        if not page.entries:
            return []
        return await runtime.search.attempt(page.entries[0].members["attempt_id"])

    rows = _in_runtime(find)
    if not rows:
        _fail("no row has this token: it was minted elsewhere, or under another SECRET_KEY")
    views = [EventView.of(row) for row in rows]
    answer = EventResponse(event=views[-1], attempt=views)  # as GET /audit/events/{id} has it
    typer.echo(answer.model_dump_json(by_alias=True, exclude_none=True, indent=2))


@audit_cli.command("verify")
def verify_log() -> None:
    """Recompute the whole chain and name every row that was edited, inserted, moved or deleted."""

    async def run() -> tuple[int, list[chain.Fault]]:
        async with _database(_settings()) as database:
            return await database.read(_verify_with_progress)

    total, faults = asyncio.run(run())
    for fault in faults:
        out.print(f"row {fault.seq}: {fault.what}")
    if faults:
        _fail(f"the log was tampered with: {len(faults)} faults in {total} rows")
    out.print(f"{total} rows verified: the chain is whole")


def _verify_with_progress(tx: sa.Connection) -> tuple[int, list[chain.Fault]]:
    total = row_count(tx)
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        rows = progress.track(stored_rows(tx), total=total)
        return total, list(chain.faults(rows))


# What commands have in common -----------------------------------------------------------------


def _settings() -> Settings:
    settings = read_settings(Path(".env"))
    configure_logging("warning", stream=sys.stderr)  # stdout is for the answer
    return settings


@contextlib.asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    database = database_of(settings)
    try:
        await database.check(environment=settings.environment)
        yield database
    finally:
        await database.close()


def _found(user: User | None) -> User:
    if user is None:
        _fail("no account has this address; see: realtime-tokens users list")
    return user


def _fail(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(f"realtime-tokens: {line}", err=True)
    raise typer.Exit(1)


def run() -> None:
    """Run the command line; what an operator can mend ends with a line, not a traceback."""
    os.umask(0o077)  # what lies in DATA_DIR is for its owner alone
    try:
        app()
    except (SettingsFault, ProfilesFault) as error:
        lines = error.faults
    except Problem as problem:
        reasons = "; ".join(f"{fault.field} {fault.reason}" for fault in problem.errors)
        lines = [f"{problem.detail} {reasons}".strip()]
    except (DatabaseFault, SecretFault, GrantRefused, OSError, TimeoutError) as error:
        lines = [str(error)]
    for line in lines:
        typer.echo(f"realtime-tokens: {line}", err=True)
    sys.exit(1)
