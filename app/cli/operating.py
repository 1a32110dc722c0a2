"""Commands around the service: migrate, check, mint by hand, describe."""

import asyncio
import json
from typing import Annotated

import typer

from app import __version__
from app.base.clock import system_clock, to_unix_microseconds
from app.base.db import DatabaseFault
from app.base.metrics import Metrics
from app.cli.terminal import asking_openai, command_settings, fail, found, out
from app.identity.callers import Caller, Origin
from app.identity.issuer_settings import read_issuers
from app.identity.users import SCOPES
from app.minting.catalogue import Catalogue
from app.minting.profiles import Profiles, Wish
from app.runtime import (
    database_of,
    installation_secret,
    issuers_of,
    open_runtime,
    openai_client,
)
from app.settings import Settings

commands = typer.Typer()


@commands.command()
def migrate(
    *, quiet: Annotated[bool, typer.Option(help="Say nothing when it went well.")] = False
) -> None:
    """Make the database, or bring it to this release."""
    name = asyncio.run(_migrate(command_settings()))
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


@commands.command()
def check(
    *,
    online: Annotated[
        bool, typer.Option(help="Also ask OpenAI whether the key works, and issuers for theirs.")
    ] = False,
) -> None:
    """Check settings, profiles, models and issuers without starting."""
    settings = command_settings()
    for note in asyncio.run(_notes(settings)):
        out.print(f"note: {note}")
    read_issuers(settings)
    if online:
        with asking_openai(settings):
            asyncio.run(_check_online(settings))
        asyncio.run(_check_issuers(settings))
    out.print("ok")


async def _notes(settings: Settings) -> list[str]:
    """Return what there is to say about profiles and, if there is one already, the database."""
    today = system_clock().date()
    profiles = Profiles.read(settings, catalogue=Catalogue.built_in(), today=today)
    if settings.database_url is None and not settings.database_path.exists():
        return profiles.warnings(today)
    try:
        async with open_runtime(settings) as runtime:  # knows what OpenAI said of models, too
            return [*runtime.profiles.warnings(today), *await runtime.key_ring.warnings()]
    except DatabaseFault as fault:
        return [*profiles.warnings(today), str(fault)]


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
        fail(
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
        fail(*lines)


@commands.command()
def token(
    email: Annotated[str, typer.Argument(help="The user the token is for.")],
    *,
    profile: Annotated[str, typer.Option(help="A session profile.")] = "default",
) -> None:
    """Mint a token for a user, as if they had asked; prints the service's answer."""
    from app.web.realtime import TokenResponse  # noqa: PLC0415 - FastAPI takes a third of a second

    async def run() -> str:
        async with open_runtime(command_settings()) as runtime:
            user = found(await runtime.users.find(email))
            origin = Origin(user_agent=f"realtime-tokens/{__version__}")
            granted = await runtime.sign_in.begin(user, SCOPES[user.role], origin)
            claims = runtime.access_tokens.verify(granted.access_token)
            caller = Caller(claims.sub, claims.sid, claims.jti, claims.scope, origin)
            with asking_openai(runtime.settings):
                minted = await runtime.minter.mint(caller, Wish(profile=profile))
            return TokenResponse.of(minted).model_dump_json(
                by_alias=True, exclude_none=True, indent=2
            )

    typer.echo(asyncio.run(run()))


@commands.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    from app.main import create_app  # noqa: PLC0415 - as in `token`

    typer.echo(json.dumps(create_app(command_settings()).openapi(), indent=2, ensure_ascii=False))


@commands.command()
def version() -> None:
    """Print the release."""
    typer.echo(__version__)
