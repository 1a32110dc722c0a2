"""What one process shares: builds the use cases and hands each what it needs."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog
from pydantic import SecretStr

from app.audit.denials import Denials
from app.audit.log import Log
from app.audit.search import Search
from app.base.clock import Clock, system_clock
from app.base.db import Database
from app.base.keys import derive_key, read_or_make_secret
from app.base.limits import Allowance, Limits
from app.identity.access_tokens import AccessTokens
from app.identity.callers import Callers
from app.identity.passwords import Passwords
from app.identity.sign_in import SignIn
from app.identity.users import Users
from app.minting.catalogue import Catalogue
from app.minting.limits import MintLimits
from app.minting.mint import Minter
from app.minting.openai import OpenAI
from app.minting.profiles import Profiles
from app.minting.sweep import Sweep
from app.settings import Settings

SANDBOX_PATH = "/sandbox/v1"
"""Where the stand-in for OpenAI is mounted."""

SWEEP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """The use cases of one process, ready to be called."""

    settings: Settings
    clock: Clock
    database: Database
    log: Log
    denials: Denials
    access_tokens: AccessTokens
    callers: Callers
    users: Users
    sign_in: SignIn
    catalogue: Catalogue
    profiles: Profiles
    openai: OpenAI
    minter: Minter
    sweep: Sweep
    search: Search


def installation_secret(settings: Settings) -> bytes:
    """Return the secret from which every key of this installation is derived.

    Raises:
        OSError: The folder of ``secret.key`` cannot be written.
        ValueError: The file holds too little.
    """
    if settings.secret_key:
        return settings.secret_key.get_secret_value().encode()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return read_or_make_secret(settings.data_dir / "secret.key")


def sandbox_api_key(secret: bytes) -> SecretStr:
    """Return the standard key that the stand-in for OpenAI takes; nobody else knows it."""
    return SecretStr(f"sk-sandbox-{derive_key(secret, 'sandbox-api-key').hex()}")


@asynccontextmanager
async def open_runtime(
    settings: Settings,
    *,
    clock: Clock = system_clock,
    openai: OpenAI | None = None,
    passwords: Passwords | None = None,
) -> AsyncIterator[Runtime]:
    """Build everything on a migrated database, and close it in order.

    Args:
        settings: Checked.
        clock: The time of all of it.
        openai: In place of the client that the settings describe; for tests.
        passwords: In place of hashing at full cost; for tests.

    Raises:
        DatabaseFault: The database is missing, not migrated, or of the other environment.
        ProfilesFault: The profiles cannot be used.
    """
    secret = installation_secret(settings)
    catalogue = Catalogue.built_in()
    profiles = Profiles.read(settings, catalogue=catalogue, today=clock().date())
    database = Database(settings.database_path)
    try:
        await database.check(environment=settings.environment)
        log = Log(database, environment=settings.environment, clock=clock)
    except BaseException:
        database.close()
        raise
    openai = openai or openai_client(settings, secret)
    passwords = passwords or Passwords()
    denials = Denials(log, clock=clock)
    limits = Limits(clock=clock)
    access_tokens = AccessTokens(
        secret=secret,
        issuer=settings.public_url,
        ttl_seconds=settings.access_token_ttl_seconds,
        clock=clock,
    )
    users = Users(database=database, log=log, passwords=passwords, clock=clock)
    try:
        yield Runtime(
            settings=settings,
            clock=clock,
            database=database,
            log=log,
            denials=denials,
            access_tokens=access_tokens,
            callers=Callers(access_tokens=access_tokens, database=database, denials=denials),
            users=users,
            sign_in=SignIn(
                users=users,
                passwords=passwords,
                access_tokens=access_tokens,
                limits=limits,
                per_account=Allowance.per_minute(
                    "sign-in-account", settings.sign_ins_per_account_per_minute
                ),
                per_address=Allowance.per_minute(
                    "sign-in-address", settings.sign_ins_per_address_per_minute
                ),
                log=log,
                denials=denials,
                clock=clock,
            ),
            catalogue=catalogue,
            profiles=profiles,
            openai=openai,
            minter=Minter(
                profiles=profiles,
                limits=MintLimits(
                    limits,
                    per_minute=settings.mints_per_user_per_minute,
                    per_day=settings.mints_per_user_per_day,
                ),
                openai=openai,
                log=log,
                denials=denials,
                clock=clock,
                fingerprint_key=derive_key(secret, "client-secret-fingerprint"),
                safety_key=derive_key(secret, "safety-identifier"),
                connect=_connect(settings),
                environment=settings.environment,
                minting_on=settings.minting == "on",
            ),
            sweep=Sweep(database=database, log=log, clock=clock),
            search=Search(database, cursor_key=derive_key(secret, "cursor")),
        )
    finally:
        await denials.settle(all_of_them=True)
        await openai.aclose()
        await log.close()
        passwords.close()
        database.close()


@asynccontextmanager
async def housekeeping(runtime: Runtime) -> AsyncIterator[None]:
    """Settle what an earlier process left open, then sweep every few seconds until the end.

    Only for the one process that serves: nobody else has attempts under way on this file.
    """
    await runtime.sweep.run(patience=timedelta(0))
    task = asyncio.create_task(_sweep_for_ever(runtime), name="housekeeping")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _sweep_for_ever(runtime: Runtime) -> None:
    logger = structlog.get_logger(__name__)
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        try:
            await runtime.sweep.run()
            await runtime.denials.settle()
        except Exception:  # the next round tries again; a database that is away comes back
            logger.exception("housekeeping_failed")


def openai_client(settings: Settings, secret: bytes) -> OpenAI:
    """Return the client for OpenAI, or for the stand-in when there is no key."""
    if settings.openai_api_key is None:
        return OpenAI(
            base_url=settings.loopback_url + SANDBOX_PATH, api_key=sandbox_api_key(secret)
        )
    return OpenAI(
        base_url=settings.openai_base_url,
        api_key=settings.openai_api_key,
        organization=settings.openai_org_id,
        project=settings.openai_project_id,
    )


def _connect(settings: Settings) -> Mapping[str, str]:
    """Return where a client opens its session; the sandbox speaks WebSocket only."""
    if settings.environment == "sandbox":
        return {"websocket": _websocket(settings.public_url + SANDBOX_PATH)}
    return {
        "webrtc": f"{settings.openai_base_url}/realtime/calls",
        "websocket": _websocket(settings.openai_base_url),
    }


def _websocket(url: str) -> str:
    return url.replace("http", "ws", 1) + "/realtime"
