"""The bounds of a connection before there is a request: how long a head may be, and how late.

uvicorn's fast protocol takes heads of any length and waits for them for ever, so that one client
could fill the memory and a few could hold every connection. What is refused here has not become a
request: it gets a plain status line and no problem document, no name and no line in the log.
"""

import asyncio
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32 * 1024
"""Address and header fields of one request; more than any access token and set of cookies takes."""

MAX_PIPELINED = 8
"""Requests that may wait behind the one being answered; browsers and proxies send none ahead."""

HEAD_SECONDS = 10.0
"""Within this a head must be complete, from the connection or the answer before it on."""


class HttpProtocol(HttpToolsProtocol):
    """Serves one connection: HTTP/1.1 as uvicorn does it, within bounds."""

    head_seconds = HEAD_SECONDS
    _overhead_bytes = 0  # received since the last request ended, bodies taken off
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_expecting_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived; refuse a head, or trailers, that do not come to an end."""
        self._overhead_bytes += len(data)
        super().data_received(data)
        if self._overhead_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is too large or too many wait already."""
        self._stop_expecting_head()
        head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if head_bytes > MAX_HEAD_BYTES or len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise _Refused  # stops the parser; what uvicorn then writes is dropped
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body, which the door bounds."""
        self._overhead_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request and count from nothing again."""
        self._overhead_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the next head, unless the request it belongs to is here already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._expect_head()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: an offer to upgrade may be ignored, RFC 9110 section 7.8."""

    def _expect_head(self) -> None:
        self._stop_expecting_head()
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_overdue)

    def _stop_expecting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        if self._overhead_bytes > 0:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()  # it has not begun: there is nothing to answer

    def _refuse(self, status: HTTPStatus) -> None:
        head = (
            f"HTTP/1.1 {status} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode())
        self.transport.close()


class _Refused(Exception):
    """The request was answered while its head was parsed."""
