"""The memory outside the database: a file to which checkpoints are added, one to a line."""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.audit.checkpoints import Checkpoint, Unreadable

_TAIL_BYTES = 8_192
"""More than the longest line."""


class CheckpointFile:
    """JSON Lines, only ever added to; any number of processes of a machine may share it.

    Args:
        path: Made when it is first written to; the folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def last(self) -> Checkpoint | None:
        """Return the checkpoint of the last whole line; None when there is none.

        Raises:
            OSError: The file cannot be read.
            Unreadable: The line is no checkpoint.
        """
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                whole, _, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return None
        _, _, line = whole.rstrip().rpartition(b"\n")
        return Checkpoint.read_line(line) if line else None

    def append(self, missing: Callable[[Checkpoint | None], Iterable[Checkpoint]]) -> None:
        """Add what is *missing* behind the last line, and sync it to disk.

        A line that a power cut left unfinished was never acknowledged, and is taken out.

        Args:
            missing: Gets the last checkpoint and returns those to add, while nobody else adds any.

        Raises:
            OSError: The file cannot be written.
            Unreadable: Its last line is no checkpoint.
        """
        with self._locked() as descriptor:
            lines = "".join(f"{one.line}\n" for one in missing(self.last()))
            if not lines:
                return
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
            size -= len(tail) - (tail.rfind(b"\n") + 1)
            os.ftruncate(descriptor, size)
            os.lseek(descriptor, size, os.SEEK_SET)
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(lines.encode())
            os.fsync(descriptor)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        is_new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)
        if is_new:  # its name has to survive a power cut too
            folder = os.open(self.path.absolute().parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def lines(self, *, size: int) -> Iterator[tuple[int, Checkpoint | Unreadable]]:
        """Give each line with its number, as far as the first *size* bytes of the file go."""
        if size == 0:
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                size -= len(line)
                if size < 0 or not line.endswith(b"\n"):  # a power cut left that unfinished
                    return
                try:
                    yield number, Checkpoint.read_line(line)
                except Unreadable as fault:
                    yield number, fault

    @property
    def size(self) -> int:
        """How long the file is now, in bytes; 0 when there is none."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0
