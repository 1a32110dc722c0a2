"""Issuers as an operator writes them: presets, a file, and a line for each fault."""

from pathlib import Path
from typing import Any

import pytest

from app.identity.issuer_settings import Issuer, read_issuers
from app.settings import Settings, SettingsFault
from tests.oidc_provider import in_toml

GOOD: dict[str, Any] = {"issuer": "https://login.example.com/", "audiences": ["realtime"]}


def issuers_of(*presets: str, **settings: Any) -> tuple[Issuer, ...]:
    return read_issuers(Settings(_env_file=None, issuers=presets, **settings))


def faults_of(*presets: str, **settings: Any) -> list[str]:
    with pytest.raises(SettingsFault) as caught:
        issuers_of(*presets, **settings)
    return caught.value.faults


def test_nothing_set_means_nobody_else() -> None:
    assert issuers_of() == ()


@pytest.mark.parametrize(
    ("preset", "issuer", "jwks_uri", "rest"),
    [
        (
            "supabase:abcdefghijklmnopqrst",
            "https://abcdefghijklmnopqrst.supabase.co/auth/v1",
            "https://abcdefghijklmnopqrst.supabase.co/auth/v1/.well-known/jwks.json",
            {"audiences": ["authenticated"], "algorithms": ["ES256", "RS256"]},
        ),
        (
            "auth0:shop.eu.auth0.com:https://api.example.com/",
            "https://shop.eu.auth0.com/",
            "https://shop.eu.auth0.com/.well-known/jwks.json",
            {"audiences": ["https://api.example.com/"], "algorithms": ["RS256"]},
        ),
        (
            "keycloak:https://sso.example.com:8443/auth:shop:realtime",
            "https://sso.example.com:8443/auth/realms/shop",
            "https://sso.example.com:8443/auth/realms/shop/protocol/openid-connect/certs",
            {"audiences": ["realtime"], "algorithms": ["RS256", "ES256"]},
        ),
        (
            "clerk:clerk.example.com:https://app.example.com,http://localhost:5173",
            "https://clerk.example.com",
            "https://clerk.example.com/.well-known/jwks.json",
            {"azp": ["https://app.example.com", "http://localhost:5173"], "audiences": None},
        ),
    ],
)
def test_a_preset_is_a_whole_issuer(
    preset: str, issuer: str, jwks_uri: str, rest: dict[str, Any]
) -> None:
    [read] = issuers_of(preset)

    assert (read.issuer, read.jwks_uri) == (issuer, jwks_uri)
    assert {name: getattr(read, name) for name in rest} == rest
    assert (read.leeway_seconds, read.max_age_seconds, read.roles) == (30, 86_400, None)


@pytest.mark.parametrize(
    "preset",
    [
        "supabase:",
        "supabase",
        "supabase:https://abc.supabase.co",
        "supabase:a/b",
        "auth0:shop.eu.auth0.com",
        "auth0:shop.eu.auth0.com:",
        "auth0:https://shop.eu.auth0.com:x",
        "keycloak:sso.example.com:shop:realtime",
        "keycloak:https://sso.example.com:shop",
        "keycloak:https://sso.example.com?a=b:shop:realtime",
        "keycloak:https://user@sso.example.com:shop:realtime",
        "clerk:clerk.example.com",
        "clerk:clerk.example.com:app.example.com",
        "clerk:clerk.example.com:https://app.example.com/",
        "clerk:clerk.example.com:https://app.example.com,",
    ],
)
def test_a_preset_that_is_not_complete_is_refused_with_its_form(preset: str) -> None:
    [fault] = faults_of(preset)

    kind = preset.partition(":")[0]
    assert fault.startswith(f"ISSUERS: {preset}: must have the form {kind}:")


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    [fault] = faults_of("okta:x")

    assert "there are supabase, auth0, keycloak, clerk; others are for ISSUERS_FILE" in fault


