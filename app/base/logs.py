"""Logs: one JSON object per line on stdout, with everything secret taken out.

Our own code and the libraries that log through the standard library share one chain, so nothing
reaches the stream unredacted. Logging never fails a request: what cannot be read is named by its
type, and a stream that is gone is ignored (the audit log is the record that must not be lost).

Other modules need only this::

    log = structlog.get_logger(__name__)
    log.info("client_secret.mint", attempt_id=attempt.id, model=session.model)
"""

import json
import logging
import math
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import islice
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

REDACTED = "[redacted]"

MAX_LINE_CHARACTERS = 16 * 1024
"""Length of the longest line. Lines are ASCII, so this is bytes too."""

_MAX_STRING_CHARACTERS = MAX_LINE_CHARACTERS  # more would be cut anyway, after costly reading
_MAX_ITEMS = 100
_MAX_DEPTH = 6
_MAX_INTEGER_BITS = 256  # Python refuses to write integers of more than 4,300 digits
_MAX_NAME_CHARACTERS = 64
_SHORT_CHARACTERS = 64  # too few to cut further

_SECRET = re.compile(
    r"""
    # Keys and client secrets, OpenAI's (masked ones too) and ours. They do not continue a word
    # (week_1, task-1), but they may follow an escape of repr() or of a URL (\nek_…, %20ek_…).
      (?: (?<![A-Za-z0-9]) | (?<=\\[nrt]) | (?<=%[0-9A-Fa-f]{2}) ) (?: ek_|sk-|rt[ckrs]_ ) [\w*-]+
    # JWTs, whole or cut short: base64url of a JSON object starts so.
    | eyJ [\w-]{8,} (?: \. [\w-]* )*
    # Password hashes.
    | \$argon2 [^\s"']+
    # Authorization headers. Lower case also occurs in prose, so there the credential must be long.
    | Bearer \s+ [^\s"',]+
    | (?i: bearer | basic ) \s+ [\w.~+/=-]{8,}
    # user:password@ in a URL.
    | (?<= :// ) [^\s/"']+ @
    # password=… in a form, URL or repr; "password": "…" in JSON; ('password', '…') in headers.
    | (?i: (?<= password ) | (?<= secret ) | (?<= token ) | (?<= authorization ) | (?<= cookie )
         | (?<= api_key ) | (?<= api-key ) | (?<= apikey ) )
      (?: = [bu]? ["']? [^\s"'&;,)]+ | \\? ["'] \s* [:,] \s* [bu]? \\? ["'] [^"'\\]+ )
    """,
    re.VERBOSE,
)

_SECRET_NAMES = (
    "password",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "credential",
    "apikey",
    "privatekey",
)

_TALKATIVE = (
    "alembic",  # says at each look at the database that it has looked
    "httpx",  # with httpx2 logs the URL of every request
    "httpx2",
)


