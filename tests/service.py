"""The service as a stranger meets it: a real process, reached over the network."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import until

READY_SECONDS = 60
COMMAND = [sys.executable, "-m", "app"]


def free_port() -> int:
    """Return a port that nobody listens on right now.

    It lies below those that systems give to outgoing connections, of which tests make thousands:
    one of them would have it before the service does.
    """
    while True:
        port = secrets.choice(range(11_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def environment(**settings: Any) -> dict[str, str]:
    """Return what a process gets to see: these settings and nothing of the developer's own."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {name: str(value) for name, value in settings.items()}


def run_command(
    folder: Path, *arguments: str, stdin: str = "", **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Run `realtime-tokens` in *folder* to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(**settings),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass
class Service:
    """A running service, everything it has printed, and a client to reach it."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    settings: dict[str, Any]
    stdout: Path
    stderr: Path

    @property
    def banner(self) -> str:
        return self.stderr.read_text()

    @property
    def curl(self) -> str:
        """The command that the banner offers for pasting."""
        [line] = [line for line in self.banner.splitlines() if line.startswith("curl ")]
        return line

    def password_of(self, email: str) -> str:
        """Return the password that the banner showed."""
        found = re.search(rf"{re.escape(email)} +(\S+)", self.banner)
        assert found, self.banner
        return found[1]

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command beside the service, with its settings."""
        return run_command(self.folder, *arguments, stdin=stdin, **self.settings)

    def sign_in(self, email: str, password: str) -> dict[str, str]:
        """Sign in over HTTP and return the header to send from then on."""
        form = {"grant_type": "password", "username": email, "password": password}
        answer = httpx.post(f"{self.url}/auth/token", data=form)
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}

    def kill(self) -> None:
        """End the process, and its workers if it has any, as a power cut would."""
        pids = [self.process.pid, *children(self.process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=10)
        for pid in pids[1:]:
            wait_until_gone(pid)

    async def workers(self, count: int, *, without: int | None = None) -> list[int]:
        """Wait until so many workers take requests, none of them *without*; return their ids."""
        serving: list[int] = []

        async def complete() -> bool:
            serving[:] = [pid for pid in children(self.process.pid) if self._serves(pid)]
            return len(serving) == count and without not in serving

        await until(complete, seconds=READY_SECONDS)
        return serving

    def _serves(self, pid: int) -> bool:
        """Tell whether the event loop of a process waits for connections, from proc_pid_fdinfo(5).

        The listening socket alone says nothing: a worker has it before it is ready.
        """
        process = Path(f"/proc/{pid}")
        try:
            links = {link.name: str(link.readlink()) for link in (process / "fd").iterdir()}
            polls = [fd for fd, link in links.items() if "eventpoll" in link]
            polled = [(process / "fdinfo" / fd).read_text() for fd in polls]
        except OSError:
            return False  # it has ended
        waited_for = re.findall(r"^tfd: +(\d+)", "".join(polled), flags=re.MULTILINE)
        return any(links.get(fd) in self._listeners() for fd in waited_for)

    def _listeners(self) -> set[str]:
        """Return the sockets that listen on our port, from proc_net(5), as links name them."""
        local = f":{self.settings['PORT']:04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        entries = (line.split() for line in lines)
        return {f"socket:[{e[9]}]" for e in entries if e[1].endswith(local) and e[3] == "0A"}


def children(pid: int) -> list[int]:
    """Return the processes that *pid* has started, from proc_pid_children(5)."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def is_gone(pid: int) -> bool:
    """Tell whether a process has ended; who inherits it may not care to bury it."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} does not end"
        time.sleep(0.01)


@contextmanager
def serving(folder: Path, *, migrate: bool = True, **settings: Any) -> Iterator[Service]:
    """Migrate, start the service in *folder*, wait until it is ready, and stop it at the end."""
    settings.setdefault("PORT", free_port())
    if migrate:
        migrated = run_command(folder, "migrate", **settings)
        assert migrated.returncode == 0, migrated.stderr
    stdout, stderr = folder / "stdout.log", folder / "stderr.log"
    with stdout.open("ab") as out, stderr.open("ab") as err:
        process = subprocess.Popen(
            [*COMMAND, "serve"],
            cwd=folder,
            env=environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
    url = f"http://127.0.0.1:{settings['PORT']}"
    service = Service(process, url, folder, settings, stdout, stderr)
    try:
        _wait_until_ready(service)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _wait_until_ready(service: Service) -> None:
    deadline, heard = time.monotonic() + READY_SECONDS, ""
    while time.monotonic() < deadline:
        assert service.process.poll() is None, f"it ended: {service.banner}"
        try:
            answer = httpx.get(f"{service.url}/readyz")
        except httpx.TransportError as error:
            heard = repr(error)
        else:
            if answer.status_code == 200:
                return
            heard = answer.text
        time.sleep(0.05)
    raise AssertionError(f"not ready after {READY_SECONDS} s: {heard} {service.banner}")
