"""Access tokens of external issuers: taken when everything about them is as it was configured.

What a stranger wrote is parsed here before its signature is checked, because `iss` decides who
checks it: within bounds, strictly, and nothing of it is believed until then.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

import structlog

from app.base.clock import Clock
from app.base.errors import InsufficientScope, InvalidToken
from app.base.ids import is_id
from app.identity.issuer_settings import Issuer
from app.identity.issuers import Issuers
from app.identity.jose import Json, from_base64url, json_object
from app.identity.users import Role

MAX_TOKEN_LENGTH = 8192
MAX_HEADER_LENGTH = 1024

_ELSEWHERE = "Get a new one where you signed in, from your identity provider."
_NOT_GOOD = f"The access token is not valid. {_ELSEWHERE}"
_EXPIRED = f"The access token has expired. {_ELSEWHERE}"
_SHARED_SECRET = (
    "The access token is signed with a shared secret (HS256), which is never taken."
    " Let the identity provider sign with RS256 or ES256."
)

# Members of a header that say how to read or where to find things. We would heed none of them.
_NOT_HEEDED = frozenset({"crit", "b64", "zip", "enc", "jku", "jwk", "x5u", "x5c", "p2c", "p2s"})

_ACCESS_TOKEN_TYPES = (None, "at+jwt", "application/at+jwt", "jwt")
"""Of the header, in lower case. Most issuers write `JWT` for whatever they sign."""

# Of an ID token (OpenID Connect Core 3.1.3.6, 3.3.2.11), of a logout token or security event (RFC
# 8417), of a token that is good only with the proof of a key (RFC 7800), which we do not ask for.
_NOT_A_BEARER_TOKEN = frozenset({"at_hash", "c_hash", "s_hash", "events", "cnf"})

_SUBJECT = re.compile(r"[ -~]{1,255}")
_JTI = re.compile(r"[!-~]{1,128}")
_LATEST = 2**53  # a time, in seconds, that every JSON reader holds exactly


@dataclass(frozen=True, slots=True)
class ExternalClaims:
    """What a verified token of an external issuer says."""

    issuer: str
    subject: str
    """1 to 255 printable ASCII characters."""

    role: Role
    credential: str
    """The token's `jti`, or the beginning of its digest: names it in the log, and is no secret."""


class _Refused(Exception):
    """The token is not good: the reason for the log, and what the caller is told."""

    def __init__(self, reason: str, detail: str = _NOT_GOOD) -> None:
        self.detail = detail
        super().__init__(reason)


class ExternalTokens:
    """Verifies access tokens of the configured issuers."""

    def __init__(self, issuers: Issuers, *, clock: Clock) -> None:
        self._issuers = issuers
        self._clock = clock
        self._logger = structlog.get_logger(__name__)

    async def verify(self, token: str) -> ExternalClaims:
        """Return what *token* says, if one of the issuers signed it for us and it is still good.

        Args:
            token: Anything a stranger may have sent.

        Raises:
            InvalidToken: It is not good. The caller learns whether it has expired or is signed with
                a shared secret; the server's log says more.
            InsufficientScope: It is good, but its claims give no role.
            IssuerUnavailable: The issuer's keys are not there to decide.
        """
        try:
            header, claims, signing_input, signature = _read(token)
            issuer = self._issuers.configured(claims.get("iss"))
        except ValueError:
            issuer = None
        if issuer is None:
            raise InvalidToken
        try:
            kid = _key_id(header, issuer)
            key = await self._issuers.key(issuer, kid)
            # The key knows its algorithm; that the header says the same is only for show.
            if key is None or key.algorithm != header["alg"]:
                _refuse("no such key")
            if not key.verifies(signing_input, signature):
                _refuse("wrong signature")
            self._check_time(claims, issuer)
            _check_claims(claims, issuer)
            subject = claims.get(issuer.subject)
            if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
                _refuse(f"{issuer.subject} is not 1 to 255 printable ASCII characters")
        except _Refused as refused:
            self._logger.info("external_token_refused", issuer=issuer.issuer, reason=str(refused))
            problem = InvalidToken(refused.detail)
        else:
            role = "user" if issuer.roles is None else issuer.roles.role_of(claims)
            if role is None:
                raise InsufficientScope("mint")
            return ExternalClaims(issuer.issuer, subject, role, _name_of(token, claims))
        raise problem

    def _check_time(self, claims: Json, issuer: Issuer) -> None:
        now, leeway = int(self._clock().timestamp()), issuer.leeway_seconds
        iat, exp = claims.get("iat"), claims.get("exp")
        nbf = claims.get("nbf", iat)
        if not (_is_time(iat) and _is_time(exp) and _is_time(nbf)):
            _refuse("iat, exp or nbf is no time in whole seconds")
        if max(iat, nbf) > now + leeway:
            _refuse("iat or nbf is in the future; compare the clocks")
        if exp <= now - leeway:
            _refuse("exp is past", _EXPIRED)
        if iat < now - issuer.max_age_seconds - leeway:
            _refuse("iat is longer ago than max_age_seconds", _EXPIRED)


