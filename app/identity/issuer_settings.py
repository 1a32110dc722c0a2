"""Which issuers' tokens are taken, as an operator writes it: presets, or tables of a TOML file.

A fault is one line: where, what is wrong, what to do.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from app.identity.issuer_addresses import address_fault, plain_url
from app.identity.jose import Algorithm
from app.identity.users import Role
from app.settings import Settings, SettingsFault

LONGEST_ISSUER = 255

WRITTEN_BY_USERS = frozenset({"user_metadata", "unsafe_metadata"})
"""Claims of Supabase, Auth0 and Clerk that a user may fill with anything."""

Value: TypeAlias = StrictStr | StrictInt | StrictBool
Values: TypeAlias = Annotated[list[Value], Field(min_length=1)]
Names: TypeAlias = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
Url: TypeAlias = Annotated[str, Field(max_length=LONGEST_ISSUER), AfterValidator(plain_url)]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


class Roles(_Table):
    """Which values of a claim give which role; the highest that fits counts."""

    claim: Names
    """Where the values stand, from the outside in: `["realm_access", "roles"]`."""

    admin: Names | None = None
    auditor: Names | None = None

    user: Names | None = None
    """Left out: whoever has neither of the others is a user."""

    @field_validator("claim")
    @classmethod
    def _not_up_to_users(cls, claim: list[str]) -> list[str]:
        for name in WRITTEN_BY_USERS.intersection(claim):
            raise ValueError(f"{name} is written by the users themselves; name another claim")
        return claim

    def role_of(self, claims: Mapping[str, Any]) -> Role | None:
        """Return the role that *claims* give, None for no role at all.

        The claim is a list of texts, or one text that separates its values by blanks.
        """
        found: Any = claims
        for name in self.claim:
            found = found.get(name) if isinstance(found, dict) else None
        values = found.split() if isinstance(found, str) else found
        if not isinstance(values, list):
            values = []
        ranked: tuple[tuple[Role, Names | None], ...] = (
            ("admin", self.admin),
            ("auditor", self.auditor),
            ("user", self.user),
        )
        for role, wanted in ranked:
            if any(value in values for value in wanted or ()):
                return role
        return "user" if self.user is None else None


class Issuer(_Table):
    """An issuer, and what a token of it must be like. One table of `ISSUERS_FILE`."""

    issuer: Url
    """Exactly what its tokens have as `iss`."""

    jwks_uri: Url | None = None
    """Where its keys are. Left out: asked from `/.well-known/openid-configuration` below it."""

    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = ["RS256"]
    """What its tokens are signed with."""

    audiences: Names | None = None
    """One of them must be in `aud`. Left out, a token with `aud` is for somebody else."""

    azp: Names | None = None
    """What `azp` must be, if given: the client, or with Clerk the origin, the token is for."""

    require: Mapping[str, Value | Values] = {}
    """Claims that must be there, with the value or one of the values."""

    refuse: Mapping[str, Value | Values] = {}
    """Claims that must not have the value or one of the values."""

    subject: str = "sub"
    """The claim that tells users apart, for good."""

    roles: Roles | None = None
    """Left out: everybody has the role `user`."""

    leeway_seconds: Annotated[int, Field(ge=0, le=300)] = 30
    """How far its clock may be off."""

    max_age_seconds: Annotated[int, Field(ge=60, le=604_800)] = 86_400
    """How long ago a token may have been issued, whatever its `exp`."""

    @model_validator(mode="after")
    def _somebody_it_is_for(self) -> Self:
        if self.audiences is None and self.azp is None:
            raise ValueError("needs audiences or azp, or tokens for anybody would be taken")
        return self


Read: TypeAlias = tuple[list[tuple[str, Issuer]], list[str]]
"""Issuers, each with the place where it stands, and one line for each fault."""


def read_issuers(settings: Settings) -> tuple[Issuer, ...]:
    """Return every issuer that the settings name.

    Raises:
        SettingsFault: With one line per fault.
    """
    placed, faults = _read_presets(settings.issuers)
    if settings.issuers_file:
        more, more_faults = _read_file(settings.issuers_file)
        placed += more
        faults += more_faults
    known = {settings.public_url}
    for place, issuer in placed:
        if issuer.issuer in known:
            faults.append(f"{place}: {issuer.issuer} is this service itself, or is named twice")
        known.add(issuer.issuer)
        for url in filter(None, (issuer.issuer, issuer.jwks_uri)):
            fault = address_fault(url, anywhere=settings.allow_private_issuers)
            faults += [f"{place}: {url} {fault}"] if fault else []
    if faults:
        raise SettingsFault(faults)
    return tuple(issuer for _, issuer in placed)


def _read_file(path: Path) -> Read:
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        return [], [f"{path}: cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return [], [f"{path}: is not UTF-8 text"]
    except tomllib.TOMLDecodeError as error:
        return [], [f"{path}: is not TOML: {error}"]
    tables = data.pop("issuers", [])
    faults = [f"{path}: {key!a}: stands outside; write it below [[issuers]]" for key in data]
    if not isinstance(tables, list):
        return [], [*faults, f"{path}: issuers: must be a list of tables; write [[issuers]]"]
    placed = []
    for index, table in enumerate(tables):
        place = f"{path}: issuers[{index}]"
        try:
            placed.append((place, Issuer.model_validate(table)))
        except ValidationError as error:
            faults += dict.fromkeys(f"{place}{fault}" for fault in _model_faults(error))
    return placed, faults


def _model_faults(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            members = Roles.model_fields if key.startswith(".roles.") else Issuer.model_fields
            yield f"{key}: is not known; known are {', '.join(members)}"
        else:
            text = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            yield f"{key}: {text}"


# Presets --------------------------------------------------------------------------------------


def _read_presets(presets: tuple[str, ...]) -> Read:
    placed, faults = [], []
    for preset in presets:
        kind, _, rest = preset.partition(":")
        place = f"ISSUERS: {preset}"
        if kind not in _PRESETS:
            known = f"there are {', '.join(_PRESETS)}; others are for ISSUERS_FILE"
            faults.append(f"{place}: is no preset; {known}")
            continue
        form, pattern, issuer_of = _PRESETS[kind]
        given = pattern.fullmatch(rest)
        with suppress(ValueError):  # pydantic's are too
            if given is not None:
                placed.append((place, issuer_of(**given.groupdict())))
                continue
        faults.append(f"{place}: must have the form {form}")
    return placed, faults


def _supabase(project: str) -> Issuer:
    issuer = f"https://{project}.supabase.co/auth/v1"
    return Issuer(
        issuer=issuer,
        jwks_uri=f"{issuer}/.well-known/jwks.json",
        algorithms=["ES256", "RS256"],
        audiences=["authenticated"],
        # A project's older API keys are tokens of the same issuer, with other roles.
        require={"role": "authenticated", "is_anonymous": False},
    )


def _auth0(domain: str, audience: str) -> Issuer:
    return Issuer(
        issuer=f"https://{domain}/",
        jwks_uri=f"https://{domain}/.well-known/jwks.json",
        audiences=[audience],
    )


def _keycloak(url: str, realm: str, audience: str) -> Issuer:
    issuer = f"{url.rstrip('/')}/realms/{realm}"
    return Issuer(
        issuer=issuer,
        jwks_uri=f"{issuer}/protocol/openid-connect/certs",
        algorithms=["RS256", "ES256"],
        audiences=[audience],
        require={"typ": "Bearer"},  # its ID and refresh tokens have other values here
    )


def _clerk(domain: str, origins: str) -> Issuer:
    return Issuer(
        issuer=f"https://{domain}",
        jwks_uri=f"https://{domain}/.well-known/jwks.json",
        azp=origins.split(","),
        refuse={"sts": "pending"},  # a session in which the user has something left to do
    )


_DOMAIN = r"(?P<domain>[a-z0-9-]+(\.[a-z0-9-]+)+)"
_ORIGIN = r"[a-z][a-z-]*://[^/,]+"

_PRESETS: dict[str, tuple[str, re.Pattern[str], Callable[..., Issuer]]] = {
    "supabase": ("supabase:PROJECT", re.compile(r"(?P<project>[a-z0-9-]{1,63})"), _supabase),
    "auth0": ("auth0:DOMAIN:AUDIENCE", re.compile(rf"{_DOMAIN}:(?P<audience>.+)"), _auth0),
    "keycloak": (
        "keycloak:URL:REALM:AUDIENCE",
        re.compile(r"(?P<url>https?://.+):(?P<realm>[^:/]+):(?P<audience>[^:]+)"),
        _keycloak,
    ),
    "clerk": (
        "clerk:DOMAIN:ORIGIN[,ORIGIN]",
        re.compile(rf"{_DOMAIN}:(?P<origins>{_ORIGIN}(,{_ORIGIN})*)"),
        _clerk,
    ),
}
