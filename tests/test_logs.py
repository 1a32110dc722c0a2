import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from app.base.logs import MAX_LINE_CHARACTERS, REDACTED, configure_logging
from tests.log_lines import LogLines, captured_log

EK = "ek_0123456789abcdef0123456789abcdef"
JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ1c3JfMSJ9.c2lnbmF0dXJl"
HASH = "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b4dWRWJTmaaJObG"

log = structlog.get_logger("app.testing")


@pytest.fixture
def lines() -> Iterator[LogLines]:
    with captured_log() as lines:
        yield lines


def test_a_line_is_one_json_object_that_says_when_how_bad_what_and_where(lines: LogLines) -> None:
    log.warning("user.sign_in", user="usr_1", ms=1.5, ok=True, nothing=None)

    line = lines.last
    assert list(line)[:3] == ["timestamp", "level", "event"]
    when = datetime.fromisoformat(line.pop("timestamp"))
    assert when.tzinfo == UTC
    assert line == {
        "level": "warning",
        "event": "user.sign_in",
        "logger": "app.testing",
        "user": "usr_1",
        "ms": 1.5,
        "ok": True,
        "nothing": None,
    }


def test_what_is_below_the_level_is_not_written() -> None:
    with captured_log("warning") as lines:
        log.info("quiet")
        logging.getLogger("uvicorn.error").info("quiet")
        log.warning("loud")

        assert [line["event"] for line in lines.all] == ["loud"]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"minted {EK} for ada", EK),
        (f"minted {EK}", EK),
        (f"proto openai-insecure-api-key.{EK}", EK),
        ("minted ek_sandbox_0123456789abcdef0123456789abcdef", "0123456789abcdef"),
        (f"repr '\\n{EK}'", EK),
        (f"/path?next=%20{EK}", EK),
        ("key sk-proj-Abc_12-34xyz is wrong", "Abc_12"),
        ("Incorrect API key provided: sk-proj-********abcd. See", "abcd"),
        ("service key rtk_live_0aB1cD2eF3 used", "0aB1cD2eF3"),
        ("refresh token rtr_0aB1-cD2_eF3 used", "0aB1-cD2_eF3"),
        ("repr b'rtr_0aB1-cD2_eF3'", "0aB1-cD2_eF3"),
        ("Authorization: Bearer opaque-credential-1", "opaque-credential-1"),
        ("authorization: bearer opaque-credential-1", "opaque-credential-1"),
        ("Bearer\tx1", "x1"),
        ("Authorization: Basic YWRhOmh1bnRlcjI=", "YWRhOmh1bnRlcjI"),
        (f"token {JWT} refused", "eyJzdWIi"),
        (f"token {JWT[:40]}", "eyJzdWIi"),
        (f"stored {HASH} for ada", "RdescudvJ"),
        ("cannot reach postgresql://app:hunter2@db/prod", "hunter2"),
        ("cannot reach https://ada:hun@ter2@example.com/", "ter2"),
        ("grant_type=password&password=hunter2&x=1", "hunter2"),
        ("User(email='a@b.c', password='hunter2')", "hunter2"),
        ('{"refresh_token": "hunter2", "x": 1}', "hunter2"),
        ("{'client_secret': b'hunter2'}", "hunter2"),
        ("[(b'cookie', b'hunter2=1')]", "hunter2"),
        ('"{\\"password\\": \\"hunter2\\"}"', "hunter2"),
        ("OPENAI_API_KEY=hunter2", "hunter2"),
    ],
)
def test_a_secret_in_a_text_is_taken_out_wherever_it_stands(
    lines: LogLines, text: str, secret: str
) -> None:
    log.info(text)
    log.info("event", field=text, deep={"list": [text]}, raw=text.encode())
    log.info("event", nested={text: 1})
    logging.getLogger("asyncio").warning("%s", text)

    assert secret not in lines.text
    assert len(lines.all) == 4
    assert lines.text.count(REDACTED) >= 6


@pytest.mark.parametrize(
    "text",
    [
        "week_12 and task-1 and risk-free",
        "POST /realtime/token answered",
        "token_type and secret_fingerprint stay",
        "the token endpoint; password grant",
        "https://api.openai.com/v1/realtime",
        "usr_7ZK3M4N5P6Q7R8S9T0V1W2X3Y4",
    ],
)
def test_a_text_that_only_resembles_a_secret_stays(lines: LogLines, text: str) -> None:
    log.info(text, field=text)

    assert lines.last["event"] == lines.last["field"] == text


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("password", "hunter2", REDACTED),
        ("client_secret", "hunter2", REDACTED),
        ("refreshToken", "hunter2", REDACTED),
        ("Authorization", "hunter2", REDACTED),
        ("set-cookie", "hunter2", REDACTED),
        ("OPENAI_API_KEY", "hunter2", REDACTED),
        ("token", ["hunter2"], REDACTED),
        ("pin_token", 1234, REDACTED),
        ("token", None, None),
        ("has_token", True, True),
        ("token_type", "Bearer", "Bearer"),
        ("expires_in", 60, 60),
        ("secret_fingerprint", "0a1b", "0a1b"),
        ("max_output_tokens", 4096, 4096),
    ],
)
def test_a_field_with_a_secrets_name_is_hidden_whatever_it_holds(
    lines: LogLines, name: str, value: Any, shown: Any
) -> None:
    log.info("event", **{name: value}, deep={"deeper": [{name: value}]})

    assert lines.last[name] == shown
    assert lines.last["deep"] == {"deeper": [{name: shown}]}


