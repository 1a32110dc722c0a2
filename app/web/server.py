"""Puts the application on the network: in this process, or in several that another looks after."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from socket import socket

import uvicorn
from starlette.types import ASGIApp
from typing_extensions import override
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.web.http_protocol import HttpProtocol

BACKLOG = 2048

YOUNG_OBJECTS = 10_000
"""New objects that may wait for the garbage collector."""

STOP_SECONDS = 15
"""How long requests under way may take after SIGTERM; the whole stop stays under 20 s."""

WORKER_STOP_SECONDS = 18.0
"""When a worker that has not ended on SIGTERM is killed; one that gets on at all needs less."""


def run(
    app: ASGIApp | str, listener: socket, *, workers: int = 1, websockets: bool = False
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way.

    Args:
        app: The application; for several workers, where each finds what makes its own
            (``module:function``).
        listener: Bound; all workers accept from it.
        workers: Processes that serve, from 1.
        websockets: Whether there is a route for them.
    """
    config = uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=workers,
        loop="uvloop",
        http=HttpProtocol,
        ws="websockets-sansio" if websockets else "none",
        ws_max_size=32 * 1024 * 1024,  # 15 MiB of audio as base64, for the sandbox
        proxy_headers=False,  # TRUSTED_PROXIES decides whose word counts
        server_header=False,
        access_log=False,  # the door writes one line per request
        log_config=None,
        timeout_graceful_shutdown=STOP_SECONDS,
        backlog=BACKLOG,
    )
    if workers == 1:
        uvicorn.Server(config).run(sockets=[listener])
        return
    supervisor = Supervisor(config, sockets=[listener])
    supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        sys.exit(STARTUP_FAILURE)  # as the one process does; what watches us starts us again


class Supervisor(Multiprocess):
    """Starts the workers, replaces one that dies or hangs, and ends with all of them."""

    @override
    def join_all(self) -> None:
        """Wait for the workers to end, and kill what does not end in time."""
        deadline = time.monotonic() + WORKER_STOP_SECONDS
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()  # does nothing to what has ended
            worker.process.join()


def spare_the_collector() -> None:
    """Let the garbage collector leave alone what stays for good: modules, models, routes.

    It would look through all of it again and again, a tenth of the time of a busy service. What a
    request makes goes when its last reference does; the collector is there for the exceptions, and
    comes for every 10,000 objects instead of every 700.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


def end_with_supervisor() -> None:
    """See to it that this worker stops, as on SIGTERM, when its supervisor was killed.

    Left alone it would hold the port and serve on, with nobody to stop it.
    """
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        raise RuntimeError("this process is not a worker")

    def follow() -> None:
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="end-with-supervisor", daemon=True).start()
