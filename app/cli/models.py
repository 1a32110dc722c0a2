"""The command ``models``."""

from typing import Annotated

import typer
from rich.table import Table

from app.cli.terminal import asking_openai, in_runtime, out
from app.identity.users import OPERATOR
from app.minting.model_notices import ModelNotice
from app.minting.model_watch import ModelOverview, ModelStanding
from app.runtime import Runtime

commands = typer.Typer()

_COLUMNS = (
    "id",
    "family",
    "status",
    "released",
    "shutdown",
    "days left",
    "successor",
    "who says so",
    "profiles",
)


@commands.command()
def models(
    *,
    refresh: Annotated[bool, typer.Option(help="Ask OpenAI for its list first.")] = False,
) -> None:
    """List the models, when they end, and which profiles use them."""

    async def look(runtime: Runtime) -> tuple[ModelOverview, list[ModelNotice]]:
        if refresh:
            with asking_openai(runtime.settings):
                await runtime.models.refresh(by=OPERATOR)
        return runtime.models.overview(), await runtime.models.notices()

    overview, notices = in_runtime(look)
    table = Table(*_COLUMNS, box=None)
    for standing in overview.models:
        table.add_row(*_cells(standing))
    out.print(table)
    for model in overview.unknown:
        ends = f", and shuts it down on {model.shutdown}" if model.shutdown else ""
        out.print(f"not in the catalogue: {model.id}; OpenAI lists it{ends}")
    for notice in notices:
        when = f"{notice.at:%Y-%m-%d} " if notice.code == "model_changed" else ""
        out.print(f"{notice.severity}: {when}{notice.detail}", soft_wrap=True)
    seen = overview.look.succeeded_at
    read = f"was last read {seen:%Y-%m-%d %H:%M} UTC" if seen else "has not been read yet"
    out.print(f"OpenAI's list {read}")


def _cells(standing: ModelStanding) -> list[str]:
    model = standing.model
    source = f"OpenAI, {standing.said_at:%Y-%m-%d}" if standing.said_at else "built in"
    return [
        model.id,
        model.family,
        standing.status,
        str(model.released or ""),
        str(model.shutdown or ""),
        str(standing.days_left or ""),
        model.successor or "",
        source if model.shutdown else "",
        " ".join(standing.profiles),
    ]