def test_a_secret_in_a_traceback_is_taken_out_and_the_rest_stays(lines: LogLines) -> None:
    def fail() -> None:
        raise RuntimeError(f"OpenAI gave {EK}")

    try:
        fail()
    except RuntimeError:
        log.exception("failed")
        logging.getLogger("sqlalchemy").exception("failed")

    assert EK not in lines.text
    for line in lines.all:
        assert line["level"] == "error"
        assert line["exception"].startswith("Traceback (most recent call last)")
        assert line["exception"].endswith(f"RuntimeError: OpenAI gave {REDACTED}")


def test_a_secret_setting_stays_masked(lines: LogLines) -> None:
    log.info("settings", key=SecretStr("hunter2"), all={"x": SecretStr("hunter2")})

    assert "hunter2" not in lines.text


class Broken:
    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    "value",
    [
        Broken(),
        [Broken()],
        {"x": Broken()},
        {Broken(): 1},
        float("nan"),
        float("-inf"),
        10**5000,
        "\ud800 lone surrogate",
        b"\xff\xfe",
        {1, 2},
        datetime.now(UTC),
        ValueError("x"),
        object,
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_makes_logging_fail(lines: LogLines, value: Any) -> None:
    log.info("event", value=value)

    assert lines.last["event"] == "event"
    assert "value" in lines.last


def test_a_value_that_cannot_be_read_is_named_by_its_type(lines: LogLines) -> None:
    log.info("event", value=Broken())

    assert lines.last["value"] == "<Broken>"


def test_a_value_that_holds_itself_ends(lines: LogLines) -> None:
    circle: dict[str, Any] = {"name": "circle"}
    circle["self"] = circle

    log.info("event", value=circle)

    assert lines.last["value"]["self"]["self"]["name"] == "circle"


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * 1_000_000},
        {"text": "\x00" * 1_000_000},
        {"text": "é" * 20_000},
        {f"field_{n}": "y" * 5_000 for n in range(40)},
        {"list": [["z" * 100] * 200] * 200},
    ],
    ids=["long", "escaped", "beyond ASCII", "many", "nested"],
)
def test_a_line_is_never_longer_than_the_limit(lines: LogLines, fields: dict[str, Any]) -> None:
    log.info("event", **fields, short="stays")

    assert len(lines.text.encode()) <= MAX_LINE_CHARACTERS + 1
    assert lines.last["event"] == "event"
    assert lines.last["short"] == "stays"


def test_of_countless_short_fields_the_first_stay(lines: LogLines) -> None:
    log.info("event", **{f"field_{number}": number for number in range(3_000)})

    assert len(lines.text) <= MAX_LINE_CHARACTERS + 1
    assert lines.last["event"] == "event"
    assert lines.last["field_0"] == 0


def test_of_a_long_text_both_ends_stay_and_no_half_secret(lines: LogLines) -> None:
    long = "start " + f"{EK} " * 3_000 + "end"

    log.info("event", text=long)

    assert lines.last["text"].startswith("start ")
    assert lines.last["text"].endswith(" end")
    assert EK[-8:] not in lines.text


def test_a_newline_cannot_forge_a_second_line(lines: LogLines) -> None:
    log.info('x\n{"level": "info", "event": "forged"}', path="/a\r\n\u2028b")

    assert lines.text.count("\n") == 1
    assert "\u2028" not in lines.text


def test_libraries_write_through_the_same_door(lines: LogLines) -> None:
    logging.getLogger("uvicorn.error").info("Started on %s", "here")

    assert lines.last["event"] == "Started on here"
    assert lines.last["logger"] == "uvicorn.error"
    assert lines.last["level"] == "info"


def test_a_librarys_unusual_level_is_rounded_down(lines: LogLines) -> None:
    logging.getLogger("some.library").log(35, "odd")

    assert lines.last["level"] == "warning"


def test_a_librarys_wrong_arguments_do_not_crash_and_do_not_leak(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with captured_log() as lines:  # here, so that pytest's own handler is out of the way
        logging.getLogger("asyncio").warning("%d files", EK)

    assert lines.last["event"] == "%d files (arguments do not fit: TypeError)"
    assert EK not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["uvicorn.access", "httpx", "httpx2"])
def test_talkative_libraries_are_silent(lines: LogLines, name: str) -> None:
    logging.getLogger(name).info("GET /?token=x")

    assert lines.text == ""


def test_a_librarys_debug_lines_are_not_written_even_at_debug(lines: LogLines) -> None:
    logging.getLogger("some.library").debug("headers …")
    log.debug("ours")

    assert [line["event"] for line in lines.all] == ["ours"]


async def test_what_is_bound_to_a_task_is_in_its_lines_and_in_no_others(lines: LogLines) -> None:
    async def serve(name: str) -> None:
        with structlog.contextvars.bound_contextvars(request_id=name):
            await asyncio.sleep(0)
            log.info("ours")
            logging.getLogger("asyncio").info("theirs")

    await asyncio.gather(serve("a"), serve("b"))
    log.info("outside")

    ids = [line.get("request_id", "none") for line in lines.all]
    assert sorted(ids) == ["a", "a", "b", "b", "none"]
    assert "request_id" not in lines.last


class Gone(io.StringIO):
    """A pipe whose reader has closed it."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_went_away_takes_no_request_down(lines: LogLines) -> None:
    configure_logging("info", stream=Gone())

    log.info("event")
    logging.getLogger("asyncio").info("event")

    assert lines.text == ""


def test_configuring_twice_does_not_double_the_lines(lines: LogLines) -> None:
    stream = io.StringIO()
    configure_logging("info", stream=stream)

    logging.getLogger("asyncio").info("once")

    assert json.loads(stream.getvalue())["event"] == "once"
    assert lines.text == ""
