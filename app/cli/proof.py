"""The commands ``audit …`` that prove the log, and those that take something out of it."""

import asyncio
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.audit.checkpoint_file import CheckpointFile
from app.audit.checkpointing import Acceptance, Checkpoints
from app.audit.checkpoints import UNKNOWN_KEY, PublicKey, Signer, Unreadable
from app.audit.continuity import Continuity
from app.audit.log import Scribe
from app.audit.segments import Exported, Exporter, FileVerification, new_file
from app.audit.verification import Findings, Verification
from app.base.clock import system_clock, to_unix_microseconds
from app.cli.terminal import command_settings, fail, in_runtime, open_database, out
from app.identity.users import OPERATOR
from app.runtime import Runtime, end_users, installation_secret, log_in

commands = typer.Typer()

LONGEST_REASON = 200  # characters
LARGEST_SEQ = 2**63 - 1  # what a column of the databases holds


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def _read_key(path: Path) -> PublicKey:
    try:
        return PublicKey.read(path.read_bytes())
    except Unreadable as fault:
        fail(f"{path} {fault}")


def _fail_for(findings: Findings, *, rows: int) -> None:
    """Name what is amiss, if anything is."""
    for fault in findings.faults:
        out.print(f"row {fault.seq}: {fault.what}")
    if unnamed := findings.count - len(findings.faults):
        out.print(f"and {unnamed} more")
    if findings.count:
        if any(UNKNOWN_KEY in fault.what for fault in findings.faults):
            out.print("If SECRET_KEY was another one then, name its public key too: --key FILE")
        faults = "1 fault" if findings.count == 1 else f"{findings.count} faults"
        fail(f"the log was tampered with: {faults} in {rows} rows")


# Proving ----------------------------------------------------------------------------------------

KeyFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        exists=True,
        dir_okay=False,
        help="A public key, as audit public-key prints it. Of a file's origin; for the database, of"
        " an earlier SECRET_KEY.",
    ),
]


@commands.command("verify")
def verify_log(
    file: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, help="What audit export or audit prune wrote. Needs --key."
        ),
    ] = None,
    *,
    key: KeyFiles = None,
) -> None:
    """Recompute the whole chain, and name every row that was edited, inserted, moved or deleted.

    Of the database, unless a FILE is named: then nothing is looked at but that and the key.
    """
    keys = [_read_key(path) for path in key or ()]
    if file is None:
        _verify_database(keys)
    elif len(keys) == 1:
        _verify_file(file, keys[0])
    else:
        fail("a file is verified with the one --key of the installation that wrote it")


def _verify_database(keys: Sequence[PublicKey]) -> None:
    settings = command_settings()
    ours = Signer(installation_secret(settings)).public_key

    async def run() -> Verification:
        async with open_database(settings) as database:
            file = CheckpointFile(settings.checkpoint_path)
            walk = Verification(database, keys=[ours, *keys], file=file)
            with _bar("verifying") as progress:
                task = progress.add_task("", total=None)
                await walk.run(
                    lambda: progress.update(task, total=walk.total, completed=walk.rows_checked)
                )
            return walk

    walk = asyncio.run(run())
    _fail_for(walk.findings, rows=walk.rows_checked)
    out.print(
        f"{walk.rows_checked} rows verified: the chain is whole,"
        f" and so say {walk.checkpoints_checked} checkpoints,"
        f" {walk.checkpoints_in_file} of them in {settings.checkpoint_path}"
    )


def _verify_file(path: Path, key: PublicKey) -> None:
    walk = FileVerification(key)
    with _bar("verifying") as progress, progress.open(path, "rb") as lines:
        walk.run(lines)
    _fail_for(walk.findings, rows=walk.rows_checked)
    assert walk.closing is not None  # noqa: S101 - else there is a fault
    out.print(
        f"{walk.rows_checked} rows verified, {walk.first} to {walk.last}: the chain is whole,"
        f" and so say {walk.checkpoints_checked} checkpoints; exported at {walk.closing.when}"
    )


@commands.command("public-key")
def print_public_key() -> None:
    """Print the public key of the checkpoints; keep it where the service cannot reach it."""
    typer.echo(Signer(installation_secret(command_settings())).public_key.pem, nl=False)


