"""The proof that nobody edited the log: checkpoints, the key they are signed with, verifying."""

from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Response
from pydantic import Field

from app.audit.checkpoints import Authority, Checkpoint, Kind, PublicKey
from app.audit.verifications import Run, Verdict
from app.base.clock import from_unix_microseconds, to_unix_microseconds
from app.base.errors import AuditUnavailable, Conflict, FieldError, InvalidRequest, NotFound
from app.runtime import Runtime
from app.web.audit import Instant
from app.web.callers import Admin, Auditor, RuntimeDep
from app.web.problems import problem_responses
from app.web.schema import Absent, Answer, Asked, Omissible, success

router = APIRouter(prefix="/audit", tags=["Audit"])

LARGEST_PAGE = 200


class CheckpointView(Answer):
    """What was signed of a row of the log."""

    kind: Kind = Field(
        description="`checkpoint`: now and then; `accepted`: the log as it is, by the operator;"
        " `pruned`: the rows up to this one were taken out."
    )
    seq: int = Field(description="The row.")
    row_hash: str = Field(description="Its hash, hex; it covers every row before.")
    at: datetime = Field(description="When it was signed.")
    key: str = Field(description="The `kid` of the key.")
    valid: bool = Field(
        description="Whether it is signed by the present key. One of an earlier `SECRET_KEY` is"
        " not; nor is one that somebody has forged."
    )

    @classmethod
    def of(cls, one: Checkpoint, authority: Authority) -> Self:
        """Show a checkpoint, as *authority* judges it."""
        return cls(
            kind=one.kind,
            seq=one.seq,
            row_hash=one.row_hash.hex(),
            at=from_unix_microseconds(one.at),
            key=one.key,
            valid=authority.fault(one) is None,
        )


class CheckpointQuery(Asked):
    """Which checkpoints are wanted."""

    before: Omissible[Instant] = Field(
        default=None, description="Those signed earlier than this: `nextBefore` of the page before."
    )
    limit: int = Field(default=50, ge=1, le=LARGEST_PAGE, description="At the most.")


class CheckpointsResponse(Answer):
    """Checkpoints, newest first."""

    checkpoints: list[CheckpointView]
    next_before: datetime | None = Field(
        description="Send it as `before` for the next page; null when this is the last."
    )


class CheckpointLine(Answer):
    """A checkpoint as it was signed: a line of the file of checkpoints."""

    checkpoint: str = Field(description="The text that is signed, to the letter; JSON.")
    signature: str = Field(description="Ed25519 over that text in UTF-8, base64.")


class Jwk(Answer):
    """A public key as RFC 8037 has it."""

    kty: str
    crv: str
    x: str
    kid: str = Field(description="Thumbprint of the key, RFC 7638.")
    alg: str
    use: str


class PublicKeyResponse(Answer):
    """The key by which anybody can tell that a checkpoint is ours."""

    pem: str
    jwk: Jwk

    @classmethod
    def of(cls, key: PublicKey) -> Self:
        """Show a key."""
        return cls(pem=key.pem, jwk=Jwk(**key.jwk))


class FaultView(Answer):
    """A place where the log is not what was written."""

    seq: int = Field(description="The row; where one is missing, the number it would have.")
    what: str


class VerificationView(Answer):
    """One walk over the whole log."""

    started_at: datetime
    finished_at: Absent[datetime] = Field(default=None, description="Absent while it is under way.")
    ok: Absent[bool] = Field(
        default=None,
        description="Whether everything is as it was written. Absent while that is not known, also"
        " after a walk that was broken off because the database was away.",
    )
    rows_checked: int
    total: int = Field(description="Rows to be checked, as far as the log went at the start.")
    checkpoints_checked: int
    checkpoints_in_file: int = Field(
        description="How many of these stand outside of the database, where its owner cannot"
        " rewrite them. 0: the file is missing."
    )
    fault_count: int
    faults: list[FaultView] = Field(description="The first hundred.")

    @classmethod
    def of(cls, run: Run) -> Self:
        """Show how far a walk has come."""
        return cls(
            started_at=run.started_at,
            finished_at=run.finished_at,
            ok=run.ok,
            rows_checked=run.walk.rows_checked,
            total=run.walk.total,
            checkpoints_checked=run.walk.checkpoints_checked,
            checkpoints_in_file=run.walk.checkpoints_in_file,
            fault_count=run.walk.findings.count,
            faults=[
                FaultView(seq=fault.seq, what=fault.what) for fault in run.walk.findings.faults
            ],
        )


class VerdictView(Answer):
    """How the last walk ended, whatever process took it."""

    at: datetime
    ok: bool
    fault_count: int

    @classmethod
    def of(cls, verdict: Verdict) -> Self:
        """Show how it ended."""
        return cls(at=verdict.at, ok=verdict.ok, fault_count=verdict.faults)


class VerificationResponse(Answer):
    """What is known of the integrity of the log."""

    elsewhere: Absent[datetime] = Field(
        default=None,
        description="Since when another process has been taking a walk; absent when none is. How it"
        " ends will be in `last`.",
    )
    current: Absent[VerificationView] = Field(
        default=None,
        description="The walk that this process was asked for last; absent before the first.",
    )
    last: Absent[VerdictView] = Field(
        default=None, description="The last that was finished; absent when none ever was."
    )


