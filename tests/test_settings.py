from pathlib import Path

import pytest

from app.base.keys import SecretFault, derive_key, read_or_make_secret
from app.settings import Settings, SettingsFault, read_settings


def settings_from(tmp_path: Path, *lines: str) -> Settings:
    """Read the settings from a ``.env`` of these lines."""
    env_file = tmp_path / ".env"
    env_file.write_text("\n".join(lines) + "\n")
    return read_settings(env_file)


def test_nothing_set_means_sandbox_on_loopback(tmp_path: Path) -> None:
    settings = settings_from(tmp_path)

    assert settings.environment == "sandbox"
    assert settings.public_url == "http://127.0.0.1:8000"
    assert settings.database_path == Path("var/sandbox.db")


def test_a_key_means_live_and_another_database(tmp_path: Path) -> None:
    settings = settings_from(tmp_path, "OPENAI_API_KEY=sk-x", "PORT=9000")

    assert settings.environment == "live"
    assert settings.database_path == Path("var/service.db")
    assert settings.public_url == "http://127.0.0.1:9000"


def test_an_empty_key_is_no_key(tmp_path: Path) -> None:
    assert settings_from(tmp_path, "OPENAI_API_KEY=").environment == "sandbox"


def test_lists_are_separated_by_commas(tmp_path: Path) -> None:
    settings = settings_from(
        tmp_path,
        "CORS_ORIGINS=https://a.example, https://b.example:8443",
        "TRUSTED_PROXIES=10.0.0.0/8,::1/128",
    )

    assert settings.cors_origins == ("https://a.example", "https://b.example:8443")
    assert [str(network) for network in settings.trusted_proxies] == ["10.0.0.0/8", "::1/128"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('OPENAI_API_KEY="sk-canary\n"', "OPENAI_API_KEY: holds a space, newline or control"),
        ('OPENAI_API_KEY="sk-canary "', "OPENAI_API_KEY: holds a space, newline or control"),
        ("OPENAI_API_KEY=sk-canarü", "OPENAI_API_KEY: holds a character outside ASCII"),
        ("SECRET_KEY=canary", "SECRET_KEY: needs at least 32 characters"),
        ("OPENAI_BASE_URL=api.openai.com/v1", "OPENAI_BASE_URL: must start with https://"),
        ("OPENAI_BASE_URL=https://u:canary@x.example/v1", "OPENAI_BASE_URL: must not carry a user"),
        ("PUBLIC_URL=https://x.example/?a=b", "PUBLIC_URL: must be a plain address"),
        ("PORT=http", "PORT: Input should be a valid integer"),
        ("PORT=0", "PORT: Input should be greater than or equal to 1"),
        ("CORS_ORIGINS=*", "CORS_ORIGINS: '*' is not an exact origin"),
        ("CORS_ORIGINS=https://a.example/", "CORS_ORIGINS: 'https://a.example/' is not an exact"),
        ("CORS_ORIGINS=https://App.example", "is not as browsers send it"),
        ("CORS_ORIGINS=https://a.example:443", "is not as browsers send it"),
        ("PUBLIC_URL=https://", "PUBLIC_URL: must name a host"),
        ("PUBLIC_URL=https:///path", "PUBLIC_URL: must name a host"),
        ("PUBLIC_URL=http://[::1", "PUBLIC_URL: must name a host"),
        ("PUBLIC_URL=https://x.example:99999", "PUBLIC_URL: must name a host, and a port"),
        ("OPENAI_BASE_URL=http://127.0.0.1:abc", "OPENAI_BASE_URL: must name a host, and a port"),
        ("OPENAI_ORG_ID=örg", "OPENAI_ORG_ID: must have ASCII characters"),
        ("OPENAI_PROJECT_ID=a b", "OPENAI_PROJECT_ID: must have ASCII characters"),
        ("TRUSTED_PROXIES=everyone", "TRUSTED_PROXIES: 'everyone' does not appear to be"),
        ("MODEL_POLICY=guess", "MODEL_POLICY: Input should be 'replace' or 'refuse'"),
        ("CLIENT_SECRET_TTL_SECONDS=5", "CLIENT_SECRET_TTL_SECONDS: Input should be greater"),
        ("OPENAI_REALTIME_VOICES=marin", "did you mean OPENAI_REALTIME_VOICE?"),
        ("SOMETHING_ELSE=1", "SOMETHING_ELSE is not a setting; take the line out"),
        ("OPENAI_API_KEY_FILE=/nowhere", "OPENAI_API_KEY_FILE: /nowhere cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named_without_its_secret(
    tmp_path: Path, line: str, said: str
) -> None:
    with pytest.raises(SettingsFault) as caught:
        settings_from(tmp_path, line)

    assert len(caught.value.faults) == 1
    assert said in caught.value.faults[0]
    assert "canar" not in str(caught.value)


def test_every_fault_has_its_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsFault) as caught:
        settings_from(tmp_path, "PORT=x", "MINTING=maybe", "TYPO=1")

    assert len(caught.value.faults) == 3


def test_a_secret_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-a-file\n")

    settings = settings_from(tmp_path, f"OPENAI_API_KEY_FILE={tmp_path / 'key'}")

    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == "sk-from-a-file"


def test_secrets_are_masked_when_settings_are_printed(tmp_path: Path) -> None:
    settings = settings_from(tmp_path, "OPENAI_API_KEY=sk-canary", "SECRET_KEY=" + "canary" * 6)

    assert "canary" not in repr(settings)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:8000"),
        ("192.0.2.1", "http://192.0.2.1:8000"),
    ],
)
def test_the_service_reaches_itself_wherever_it_listens(
    tmp_path: Path, host: str, url: str
) -> None:
    assert settings_from(tmp_path, f"HOST={host}").loopback_url == url


def test_the_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"

    first = read_or_make_secret(path)

    assert read_or_make_secret(path) == first
    assert len(first) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["secret.key"]


def test_a_secret_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_text("short\n")

    with pytest.raises(SecretFault, match="at least 32"):
        read_or_make_secret(tmp_path / "secret.key")


def test_keys_for_different_purposes_have_nothing_in_common() -> None:
    keys = {derive_key(b"s" * 32, purpose) for purpose in ("a", "b", "c")}

    assert len(keys) == 3
    assert derive_key(b"s" * 32, "a") in keys


def test_the_sandbox_keeps_apart_what_it_writes(tmp_path: Path) -> None:
    shared = (f"CHECKPOINT_FILE={tmp_path}/seen.jsonl", f"AUDIT_ARCHIVE_DIR={tmp_path}/old")

    sandbox = settings_from(tmp_path, *shared)
    live = settings_from(tmp_path, *shared, "OPENAI_API_KEY=sk-live")

    assert (live.checkpoint_path, live.archive_path) == (tmp_path / "seen.jsonl", tmp_path / "old")
    assert sandbox.checkpoint_path == tmp_path / "sandbox-seen.jsonl"
    assert sandbox.archive_path == tmp_path / "sandbox-old"
