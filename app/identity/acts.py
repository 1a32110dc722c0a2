"""The rows that tell what one did to another's account."""

from typing import TYPE_CHECKING, Any, TypeAlias

from app.audit.events import Event

if TYPE_CHECKING:
    from app.identity.callers import Caller  # it has roles and scopes from modules that import us

By: TypeAlias = "Caller | str"
"""Who acts: an admin who called, or a name that stands for itself, such as `operator`."""


def act(action: str, target: str, by: By, **facts: Any) -> Event:
    """Return the row that tells that *by* has done *action* to *target*.

    Args:
        action: ``noun.verb``.
        target: Id of whom or what it was done to.
        by: Who did it.
        facts: Further members of the row.
    """
    if isinstance(by, str):
        return Event(action=action, outcome="succeeded", actor=by, target=target, **facts)
    return Event(
        action=action,
        outcome="succeeded",
        actor=by.user_id,
        target=target,
        credential=by.credential,
        sign_in=by.sign_in_id,
        request_id=by.origin.request_id,
        personal=by.origin.personal(),
        **facts,
    )
