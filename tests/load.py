"""A load that does not wait for answers to ask again: many connections, each with its own pace."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    """What came, how many seconds after the beginning, and how long after the question."""

    status: int
    at: float
    took: float


class Load:
    """Posts without a body to one address. Cheaper than any client library, which matters here.

    Attributes:
        answers: In order of arrival.
        retry_after: Every value of this header that came.
    """

    def __init__(self, url: str, path: str, headers: Mapping[str, str]) -> None:
        address = urlsplit(url)
        assert address.port is not None
        self._host, self._port = address.hostname, address.port
        lines = [f"{name}: {value}" for name, value in {"Host": "x", **headers}.items()]
        self._request = "\r\n".join(
            [f"POST {path} HTTP/1.1", *lines, "Content-Length: 0", "", ""]
        ).encode()
        self.answers: list[Answer] = []
        self.retry_after: set[str] = set()

    async def run(self, *, rate: float, connections: int, seconds: float) -> None:
        """Send *rate* requests a second over so many *connections*; each asks one at a time."""
        began, period = time.monotonic(), connections / rate
        async with asyncio.TaskGroup() as tasks:
            for number in range(connections):
                tasks.create_task(self._connection(began, number / rate, period, seconds))

    async def _connection(self, began: float, delay: float, period: float, seconds: float) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        due = began + delay
        while due < began + seconds:
            await asyncio.sleep(due - time.monotonic())
            asked = time.monotonic()
            writer.write(self._request)
            status, headers = self._parsed(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(int(headers["content-length"]))
            now = time.monotonic()
            self.answers.append(Answer(status, at=now - began, took=now - asked))
            if "retry-after" in headers:
                self.retry_after.add(headers["retry-after"])
            due = max(due + period, now)  # late ones are not made up for
        writer.close()

    @staticmethod
    def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
        first, *lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        headers = (line.split(": ", 1) for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, value in headers}