_EXAMPLE = {
    "kind": "checkpoint",
    "seq": 4711,
    "rowHash": "87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7",
    "at": "2026-11-20T12:01:00.000000Z",
    "key": "qSEwZ_NVmNDFIzmQKjzrfQ8y6AgMVvkPaxQHJIlrwOQ",
    "valid": True,
}
_EXAMPLE_LINE = {
    "checkpoint": '{"format":"realtime-tokens/checkpoint/1","kind":"checkpoint",'
    '"environment":"live","installation":1795176000000000,"seq":4711,"row_hash":"87428fc5…",'
    '"at":1795176060000000,"key":"qSEwZ_NVmNDFIzmQKjzrfQ8y6AgMVvkPaxQHJIlrwOQ"}',
    "signature": "0MbLVUxx…",
}
_EXAMPLE_KEY = {
    "pem": "-----BEGIN PUBLIC KEY-----\n…\n-----END PUBLIC KEY-----\n",
    "jwk": {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "kid": "qSEwZ_NVmNDFIzmQKjzrfQ8y6AgMVvkPaxQHJIlrwOQ",
        "alg": "EdDSA",
        "use": "sig",
    },
}
_RUNNING: dict[str, Any] = {
    "current": {
        "startedAt": "2026-11-21T09:00:00.000000Z",
        "rowsChecked": 2000,
        "total": 4711,
        "checkpointsChecked": 3,
        "checkpointsInFile": 0,
        "faultCount": 0,
        "faults": [],
    }
}
_FINISHED: dict[str, Any] = {
    "current": {
        **_RUNNING["current"],
        "finishedAt": "2026-11-21T09:00:01.000000Z",
        "rowsChecked": 4711,
        "checkpointsChecked": 8,
        "checkpointsInFile": 4,
        "ok": False,
        "faultCount": 1,
        "faults": [{"seq": 14, "what": "changed: not the text, time and place that were hashed"}],
    },
    "last": {"at": "2026-11-21T09:00:01.000000Z", "ok": False, "faultCount": 1},
}
_NONE_YET = NotFound("There is no checkpoint yet: the first follows the first row of the log.")


@router.get(
    "/checkpoints",
    operation_id="listCheckpoints",
    summary="List the checkpoints",
    responses={
        **success(
            "A page of checkpoints, newest first.",
            example={"checkpoints": [_EXAMPLE], "nextBefore": "2026-11-20T12:01:00.000000Z"},
        ),
        **problem_responses(
            InvalidRequest(
                errors=[FieldError("limit", f"must be less than or equal to {LARGEST_PAGE}")]
            )
        ),
    },
)
async def list_checkpoints(
    _: Auditor, runtime: RuntimeDep, query: Annotated[CheckpointQuery, Query()]
) -> CheckpointsResponse:
    """List what was signed about the log, newest first."""
    before = to_unix_microseconds(query.before) if query.before else None
    page = await runtime.checkpoints.page(limit=query.limit + 1, before=before)
    authority = Authority(runtime.checkpoints.public_key)
    shown = [CheckpointView.of(one, authority) for one in page[: query.limit]]
    return CheckpointsResponse(
        checkpoints=shown, next_before=shown[-1].at if len(page) > query.limit else None
    )


@router.get(
    "/checkpoints/latest",
    operation_id="getLatestCheckpoint",
    summary="Download the newest checkpoint",
    responses={
        **success("The checkpoint, to be kept elsewhere.", example=_EXAMPLE_LINE),
        **problem_responses(_NONE_YET),
    },
)
async def get_latest_checkpoint(
    _: Auditor, runtime: RuntimeDep, response: Response
) -> CheckpointLine:
    """Download the newest checkpoint: with it anybody can tell later whether the log still has it.

    The answer has the form of a line of the file of checkpoints.
    """
    newest = await newest_checkpoint(runtime)
    response.headers["Content-Disposition"] = as_file(newest)
    return CheckpointLine.model_validate_json(newest.line)


async def newest_checkpoint(runtime: Runtime) -> Checkpoint:
    """Return the checkpoint that was signed last.

    Raises:
        NotFound: There is none yet.
    """
    newest = await runtime.checkpoints.newest()
    if newest is None:
        raise NotFound(_NONE_YET.detail)
    return newest


def as_file(one: Checkpoint) -> str:
    """Return the Content-Disposition that has *one* kept as a file."""
    return f'attachment; filename="checkpoint-{one.seq}.json"'


@router.get(
    "/public-key",
    operation_id="getCheckpointKey",
    summary="Show the key of the checkpoints",
    responses=success("The public key, in two forms.", example=_EXAMPLE_KEY),
)
async def get_checkpoint_key(_: Auditor, runtime: RuntimeDep) -> PublicKeyResponse:
    """Show the key that verifies checkpoints and exported files. Keep it elsewhere."""
    return PublicKeyResponse.of(runtime.checkpoints.public_key)


@router.get(
    "/verification",
    operation_id="getVerification",
    summary="Was the log edited?",
    responses=success("What is known.", example=_FINISHED),
)
async def get_verification(_: Auditor, runtime: RuntimeDep) -> VerificationResponse:
    """Show how far the walk that was asked for last has come, and how the last one ended."""
    return await _shown(runtime)


@router.post(
    "/verification",
    operation_id="startVerification",
    summary="Verify the log",
    responses={
        **success("It is under way.", example=_RUNNING),
        **problem_responses(
            Conflict("A verification is under way. Wait until it is finished."), AuditUnavailable
        ),
    },
)
async def start_verification(caller: Admin, runtime: RuntimeDep) -> VerificationResponse:
    """Recompute the whole chain and compare it with every checkpoint, beside everything else.

    One at a time; `GET /audit/verification` tells how it goes.
    """
    await runtime.verifications.start(caller.trace)
    return await _shown(runtime)


async def _shown(runtime: Runtime) -> VerificationResponse:
    current = runtime.verifications.current
    last = await runtime.verifications.last()
    return VerificationResponse(
        elsewhere=await runtime.verifications.elsewhere(),
        current=VerificationView.of(current) if current else None,
        last=VerdictView.of(last) if last else None,
    )
