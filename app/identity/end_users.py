"""The end users on whose behalf a backend asks: known here by a pseudonym alone."""

import hashlib
import hmac

from app.base.errors import FieldError, InvalidRequest
from app.base.ids import id_of

LONGEST_USER = 128  # characters


class EndUsers:
    """Gives each end user their pseudonym.

    It is the same whatever service key asks, so that keys can be replaced without every user
    becoming a stranger to limits, to the log and to OpenAI.

    Args:
        key: Keys the pseudonyms; whoever does not have it cannot tell whose they are.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def pseudonym_of(self, user: str) -> str:
        """Return the ``eus_…`` under which *user* is limited and recorded.

        Args:
            user: What the backend calls them: 1 to 128 printable characters, taken as they are.

        Raises:
            InvalidRequest: It is something else.
        """
        if not (1 <= len(user) <= LONGEST_USER and user.isprintable()):
            reason = f"must have 1 to {LONGEST_USER} characters, all of them printable"
            raise InvalidRequest(errors=[FieldError("user", reason)])
        digest = hmac.digest(self._key, user.encode(), hashlib.sha256)
        return id_of("eus", digest[:26])