def configure_logging(level: str, *, stream: TextIO | None = None) -> None:
    """Send the logs of this process, ours and the libraries', to *stream* as JSON lines.

    May be called again, for another level or stream.

    Args:
        level: Least severity that is logged: ``debug``, ``info``, ``warning`` or ``error``.
            Libraries stay at ``info``: their ``debug`` shows headers and bodies.
        stream: Where the lines go; standard output when left out.
    """
    output = stream or sys.stdout
    lock = threading.Lock()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda name="app": _Logger(name, output, lock),
        cache_logger_on_first_use=False,  # a cached one would keep the stream of an earlier call
    )

    root = logging.getLogger()
    root.handlers = [_LibraryRecords()]  # any other would write secrets in the open
    root.setLevel(max(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    # The door writes the line per request; without a handler uvicorn does not even format its own.
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False


def redact(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Return *event_dict* as plain JSON values without secrets. Never raises."""
    return {name: _field(name, value, 0) for name, value in event_dict.items()}


class _Logger:
    """Writes finished lines, one at a time, from any thread."""

    def __init__(self, name: str, stream: TextIO, lock: threading.Lock) -> None:
        self.name = name
        self._stream = stream
        self._lock = lock

    def _write(self, line: str) -> None:
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads us any more, or the disk is full; there is no place to say it

    debug = info = warning = error = critical = _write


class _LibraryRecords(logging.Handler):
    """Hands the records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except Exception as error:  # noqa: BLE001 - a library's wrong arguments are not our crash
            event = f"{record.msg} (arguments do not fit: {type(error).__name__})"
        known_level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        log = structlog.get_logger(record.name)
        log.log(known_level, event, **({"exc_info": record.exc_info} if record.exc_info else {}))


def _plain(value: Any, depth: int) -> Any:  # noqa: PLR0911 - one for each kind of value
    """Return *value* as JSON can hold it, cleaned and bounded; what cannot be read, by its type."""
    try:
        match value:
            case str():
                return _clean(value)
            case None | bool():
                return value
            case int() if value.bit_length() <= _MAX_INTEGER_BITS:
                return value
            case float() if math.isfinite(value):
                return value
            case bytes() | bytearray():
                return _clean(value.decode("utf-8", "backslashreplace"))
            case Mapping() | Sequence() | AbstractSet() if depth == _MAX_DEPTH:
                return "…"
            case Mapping():
                return {
                    _clean(str(name)): _field(str(name), item, depth + 1)
                    for name, item in islice(value.items(), _MAX_ITEMS)
                }
            case Sequence() | AbstractSet():
                return [_plain(item, depth + 1) for item in islice(value, _MAX_ITEMS)]
            case _:
                return _clean(str(value))
    except Exception:  # noqa: BLE001 - a broken __str__ must not take the request down
        return f"<{type(value).__name__}>"


def _field(name: str, value: Any, depth: int) -> Any:
    """Return the field's value; a secret's name is enough to hide it, whatever it looks like."""
    if _is_secret_name(name) and value is not None and not isinstance(value, bool):
        return REDACTED
    if type(value) is str:  # most are, and finding that out below takes longer
        return _clean(value)
    return _plain(value, depth)


@lru_cache(maxsize=1024)
def _is_secret_name(name: str) -> bool:
    """Tell it by the name's end: ``client_secret``, not ``secret_fingerprint``."""
    plain = name[-_MAX_NAME_CHARACTERS:].lower().replace("_", "").replace("-", "")
    return plain.endswith(_SECRET_NAMES)


def _clean(text: str) -> str:
    """Return *text* without secrets; of a very long one, both ends."""
    if len(text) > _MAX_STRING_CHARACTERS:
        half = _MAX_STRING_CHARACTERS // 2
        # The end begins with a whole word: half a secret would not be known as one.
        text = " … ".join([text[:half], *text[-half:].split(maxsplit=1)[1:]])
    return text if _is_harmless(text) else _SECRET.sub(REDACTED, text)


def _is_harmless(text: str) -> bool:
    """Tell quickly that nothing in *text* can match ``_SECRET``. Most fields are that short."""
    return text.isalnum() or not (
        "ek_" in text
        or "sk-" in text
        or "rtk_" in text
        or "rtr_" in text
        or "rts_" in text
        or "rtc_" in text
        or "eyJ" in text
        or "$argon2" in text
        or "://" in text
        or "=" in text
        or '"' in text
        or "'" in text
        or " " in text  # Bearer …
        or not text.isprintable()  # the same with a tab
    )


def _render(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> str:
    """Return the line: when, how bad and what come first; too long fields lose their middle."""
    event = {name: event_dict.pop(name, "") for name in ("timestamp", "level", "event")}
    event |= islice(event_dict.items(), _MAX_ITEMS)
    line = json.dumps(event)
    while len(line) > MAX_LINE_CHARACTERS:
        lengths = {name: len(json.dumps(value)) for name, value in event.items()}
        longest = max(lengths, key=lengths.__getitem__)
        if lengths[longest] <= _SHORT_CHARACTERS:
            break  # a hundred short fields are no longer than this, unless their names are
        event[longest] = _without_middle(event[longest])
        line = json.dumps(event)
    return line


def _without_middle(value: Any) -> str:
    """Halve *value*. Both ends stay: a traceback says at its end what went wrong."""
    text = value if isinstance(value, str) else json.dumps(value)
    quarter = len(text) // 4
    return f"{text[:quarter]} … {text[-quarter:]}"