def _read(token: str) -> tuple[Json, Json, str, bytes]:
    """Return header, claims, what was signed, and the signature.

    Raises:
        ValueError: *token* is no JWS in its one compact spelling, with JSON objects inside.
    """
    if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
        raise ValueError("too long, or not ASCII")
    header, payload, signature = token.split(".")
    if len(header) > MAX_HEADER_LENGTH:
        raise ValueError("the header is too long")
    read_header, claims = (json_object(from_base64url(part)) for part in (header, payload))
    return read_header, claims, f"{header}.{payload}", from_base64url(signature)


def _key_id(header: Json, issuer: Issuer) -> str:
    """Return the `kid` of *header*, if the rest of it is that of an access token of *issuer*."""
    algorithm, typ, kid = header.get("alg"), header.get("typ"), header.get("kid")
    if algorithm not in issuer.algorithms:
        symmetric = isinstance(algorithm, str) and algorithm.startswith("HS")
        _refuse("alg is not of this issuer", _SHARED_SECRET if symmetric else _NOT_GOOD)
    if _NOT_HEEDED & header.keys():
        _refuse("the header has members that would change how it is read")
    if (typ.lower() if isinstance(typ, str) else typ) not in _ACCESS_TOKEN_TYPES:
        _refuse("typ is not that of an access token")
    if not isinstance(kid, str):
        _refuse("the header names no key")
    return kid


def _check_claims(claims: Json, issuer: Issuer) -> None:
    if _NOT_A_BEARER_TOKEN & claims.keys():
        _refuse("it is an ID token, a logout token, or bound to a key")
    _check_audience(claims, issuer)
    for name, wanted in issuer.require.items():
        if not _is_one_of(claims, name, wanted):
            _refuse(f"{name} is not as required")
    for name, unwanted in issuer.refuse.items():
        if _is_one_of(claims, name, unwanted):
            _refuse(f"{name} is one of those that are refused")


def _check_audience(claims: Json, issuer: Issuer) -> None:
    aud = claims.get("aud", [])
    audiences = [aud] if isinstance(aud, str) else aud
    if not isinstance(audiences, list) or not all(isinstance(one, str) for one in audiences):
        _refuse("aud is neither a text nor a list of texts")
    if issuer.audiences is None:
        if audiences:
            _refuse("it has an aud, and audiences is not set")
    elif not set(issuer.audiences).intersection(audiences):
        _refuse("aud has none of the audiences")
    if issuer.azp is not None and claims.get("azp") not in issuer.azp:
        _refuse("azp is not one of those that are set")


def _is_one_of(claims: Mapping[str, Any], name: str, values: object) -> bool:
    wanted = values if isinstance(values, list) else [values]
    # By type too: 0 is False to Python, and not to JSON.
    return any(type(claims.get(name)) is type(value) and claims[name] == value for value in wanted)


def _is_time(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _LATEST  # True is an int to Python


def _name_of(token: str, claims: Json) -> str:
    jti = claims.get("jti")
    # One that looks like a service key of ours would put the token's acts down to that key.
    if isinstance(jti, str) and _JTI.fullmatch(jti) and not is_id(jti, "key"):
        return jti
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()[:32]}"


def _refuse(reason: str, detail: str = _NOT_GOOD) -> NoReturn:
    raise _Refused(reason, detail)
