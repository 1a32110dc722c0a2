"""Whether the process runs, whether it can serve, and which release it is."""

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import Field

from app import __version__
from app.base.db import DatabaseFault, NotMigrated
from app.web.callers import RuntimeDep
from app.web.schema import Answer, success

router = APIRouter(tags=["Operation"])


class Alive(Answer):
    """The process answers."""

    status: Literal["alive"]


class Readiness(Answer):
    """Whether tokens can be minted, part by part."""

    status: Literal["ready", "not_ready"] = Field(description="`ready` when all parts are `ok`.")
    database: Literal["ok", "failing"] = Field(description="It can be read.")
    migration: Literal["ok", "failing"] = Field(description="Its tables are of this release.")
    writer: Literal["ok", "failing"] = Field(description="What writes the audit log runs.")
    log: Literal["ok", "failing"] = Field(
        description="The audit log has every row that it is known to have had."
    )


class Version(Answer):
    """Which release runs, and against what."""

    version: str
    environment: Literal["live", "sandbox"] = Field(
        description="Whether tokens come from OpenAI, or from the built-in stand-in."
    )


@router.get(
    "/livez",
    operation_id="isAlive",
    summary="Is the process alive?",
    responses=success("It is.", example={"status": "alive"}),
)
async def is_alive() -> Alive:
    """Answer as long as the process runs; nothing else is looked at."""
    return Alive(status="alive")


@router.get(
    "/readyz",
    operation_id="isReady",
    summary="Can tokens be minted?",
    responses={
        **success(
            "They can.",
            example={
                "status": "ready",
                "database": "ok",
                "migration": "ok",
                "writer": "ok",
                "log": "ok",
            },
            cache_control="no-store",
        ),
        503: {
            "model": Readiness,
            "description": "They cannot; what fails is named. Do not send requests here.",
            "content": {
                "application/json": {
                    "example": {
                        "status": "not_ready",
                        "database": "ok",
                        "migration": "failing",
                        "writer": "ok",
                        "log": "ok",
                    }
                }
            },
        },
    },
)
async def is_ready(runtime: RuntimeDep, response: Response) -> Readiness:
    """Look at the database, its migration, the log and its writer. OpenAI is not asked."""
    database = migration = True
    try:
        await runtime.database.check(environment=runtime.settings.environment)
    except NotMigrated:
        migration = False
    except DatabaseFault:
        database = migration = False
    writer = runtime.log.alive
    log = runtime.continuity.fault is None
    ready = database and migration and writer and log
    response.status_code = 200 if ready else 503
    response.headers["Cache-Control"] = "no-store"
    return Readiness(
        status="ready" if ready else "not_ready",
        database="ok" if database else "failing",
        migration="ok" if migration else "failing",
        writer="ok" if writer else "failing",
        log="ok" if log else "failing",
    )


@router.get(
    "/version",
    operation_id="getVersion",
    summary="Which release is this?",
    responses=success("It is this.", example={"version": "0.1.0", "environment": "live"}),
)
async def get_version(runtime: RuntimeDep) -> Version:
    """Name the release and the environment."""
    return Version(version=__version__, environment=runtime.settings.environment)
