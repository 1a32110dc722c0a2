"""Every setting of the service, read once at start from the environment and ``.env``."""

import difflib
import ipaddress
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _check_readable(url: str) -> None:
    """See that no part of a password in *url* would be taken, and shown, as a host.

    Raises:
        ValueError: It would be, or the port is none.
    """
    try:
        parts = urlsplit(url)
        readable = parts.port != 0  # and looking at it raises what a port cannot be
    except ValueError:
        readable = False
    if not readable or not url.count("@") == parts.netloc.count("@") <= 1:
        raise ValueError(
            "cannot be read; in a password write @ / ? # [ ] as %40 %2F %3F %23 %5B %5D"
        )


class SettingsFault(Exception):
    """The settings cannot be used. One line per fault, each saying what to do."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


LARGEST_PORT = 65_535


class Settings(BaseSettings):
    """What an operator may set. Units are part of the name; defaults are safe to deploy."""

    model_config = SettingsConfigDict(
        env_file=".env",
        extra="ignore",  # read_settings() names what is unknown, with a suggestion
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
        env_ignore_empty=True,
    )

    openai_api_key: SecretStr | None = None
    """Standard OpenAI API key. Without it the service runs in its sandbox."""

    openai_base_url: str = "https://api.openai.com/v1"
    """Where OpenAI's API is. Only used together with a key."""

    openai_org_id: str | None = None
    """Organization to bill when the key belongs to several."""

    openai_project_id: str | None = None
    """Project to bill when the key belongs to several."""

    openai_realtime_model: str = "mini"
    """Model of the profile `default`: a family of the catalogue or an exact id."""

    openai_realtime_voice: str | None = "marin"
    """Voice of the profile `default`."""

    openai_realtime_instructions: str | None = None
    """Instructions of the profile `default`. The holder of a token can read them."""

    openai_realtime_max_tokens: Annotated[int, Field(ge=1, le=4096)] | Literal["inf"] | None = None
    """Output tokens per response of the profile `default`: 1 to 4096, or `inf`."""

    openai_realtime_transcription_model: str = "transcribe"
    """Transcription of the profile `default`: a family, an exact id, or `none`."""

    openai_realtime_temperature: str | None = None
    """No longer exists at OpenAI; named in the start-up log and otherwise ignored."""

    client_secret_ttl_seconds: int = Field(default=60, ge=10, le=7200)
    """How long a token of the profile `default` opens sessions; OpenAI takes 10 to 7200."""

    profiles_file: Path | None = None
    """TOML file with more session profiles."""

    model_policy: Literal["replace", "refuse"] = "replace"
    """What to do when a configured model is shut down: use its successor, or refuse."""

    allow_unknown_models: bool = False
    """Accept model ids that the built-in catalogue does not know."""

    minting: Literal["on", "off"] = "on"
    """Panic switch: `off` refuses every mint and leaves the rest running."""

    mints_per_user_per_minute: int = Field(default=10, ge=1)
    """How many tokens one user may ask for within any minute."""

    mints_per_user_per_day: int = Field(default=200, ge=1)
    """How many tokens one user may ask for within any 24 hours."""

    mints_per_service_key_per_minute: int = Field(default=600, ge=1)
    """How many tokens one service key may ask for within any minute, for all of its users."""

    max_mints_in_flight: int = Field(default=256, ge=1, le=10_000)
    """Mints under way at once in one process; as many may wait a second, the rest gets a 503."""

    sign_in_failures_per_account: int = Field(default=5, ge=1)
    """Wrong passwords for one account from one address until each further try has to wait."""

    sign_in_failures_per_address: int = Field(default=60, ge=1)
    """Wrong passwords from one address within an hour until each further try has to wait."""

    sign_ins_per_address_per_minute: int = Field(default=30, ge=1)
    """Password, refresh and reset attempts from one address within any minute."""

    password_checks_per_minute: int = Field(default=600, ge=1)
    """Passwords checked within any minute, of all callers; each takes 0.2 s of processor time."""

    bad_credentials_per_address_per_minute: int = Field(default=300, ge=1)
    """Bad access tokens from one address within any minute; beyond, a 429 without a look."""

    sign_in_lifetime_seconds: int = Field(default=2_592_000, ge=600, le=31_536_000)
    """How long a sign-in lasts until the password is needed again; 30 days by default."""

    refresh_token_idle_seconds: int = Field(default=1_209_600, ge=600, le=31_536_000)
    """How long a refresh token stays good unused; 14 days by default."""

    access_token_ttl_seconds: int = Field(default=600, ge=60, le=3600)
    """How long our own access tokens are good."""

    access_token_key_generation: int = Field(default=1, ge=1)
    """Which key signs access tokens; the one before stays good. Add 1 to change the key."""

    issuers: Annotated[tuple[str, ...], NoDecode] = ()
    """Identity providers whose tokens are taken, separated by blanks: `supabase:PROJECT`, …"""

    issuers_file: Path | None = None
    """TOML file with more of them, see [any other issuer](docs/issuers/other.md)."""

    allow_private_issuers: bool = False
    """Let their keys be fetched from private addresses, and over `http://`."""

    app_env: Literal["development", "production"] = "development"
    """`production` refuses to start in the sandbox."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = Field(default=8000, ge=1, le=LARGEST_PORT)
    """Port to listen on."""

    public_url: str = ""
    """How clients reach the service; `iss` and `aud` of its tokens. Default: `http://127.0.0.1:PORT`."""

    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of browsers that may call, comma-separated, exact: `https://app.example.com`."""

    trusted_proxies: Annotated[tuple[Network, ...], NoDecode] = ()
    """Networks whose `X-Forwarded-For` and `-Proto` are believed, comma-separated: `10.0.0.0/8`."""

    data_dir: Path = Path("var")
    """Folder of the SQLite database and of `secret.key`."""

    database_url: SecretStr | None = None
    """PostgreSQL in place of SQLite: `postgresql://user:password@host/name`."""

    redis_url: SecretStr | None = None
    """Limits for all processes together: `redis://:password@host/0`, or `rediss://` for TLS."""

    workers: int = Field(default=1, ge=1, le=64)
    """Processes that serve. More than 1 needs `DATABASE_URL` and `OPENAI_API_KEY`."""

    secret_key: SecretStr | None = None
    """At least 32 characters; every key is derived from it. Default: `DATA_DIR/secret.key`."""

    checkpoint_file: Path | None = None
    """File of signed checkpoints of the log. Default: `DATA_DIR/service-checkpoints.jsonl`."""

    audit_personal_days: int | None = Field(default=None, ge=1, le=36_500)
    """Days after which addresses, user agents and e-mail addresses of the log are erased."""

    audit_days: int | None = Field(default=None, ge=1, le=36_500)
    """Days after which rows of the log are taken out of the database, into `AUDIT_ARCHIVE_DIR`."""

    audit_archive_dir: Path | None = None
    """Folder for these rows. Default: `DATA_DIR/audit-archive`."""

    metrics_token: SecretStr | None = None
    """Bearer of at least 32 characters for `/metrics`; without it only the sandbox shows them."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""

    @property
    def environment(self) -> Literal["live", "sandbox"]:
        """Whether tokens come from OpenAI or from the built-in stand-in."""
        return "live" if self.openai_api_key else "sandbox"

    @property
    def database_path(self) -> Path:
        """The SQLite file; the sandbox has its own."""
        return self.data_dir / ("service.db" if self.environment == "live" else "sandbox.db")

    @property
    def checkpoint_path(self) -> Path:
        """The file of checkpoints; the sandbox has its own."""
        if self.checkpoint_file is None:
            return self.data_dir / f"{self.database_path.stem}-checkpoints.jsonl"
        return self._of_environment(self.checkpoint_file)

    @property
    def archive_path(self) -> Path:
        """The folder for rows that are taken out of the log; the sandbox has its own."""
        return self._of_environment(self.audit_archive_dir or self.data_dir / "audit-archive")

    def _of_environment(self, path: Path) -> Path:
        """Return where the sandbox has what else stands at *path*: the two are different logs."""
        return path if self.environment == "live" else path.with_name(f"sandbox-{path.name}")

    @property
    def loopback_url(self) -> str:
        """Where this machine reaches the service, whatever the public name is."""
        everywhere = self.host in {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound
        host = "127.0.0.1" if everywhere else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @field_validator("openai_api_key", "secret_key", "database_url", "redis_url", "metrics_token")
    @classmethod
    def _plain_secret(cls, value: SecretStr | None) -> SecretStr | None:
        """A stray newline would break the header it goes into, far from here."""
        text = value.get_secret_value() if value else ""
        if any(character.isspace() or not character.isprintable() for character in text):
            raise ValueError("holds a space, newline or control character; set it again without")
        if not text.isascii():
            raise ValueError("holds a character outside ASCII; set it again without")
        return value

    @field_validator("secret_key", "metrics_token")
    @classmethod
    def _long_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value and len(value.get_secret_value()) < 32:  # noqa: PLR2004 - 256 bits in hex is 64
            raise ValueError("needs at least 32 characters, e.g. from: openssl rand -hex 32")
        return value

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value()
        if not url.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://; SQLite needs none, see DATA_DIR")
        _check_readable(url)
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value()
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError("must start with redis://, or with rediss:// for TLS")
        _check_readable(url)
        if not re.fullmatch(r"rediss?://[^/?#]+(/\d*)?", url):
            raise ValueError("must name a host and at most a database, as in redis://host/0")
        return value

    @field_validator("workers")
    @classmethod
    def _what_workers_share(cls, value: int, others: ValidationInfo) -> int:
        if value > 1:
            for name, why in (
                ("database_url", "SQLite has one process that serves"),
                ("openai_api_key", "the sandbox keeps its tokens in one process"),
            ):
                if name in others.data and not others.data[name]:  # it has no fault of its own
                    raise ValueError(f"more than 1 needs {name.upper()}: {why}")
        return value

    @field_validator("openai_base_url", "public_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with https:// or http://")
        if any(character in value for character in "?# \n\t\"'<>\\"):
            raise ValueError("must be a plain address without query, fragment or spaces")
        if "@" in value:
            raise ValueError("must not carry a user name or password")
        try:
            parts = urlsplit(value)
            has_host = bool(parts.hostname) and parts.port != 0  # reading the port checks it
        except ValueError:
            has_host = False
        if value and not has_host:
            raise ValueError("must name a host, and a port of 1 to 65535 if any")
        return value.rstrip("/")

    @field_validator("openai_org_id", "openai_project_id")
    @classmethod
    def _goes_into_a_header(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[!-~]+", value):
            raise ValueError("must have ASCII characters without spaces alone")
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: Any) -> Any:
        return _split(value) if isinstance(value, str) else value

    @field_validator("issuers", mode="before")
    @classmethod
    def _presets(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(ipaddress.ip_network(part) for part in _split(value))
        return value

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            scheme, _, rest = origin.partition("://")
            if scheme not in {"http", "https"} or not rest or any(c in rest for c in "/*?# "):
                raise ValueError(
                    f"{origin!r} is not an exact origin such as https://app.example.com"
                )
            # As browsers write it (RFC 6454 section 6.2): they compare letter by letter.
            if rest != rest.lower() or rest.endswith({"http": ":80", "https": ":443"}[scheme]):
                raise ValueError(
                    f"{origin!r} is not as browsers send it: in lower case, without a usual port"
                )
        return value

    @model_validator(mode="before")
    @classmethod
    def _public_url_from_port(cls, data: dict[str, Any]) -> dict[str, Any]:
        if not data.get("public_url"):
            port = str(data.get("port") or 8000)
            known = port.isdecimal() and 0 < int(port) <= LARGEST_PORT  # else that has the fault
            data["public_url"] = f"http://127.0.0.1:{port if known else 8000}"
        return data


SECRETS = tuple(
    name for name, field in Settings.model_fields.items() if field.annotation == SecretStr | None
)
"""The secret settings; each also exists as ``…_FILE``, the path of a file that holds it."""


def read_settings(env_file: Path = Path(".env")) -> Settings:
    """Read the settings from the environment and *env_file*.

    Raises:
        SettingsFault: With one line per fault; never with a submitted value.
    """
    try:
        named = {name.upper(): value for name, value in dotenv_values(env_file).items()}
    except UnicodeDecodeError:
        raise SettingsFault([f"{env_file}: is not text in UTF-8"]) from None
    faults = [f"{env_file}: {fault}" for fault in _unknown(named)]
    from_files, file_faults = _secrets_from_files(named | dict(os.environ))
    faults += file_faults
    try:
        settings = Settings(_env_file=env_file, **from_files)
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_context=False, include_input=False):
            name = ".".join(map(str, fault["loc"])).upper()
            faults.append(f"{name}: {fault['msg'].removeprefix('Value error, ')}")
    if faults:
        raise SettingsFault(faults)
    return settings


def _secrets_from_files(given: Mapping[str, str | None]) -> tuple[dict[str, Any], list[str]]:
    """Return the secrets that stand in files, and what is wrong with the others."""
    found: dict[str, Any] = {}
    faults = []
    for name in SECRETS:
        setting = name.upper()
        path = given.get(f"{setting}_FILE")
        if not path:
            continue
        if given.get(setting):
            faults.append(f"{setting}: is set, and {setting}_FILE too; take one out")
            continue
        try:
            found[name] = Path(path).read_text().strip("\r\n")
        except OSError as error:
            faults.append(f"{setting}_FILE: {path} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            faults.append(f"{setting}_FILE: {path} is not text in UTF-8")
        else:
            if not found[name]:
                faults.append(f"{setting}_FILE: {path} is empty")
    return found, faults


def _unknown(names: Iterable[str]) -> Iterator[str]:
    known = {name.upper() for name in Settings.model_fields}
    known |= {f"{name}_file".upper() for name in SECRETS}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "take the line out"
            yield f"{name} is not a setting; {hint}"
