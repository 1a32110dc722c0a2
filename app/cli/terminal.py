"""What the commands have in common: settings, a runtime, and how to fail."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer
from rich.console import Console

from app.base.errors import UpstreamUnavailable
from app.base.logs import configure_logging
from app.identity.users import User
from app.runtime import (
    Runtime,
    database_of,
    open_runtime,
)
from app.settings import Settings, read_settings

if TYPE_CHECKING:
    from app.base.postgres import PostgresDatabase
    from app.base.sqlite import SqliteDatabase

T = TypeVar("T")

PIPE_WIDTH = 200  # what is not read on a terminal need not fit one
out = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def command_settings() -> Settings:
    """Return what `.env` and the environment say, and send the log to stderr."""
    settings = read_settings(Path(".env"))
    configure_logging("warning", stream=sys.stderr)  # stdout is for the answer
    return settings


@contextlib.asynccontextmanager
async def open_database(
    settings: Settings,
) -> AsyncIterator["SqliteDatabase | PostgresDatabase"]:
    """Open the database that the settings name, after a look at it."""
    database = database_of(settings)
    try:
        await database.reach()
        await database.check(environment=settings.environment)
        yield database
    finally:
        await database.close()


@contextlib.contextmanager
def asking_openai(settings: Settings) -> Iterator[None]:
    """Fail with what to do when OpenAI is asked, and is a stand-in that does not run."""
    try:
        yield
    except UpstreamUnavailable:
        if settings.environment == "sandbox":
            fail("the sandbox answers inside of the running service; start that first: make run")
        raise


def found(user: User | None) -> User:
    """Return the user, or fail when there is none."""
    if user is None:
        fail("no account has this address; see: realtime-tokens users list")
    return user


def fail(*lines: str) -> NoReturn:
    """End the command with these lines on stderr."""
    for line in lines:
        typer.echo(f"realtime-tokens: {line}", err=True)
    raise typer.Exit(1)


def in_runtime(act: Callable[[Runtime], Coroutine[Any, Any, T]]) -> T:
    """Open the service below the web, and return what *act* does with it."""

    async def run() -> T:
        async with open_runtime(command_settings()) as runtime:
            return await act(runtime)

    return asyncio.run(run())
