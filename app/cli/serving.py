"""Commands that run until they are stopped: the service, and the stand-in for OpenAI alone.

What serves is imported where it is needed: the other commands start in half the time without.
"""

import asyncio
import secrets
import socket
import sys
from typing import Annotated

import typer

from app import __version__
from app.base.clock import system_clock
from app.base.logs import configure_logging
from app.base.metrics import share_between_workers
from app.cli.terminal import command_settings, fail, out
from app.identity.callers import Origin
from app.identity.users import OPERATOR, SCOPES
from app.minting.catalogue import Catalogue
from app.runtime import (
    Runtime,
    open_runtime,
)
from app.settings import Settings

commands = typer.Typer()


@commands.command()
def serve() -> None:
    """Start the service."""
    from app.main import create_app  # noqa: PLC0415 - see the module
    from app.web.server import run as run_server  # noqa: PLC0415 - likewise

    settings = command_settings()
    if settings.app_env == "production" and settings.environment == "sandbox":
        fail("APP_ENV is production and OPENAI_API_KEY is not set: set the key, or set APP_ENV")
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
        fail(
            f"{host}:{port} cannot be used: {error.strerror};"
            " stop what listens there, or set another PORT"
        )
    return listener


async def _announce_workers(settings: Settings) -> None:
    """Say it once for all of them, before they start."""
    async with open_runtime(settings) as runtime:
        await _announce(runtime)


async def _on_ready(runtime: Runtime) -> None:
    from app.web.server import spare_the_collector  # noqa: PLC0415 - see the module

    await _announce(runtime)
    spare_the_collector()


async def _announce(runtime: Runtime) -> None:
    """Say on stderr where to look; stdout belongs to the log."""
    settings = runtime.settings
    url = settings.public_url
    lines = ["", f"  Realtime token service {__version__}", ""]
    lines += [
        f"  API docs   {url}/docs",
        f"  Admin      {url}/admin",
        f"  Health     {url}/readyz",
        "",
    ]
    if runtime.continuity.fault is not None:
        lines += [f"  NOTHING IS MINTED: {runtime.continuity.fault}", ""]
    elif settings.environment == "sandbox":
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
            password = secrets.token_hex(12)
            await runtime.users.add(email, role=role, password=password, by=OPERATOR)
            lines.append(f"    {email:<18} {password}")
        lines.append("")
    demo = await runtime.users.find("demo@example.com")
    if demo is not None and demo.disabled_at is None and "mint" in SCOPES[demo.role]:
        granted = await runtime.sign_in.begin(demo, SCOPES[demo.role], Origin())
        bearer = f"Bearer {granted.access_token}"
        lines += [
            f"  Paste this for a first token; it works for {granted.expires_in // 60} minutes:",
            "",
            f"curl -sS -X POST {url}/realtime/token -H 'Authorization: {bearer}'",
            "",
        ]
    return lines


@commands.command()
def sandbox(
    *,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on 127.0.0.1.")] = 8001,
    api_key: Annotated[str, typer.Option(help="The key it takes.")] = "sk-sandbox",
) -> None:
    """Start the stand-in for OpenAI alone, for tests of other projects. It stores nothing."""
    from app.main import sandbox_models  # noqa: PLC0415 - see the module
    from app.sandbox.faults import FAULTS, create_stand_in  # noqa: PLC0415 - likewise
    from app.web.server import run as run_server  # noqa: PLC0415 - likewise

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
