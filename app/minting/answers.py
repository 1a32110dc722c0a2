"""What OpenAI answered, and which problem that is when it is not what was asked for.

An answer is read leniently and judged by its status and `error.code`. Nothing of its text goes any
further: OpenAI's 401, for one, repeats part of the API key.
"""

import email.utils
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from app.base.errors import (
    UpstreamInvalidResponse,
    UpstreamMisconfigured,
    UpstreamProblem,
    UpstreamQuotaExhausted,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)

DEFAULT_RETRY_AFTER_SECONDS = 10
LONGEST_RETRY_AFTER_SECONDS = 300

QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
    }
)
RATE_CODES = frozenset({"rate_limit_exceeded", "slow_down"})

_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, read to its end. What OpenAI wrote stays out of the repr.

    Args:
        status: HTTP status.
        headers: Header fields by lower-case name.
        content: The JSON object in the body; empty when there is none that can be read.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: Mapping[str, Any] = field(repr=False)

    @property
    def request_id(self) -> str | None:
        """`x-request-id`, for OpenAI's support, when it has a plain form."""
        return plain_id(self.headers.get("x-request-id"))


def json_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in *body*, an empty one if there is none that can be read."""
    try:
        parsed = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):  # also for a number of 5,000 digits; for deep nesting
        return {}
    return parsed if isinstance(parsed, dict) else {}


def plain_id(text: Any) -> str | None:
    """Return *text* if it can be an identifier of OpenAI's that is safe to log."""
    return text if isinstance(text, str) and _ID.fullmatch(text) else None


def refusal(answer: Answer, *, now: datetime) -> UpstreamProblem:
    """Return the problem that an answer other than 200 stands for.

    Source: the statuses and codes of OpenAI's API reference, "Error codes".
    """
    error = answer.content.get("error")
    error = error if isinstance(error, dict) else {}
    code, kind = _plain_code(error.get("code")), _plain_code(error.get("type"))
    facts: dict[str, Any] = {
        "upstream_status": answer.status,
        "upstream_code": code or kind,
        "upstream_request_id": answer.request_id,
    }
    retry_after = _retry_after_seconds(answer.headers.get("retry-after", ""), now=now)
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return UpstreamMisconfigured(**facts)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        # Codes are added over the years while the type stays: an unknown code of the type
        # insufficient_quota is one more way to be out of money, not a reason to ask again.
        if code in QUOTA_CODES or (kind in QUOTA_CODES and code not in RATE_CODES):
            return UpstreamQuotaExhausted(**facts)
        seconds = retry_after or DEFAULT_RETRY_AFTER_SECONDS
        return UpstreamRateLimited(**facts, retry_after_seconds=seconds)
    if answer.status in range(400, 500):
        return UpstreamRejected(**facts)
    if answer.status in range(500, 600):
        # Without OpenAI's error object it is a gateway that speaks, and what it could not bring
        # back may well have been minted.
        return UpstreamUnavailable(
            **facts, may_have_minted=kind is None, retry_after_seconds=retry_after
        )
    return unreadable(answer)


def unreadable(answer: Answer) -> UpstreamInvalidResponse:
    """Return the problem that *answer* stands for when it says neither yes nor no."""
    return UpstreamInvalidResponse(
        may_have_minted=True,
        upstream_status=answer.status,
        upstream_request_id=answer.request_id,
    )


def _plain_code(text: Any) -> str | None:
    return text if isinstance(text, str) and _CODE.fullmatch(text) else None


def _retry_after_seconds(text: str, *, now: datetime) -> int | None:
    """Return the wait that a `Retry-After` header asks for, 1 to 300 s; None if it is unreadable.

    Source: RFC 9110 section 10.2.3: whole seconds or an HTTP date.
    """
    if re.fullmatch(r"[0-9]{1,18}", text):
        seconds = int(text)
    else:
        try:
            at = email.utils.parsedate_to_datetime(text)
            seconds = math.ceil((at.replace(tzinfo=at.tzinfo or UTC) - now).total_seconds())
        except (ValueError, OverflowError):
            return None
    return min(max(seconds, 1), LONGEST_RETRY_AFTER_SECONDS)
