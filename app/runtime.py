"""What one process shares: builds the use cases and hands each what it needs."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import SecretStr

from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpointing import Checkpoints
from app.audit.checkpoints import Signer, Unreadable
from app.audit.continuity import Continuity
from app.audit.denials import Denials
from app.audit.export import Exports
from app.audit.log import Log, Scribe
from app.audit.overview import Overviews
from app.audit.pruning import Pruning
from app.audit.retention import Retention, Terms
from app.audit.rollup import RollUp
from app.audit.search import Search
from app.audit.sqlite_writer import SqliteWriter
from app.audit.verifications import Verifications
from app.base.clock import Clock, system_clock
from app.base.db import Database, DatabaseFault
from app.base.errors import AuditUnavailable
from app.base.keys import derive_key, read_or_make_secret
from app.base.limits import Limits, MemoryWindows, Windows
from app.base.metrics import Metrics
from app.base.sqlite import SqliteDatabase
from app.identity.access_tokens import AccessTokens
from app.identity.browser_sign_ins import BrowserSignIns
from app.identity.callers import Callers
from app.identity.directory import Directory
from app.identity.end_users import EndUsers
from app.identity.erasure import Erasure
from app.identity.external_tokens import ExternalTokens
from app.identity.external_users import ExternalUsers
from app.identity.guessing import BadCredentials, PasswordGuesses
from app.identity.issuer_settings import read_issuers
from app.identity.issuers import Issuers
from app.identity.key_ring import KeyRing
from app.identity.password_changes import PasswordChanges
from app.identity.password_rules import PasswordRules
from app.identity.passwords import Passwords
from app.identity.service_keys import ServiceKeys
from app.identity.sign_in import SignIn
from app.identity.sign_out import SignOut
from app.identity.users import Users
from app.minting.admission import Admission
from app.minting.catalogue import Catalogue
from app.minting.limits import MintLimits
from app.minting.lookup import TokenLookup
from app.minting.mint import Minter
from app.minting.model_watch import ModelWatch
from app.minting.notices import Notices
from app.minting.openai import OpenAI
from app.minting.profiles import Profiles
from app.minting.sweep import Sweep
from app.settings import Settings

if TYPE_CHECKING:
    from app.base.postgres import PostgresDatabase

SANDBOX_PATH = "/sandbox/v1"
"""Where the stand-in for OpenAI is mounted."""

RESET_PAGE = "/reset"
"""Where a link to set a password leads."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """The use cases of one process, ready to be called."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    database: Database
    log: Log
    denials: Denials
    access_tokens: AccessTokens
    callers: Callers
    key_ring: KeyRing
    users: Users
    issuers: Issuers | None
    external_users: ExternalUsers
    password_changes: PasswordChanges
    sign_in: SignIn
    sign_out: SignOut
    browser_sign_ins: BrowserSignIns
    directory: Directory
    profiles: Profiles
    models: ModelWatch
    openai: OpenAI
    admission: Admission
    minter: Minter
    sweep: Sweep
    search: Search
    continuity: Continuity
    checkpoints: Checkpoints
    verifications: Verifications
    pruning: Pruning
    retention: Retention
    erasure: Erasure
    roll_up: RollUp
    overviews: Overviews
    exports: Exports
    token_lookup: TokenLookup
    notices: Notices


def database_of(settings: Settings) -> "SqliteDatabase | PostgresDatabase":
    """Return the database that the settings name, not yet connected.

    Raises:
        DatabaseFault: The system's SQLite is too old.
    """
    if settings.database_url:
        # Here and not above: it takes ten mebibytes that SQLite can do without.
        from app.base.postgres import PostgresDatabase  # noqa: PLC0415 - see above

        return PostgresDatabase(settings.database_url.get_secret_value())
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return SqliteDatabase(settings.database_path)


def log_in(
    database: "SqliteDatabase | PostgresDatabase",
    scribe: Scribe,
    metrics: Metrics | None = None,
    continuity: Continuity | None = None,
) -> Log:
    """Return the log that stands in *database*, with the writer that fits it.

    Args:
        database: Migrated.
        scribe: Puts events into words.
        metrics: Where it is timed.
        continuity: What has to be in the database; None takes it as it is.
    """
    metrics = metrics or Metrics()
    continuity = continuity or Continuity()
    if isinstance(database, SqliteDatabase):
        return Log(SqliteWriter(database, scribe, metrics, continuity), metrics)
    from app.audit.postgres_writer import PostgresWriter  # noqa: PLC0415 - as in `database_of`

    return Log(PostgresWriter(database, scribe, metrics, continuity), metrics)


