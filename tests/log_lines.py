"""Reads the log as a log collector would: line by line, each one JSON object."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from app.base.logs import configure_logging


class LogLines:
    """What has been written so far."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        return self.all[-1]

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.all if line["event"] == "request"]


@contextmanager
def captured_log(level: str = "debug") -> Iterator[LogLines]:
    """Send the log of this process into memory, and undo that afterwards."""
    root = logging.getLogger()
    handlers, root_level = root.handlers, root.level
    stream = io.StringIO()
    configure_logging(level, stream=stream)
    try:
        yield LogLines(stream)
    finally:
        root.handlers = handlers
        root.setLevel(root_level)
        structlog.reset_defaults()