def test_every_fault_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "issuers.toml"
    path.write_text(in_toml([{"issuer": "x"}, {"isuer": "https://login.example.com"}]))

    faults = faults_of("okta:x", "auth0:x", issuers_file=path)

    assert len(faults) == 5
    assert f"{path}: issuers[1].issuer: Field required" in faults


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"issuer": "login.example.com"}, ".issuer: must be an address such as https://"),
        ({"issuer": "https://login.example.com/?a=b"}, ".issuer: must be a plain address"),
        ({"issuer": "https://login.example.com/ö"}, ".issuer: must be a plain address"),
        ({"issuer": "https://[::1"}, ".issuer: "),
        ({"issuer": "https://x.example:0/"}, ".issuer: must be an address"),
        ({"issuer": "https://x.example:99999/"}, ".issuer: "),
        ({"issuer": "https://x.example/" + "a" * 250}, ".issuer: String should have at most 255"),
        ({"issuer": "http://login.example.com/"}, ": http://login.example.com/ must be https://"),
        ({"issuer": "https://192.168.0.7/"}, "is a private address; set ALLOW_PRIVATE_ISSUERS"),
        ({"jwks_uri": "https://[fd00::1]/keys"}, "is a private address; set ALLOW_PRIVATE_ISSUE"),
        ({"jwks_uri": "http://keys.example.com/"}, "keys.example.com/ must be https://"),
        ({"algorithms": ["HS256"]}, ".algorithms[0]: must be 'RS256' or 'ES256'"),
        ({"algorithms": ["none"]}, ".algorithms[0]: must be 'RS256' or 'ES256'"),
        ({"algorithms": []}, ".algorithms: List should have at least 1 item"),
        ({"audiences": []}, ".audiences: List should have at least 1 item"),
        ({"audiences": [""]}, ".audiences[0]: String should have at least 1 character"),
        ({"audiences": "realtime"}, ".audiences: must be a valid list"),
        ({"audiences": None}, ": needs audiences or azp"),
        ({"leeway_seconds": 301}, ".leeway_seconds: must be less than or equal to 300"),
        ({"max_age_seconds": "1h"}, ".max_age_seconds: must be a valid integer"),
        ({"require": {"role": []}}, ".require.role"),
        ({"roles": {"admin": ["x"]}}, ".roles.claim: Field required"),
        ({"roles": {"claim": ["user_metadata", "role"]}}, ".roles.claim: user_metadata is written"),
        ({"roles": {"claim": ["unsafe_metadata"]}}, ".roles.claim: unsafe_metadata is written by"),
        ({"roles": {"claim": ["x"], "root": ["x"]}}, ".roles.root: is not known; known are claim"),
        ({"client_secret": "canary"}, ".client_secret: is not known; known are issuer, jwks_uri"),
        ({"issuer": "https://tokens.example.com"}, "is this service itself, or is named twice"),
    ],
)
def test_a_faulty_table_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "issuers.toml"
    table = {name: value for name, value in (GOOD | change).items() if value is not None}
    path.write_text(in_toml([table]))

    faults = faults_of(issuers_file=path, public_url="https://tokens.example.com")

    assert all(fault.startswith(f"{path}: issuers[0]") for fault in faults)
    assert any(said in fault for fault in faults)
    assert "canary" not in str(faults)


def test_an_issuer_stands_once(tmp_path: Path) -> None:
    path = tmp_path / "issuers.toml"
    path.write_text(in_toml([GOOD, GOOD]))

    [fault] = faults_of(issuers_file=path)

    assert fault.startswith(f"{path}: issuers[1]: https://login.example.com/ is this service")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[[issuers]", "is not TOML"),
        (b"\xff", "is not UTF-8 text"),
        (b'issuers = "x"', "must be a list of tables"),
        (b"issuers = [1]", "issuers[0]: must be a valid dictionary"),
        (b'[issuer]\nissuer = "x"', "'issuer': stands outside"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "issuers.toml"
    path.write_bytes(text)

    assert said in "\n".join(faults_of(issuers_file=path))
    assert "cannot be read" in faults_of(issuers_file=tmp_path / "none.toml")[0]


def test_a_network_of_ones_own_may_be_allowed() -> None:
    preset = "keycloak:http://sso.internal:shop:realtime"
    assert "must be https://" in faults_of(preset)[0]

    [issuer] = issuers_of(preset, allow_private_issuers=True)

    assert issuer.issuer == "http://sso.internal/realms/shop"


def test_this_machine_is_always_allowed() -> None:
    [issuer] = issuers_of("keycloak:http://localhost:8080:shop:realtime")

    assert issuer.issuer == "http://localhost:8080/realms/shop"


def test_presets_are_separated_by_blanks(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text('ISSUERS="supabase:abc\t auth0:x.example:y "\n')

    settings = Settings(_env_file=env_file)

    assert settings.issuers == ("supabase:abc", "auth0:x.example:y")