def continuity_of(file: CheckpointFile, signer: Signer) -> Continuity:
    """Return what this installation knows of the end of its log when a process starts.

    Raises:
        DatabaseFault: The file cannot be read.
    """
    try:
        return Continuity(signer.public_key, file.last())
    except (OSError, Unreadable) as error:
        raise DatabaseFault(f"the last line of {file.path} cannot be used: {error}") from None


def installation_secret(settings: Settings) -> bytes:
    """Return the secret from which every key of this installation is derived.

    Raises:
        OSError: The folder of ``secret.key`` cannot be written.
        SecretFault: The file holds too little.
    """
    if settings.secret_key:
        return settings.secret_key.get_secret_value().encode()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    return read_or_make_secret(settings.data_dir / "secret.key")


def sandbox_api_key(secret: bytes) -> SecretStr:
    """Return the standard key that the stand-in for OpenAI takes; nobody else knows it."""
    return SecretStr(f"sk-sandbox-{derive_key(secret, 'sandbox-api-key').hex()}")


def end_users(secret: bytes) -> EndUsers:
    """Return who gives the end users of backends their pseudonyms."""
    return EndUsers(derive_key(secret, "end-user"))


@asynccontextmanager
async def open_runtime(
    settings: Settings,
    *,
    clock: Clock = system_clock,
    openai: OpenAI | None = None,
    passwords: Passwords | None = None,
    checked: bool = False,
) -> AsyncIterator[Runtime]:
    """Build everything on a migrated database, and close it in order.

    Args:
        settings: Checked.
        clock: The time of all of it.
        openai: In place of the client that the settings describe; for tests.
        passwords: In place of hashing at full cost; for tests.
        checked: Somebody has looked at the database, so it is not looked at again: a worker that
            takes the place of another while the database is away starts all the same.

    Raises:
        DatabaseFault: The database is missing, not migrated, or of the other environment.
        ProfilesFault: The profiles cannot be used.
        SettingsFault: The issuers, or what the environment says of proxies, cannot be used.
    """
    secret = installation_secret(settings)
    catalogue = Catalogue.built_in()
    profiles = Profiles.read(settings, catalogue=catalogue, today=clock().date())
    metrics = Metrics()
    admission = Admission(places=settings.max_mints_in_flight, metrics=metrics)
    access_tokens = AccessTokens(
        secret=secret,
        issuer=settings.public_url,
        ttl_seconds=settings.access_token_ttl_seconds,
        key_generation=settings.access_token_key_generation,
        clock=clock,
    )
    # Each closes when this ends, the last made first; what fails on the way leaves nothing open.
    async with AsyncExitStack() as stack:
        database = database_of(settings)
        stack.push_async_callback(database.close)
        if not checked:
            await database.reach()
            await database.check(environment=settings.environment)
        passwords = passwords or Passwords()
        stack.callback(passwords.close)
        signer = Signer(secret)
        checkpoint_file = CheckpointFile(settings.checkpoint_path)
        continuity = continuity_of(checkpoint_file, signer)
        log = log_in(database, Scribe(settings.environment, clock), metrics, continuity)
        stack.push_async_callback(log.close)
        verifications = Verifications(
            keys=[signer.public_key],
            file=checkpoint_file,
            database=database,
            log=log,
            clock=clock,
        )
        stack.push_async_callback(verifications.close)
        pruning = Pruning(database=database, log=log, signer=signer, clock=clock)
        openai = openai or openai_client(settings, secret)
        stack.push_async_callback(openai.aclose)
        models = ModelWatch(
            built_in=catalogue,
            profiles=profiles,
            openai=openai,
            database=database,
            log=log,
            metrics=metrics,
            clock=clock,
        )
        with suppress(AuditUnavailable):  # housekeeping reads it when the database is back
            await models.read()
        windows: Windows = MemoryWindows(clock)
        if settings.redis_url is not None:
            from app.base.redis_windows import RedisWindows  # noqa: PLC0415 - as in `database_of`

            windows = RedisWindows(
                settings.redis_url,
                key=derive_key(secret, "limits"),
                otherwise=windows,
                metrics=metrics,
            )
            stack.push_async_callback(windows.close)
        limits = Limits(windows, metrics=metrics)
        denials = Denials(log, clock=clock)
        stack.push_async_callback(denials.settle, all_of_them=True)
        rules = PasswordRules(settings.public_url)
        users = Users(database=database, log=log, passwords=passwords, rules=rules, clock=clock)
        guesses = PasswordGuesses(
            limits,
            per_account=settings.sign_in_failures_per_account,
            per_address=settings.sign_in_failures_per_address,
            attempts_per_address=settings.sign_ins_per_address_per_minute,
            checks=settings.password_checks_per_minute,
        )
        issuers = issuers_of(settings, clock=clock, metrics=metrics)
        if issuers is not None:
            stack.push_async_callback(issuers.aclose)
        service_keys = ServiceKeys(database=database, environment=settings.environment, clock=clock)
        external_users = ExternalUsers(database=database, log=log, clock=clock)
        sign_out = SignOut(database=database, log=log, access_tokens=access_tokens, clock=clock)
        callers = Callers(
            access_tokens=access_tokens,
            external=(ExternalTokens(issuers, clock=clock), external_users) if issuers else None,
            bad_credentials=BadCredentials(
                limits, per_minute=settings.bad_credentials_per_address_per_minute, clock=clock
            ),
            service_keys=service_keys,
            end_users=end_users(secret),
            database=database,
            denials=denials,
            clock=clock,
        )
        sign_in = SignIn(
            users=users,
            passwords=passwords,
            access_tokens=access_tokens,
            sign_out=sign_out,
            guesses=guesses,
            lifetime=timedelta(seconds=settings.sign_in_lifetime_seconds),
            idle=timedelta(seconds=settings.refresh_token_idle_seconds),
            database=database,
            log=log,
            denials=denials,
            clock=clock,
        )
        search = Search(database, cursor_key=derive_key(secret, "cursor"))
        fingerprint_key = derive_key(secret, "client-secret-fingerprint")
        yield Runtime(
            settings=settings,
            clock=clock,
            metrics=metrics,
            database=database,
            log=log,
            denials=denials,
            access_tokens=access_tokens,
            callers=callers,
            key_ring=KeyRing(
                recogniser=service_keys,
                environment=settings.environment,
                profile_names=[profile.name for profile in profiles.for_role("user")],
                database=database,
                log=log,
                clock=clock,
            ),
            users=users,
            issuers=issuers,
            external_users=external_users,
            password_changes=PasswordChanges(
                users=users,
                passwords=passwords,
                rules=rules,
                guesses=guesses,
                page=f"{settings.public_url}{RESET_PAGE}",
                database=database,
                log=log,
                denials=denials,
                clock=clock,
            ),
            sign_in=sign_in,
            sign_out=sign_out,
            browser_sign_ins=BrowserSignIns(
                sign_in=sign_in,
                callers=callers,
                passwords=passwords,
                guesses=guesses,
                form_key=derive_key(secret, "form-token"),
                database=database,
                log=log,
                denials=denials,
                clock=clock,
            ),
            directory=Directory(database=database, users=users, external_users=external_users),
            profiles=profiles,
            models=models,
            openai=openai,
            admission=admission,
            minter=Minter(
                admission=admission,
                profiles=profiles,
                limits=MintLimits(
                    limits,
                    per_minute=settings.mints_per_user_per_minute,
                    per_day=settings.mints_per_user_per_day,
                    per_key_per_minute=settings.mints_per_service_key_per_minute,
                ),
                openai=openai,
                log=log,
                denials=denials,
                metrics=metrics,
                clock=clock,
                fingerprint_key=fingerprint_key,
                safety_key=derive_key(secret, "safety-identifier"),
                connect=_connect(settings),
                environment=settings.environment,
                minting_on=settings.minting == "on",
            ),
            sweep=Sweep(database=database, log=log, clock=clock),
            search=search,
            roll_up=RollUp(database=database, log=log),
            overviews=Overviews(database=database, clock=clock),
            exports=Exports(database=database, log=log),
            token_lookup=TokenLookup(fingerprint_key=fingerprint_key, search=search, log=log),
            notices=Notices(
                in_sandbox=settings.environment == "sandbox",
                key=signer.public_key,
                models=models,
                verifications=verifications,
                continuity=continuity,
                database=database,
                clock=clock,
            ),
            continuity=continuity,
            checkpoints=Checkpoints(
                signer=signer,
                file=checkpoint_file,
                continuity=continuity,
                database=database,
                log=log,
                clock=clock,
            ),
            verifications=verifications,
            pruning=pruning,
            retention=Retention(
                Terms(
                    personal_days=settings.audit_personal_days,
                    days=settings.audit_days,
                    archive=settings.archive_path,
                ),
                pruning=pruning,
                database=database,
                log=log,
                clock=clock,
            ),
            erasure=Erasure(database=database, log=log, passwords=passwords, clock=clock),
        )


def issuers_of(settings: Settings, *, clock: Clock, metrics: Metrics) -> Issuers | None:
    """Return the external issuers that the settings name, if there are any.

    Raises:
        SettingsFault: They cannot be used.
    """
    configured = read_issuers(settings)
    if not configured:
        return None
    anywhere = settings.allow_private_issuers
    return Issuers(configured, anywhere=anywhere, clock=clock, metrics=metrics)


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