@commands.command("export")
def export_log(
    *,
    to: Annotated[Path | None, typer.Option(help="A new file; else it goes to stdout.")] = None,
    from_seq: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_SEQ, help="The first row.")
    ] = None,
    to_seq: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_SEQ, help="The last row.")
    ] = None,
    personal: Annotated[
        bool, typer.Option("--personal", help="With addresses and user agents, while kept.")
    ] = False,
) -> None:
    """Write the log down as JSON Lines, which audit verify FILE proves anywhere."""
    settings = command_settings()
    signer = Signer(installation_secret(settings))

    async def run(file: BinaryIO) -> Exported:
        async with open_database(settings) as database:
            exporter = Exporter(database, signer=signer, clock=system_clock)
            with _bar("exporting") as progress:
                task = progress.add_task("", total=None)
                return await exporter.write(
                    file,
                    first=from_seq,
                    last=to_seq,
                    personal=personal,
                    progress=lambda done, total: progress.update(task, completed=done, total=total),
                )

    if to is None:
        exported = asyncio.run(run(sys.stdout.buffer))
        sys.stdout.buffer.flush()
    else:
        with new_file(to) as file:
            exported = asyncio.run(run(file))
    rows = f"rows {exported.start.seq + 1} to {exported.end.seq}"
    if exported.findings.count:
        fail(f"{rows} are written, and they are not what was written once: run audit verify")
    typer.echo(f"{rows} are written", err=True)


# Taking out ---------------------------------------------------------------------------------


@commands.command("prune")
def prune_log(
    *,
    before: Annotated[
        str,
        typer.Option(help="A day such as 2026-01-31, in UTC, or the seq of the first row to stay."),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder for the files. Default: AUDIT_ARCHIVE_DIR.")
    ] = None,
) -> None:
    """Take old rows out of the log, into files that prove themselves; audit verify goes on behind.

    Rows of the last 24 hours stay, and the last row of all. On PostgreSQL the role has to own the
    tables.
    """
    at, seq = _before(before)

    async def run(runtime: Runtime) -> int:
        up_to = await runtime.pruning.last_before(at) if at is not None else seq - 1
        segments = await runtime.pruning.run(
            up_to,
            to or runtime.settings.archive_path,
            by=OPERATOR,
            progress=lambda one: out.print(f"rows {one.first} to {one.last}: {one.path}"),
        )
        return sum(one.last - one.first + 1 for one in segments)

    out.print(f"{in_runtime(run)} rows were taken out")


def _before(text: str) -> tuple[int | None, int]:
    """Return the instant in Unix µs, or None and a seq."""
    if re.fullmatch(r"\d{1,15}", text, re.ASCII):
        return None, int(text)
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        fail("--before must be a day such as 2026-01-31, or the seq of a row")
    return to_unix_microseconds(day), 0


@commands.command("erase")
def erase_user(
    user: Annotated[
        str | None,
        typer.Argument(help="An address; the usr_… or eus_… of somebody who has none here."),
    ] = None,
    *,
    end_user: Annotated[
        str | None, typer.Option(help="An end user, as a backend names them; in place of USER.")
    ] = None,
) -> None:
    """Erase what identifies a person, and disable their account for good. The chain stays whole."""
    if (user is None) == (end_user is None):
        fail("name one person: USER, or --end-user")
    if end_user is not None:
        user = end_users(installation_secret(command_settings())).pseudonym_of(end_user)
    who = user or ""
    erased = in_runtime(lambda runtime: runtime.erasure.erase(who, by=OPERATOR))
    out.print(f"{erased.user_id} is erased; {erased.rows} rows no longer say who it was")


@commands.command("accept-rollback")
def accept_rollback(
    *, reason: Annotated[str, typer.Option(help="Why the log is meant as it is; it is recorded.")]
) -> None:
    """Go on with a database that lacks rows which it had, or has others in their place."""
    if not (1 <= len(reason) <= LONGEST_REASON and reason.isprintable()):
        fail(f"--reason must have 1 to {LONGEST_REASON} characters, all of them printable")
    settings = command_settings()
    signer = Signer(installation_secret(settings))

    async def run() -> Acceptance:
        async with open_database(settings) as database:
            log = log_in(database, Scribe(settings.environment, system_clock))
            try:
                return await Checkpoints(
                    signer=signer,
                    file=CheckpointFile(settings.checkpoint_path),
                    continuity=Continuity(),
                    database=database,
                    log=log,
                    clock=system_clock,
                ).accept_rollback(reason, by=OPERATOR)
            finally:
                await log.close()

    try:
        accepted = asyncio.run(run())
    except Unreadable as fault:
        fail(f"the last line of {settings.checkpoint_path} {fault}; move the file away and keep it")
    out.print(f"the log goes on behind row {accepted.head.seq}; row {accepted.known} was known")
    if accepted.pruned:
        out.print(
            f"it begins behind row {accepted.pruned}: what was before is pruned, as another key"
            " had signed; this one does so too now"
        )
