"""Which passwords may be set."""

import re
import unicodedata
from urllib.parse import urlsplit

from zxcvbn_rs_py import zxcvbn

from app.base.errors import FieldError, InvalidRequest
from app.identity.passwords import MAX_LENGTH

MIN_LENGTH = 15
"""Code points; NIST SP 800-63B-4 section 3.1.1.2, for a password that is the only factor."""

SHORTEST_NAME = 4
"""Shorter parts of an address are in too many innocent words."""

_SERVICE = "realtimetokens"
_LEAST_GUESSES = 10**10  # what the package calls very hard to guess; with Argon2, years
_ADVICE = "Four or more words that have nothing to do with one another make a good one."


class PasswordRules:
    """Refuses what is short, easily guessed, or named after the user or the service.

    Args:
        public_url: Its host is one of the service's names.
    """

    def __init__(self, public_url: str) -> None:
        self._names = {_SERVICE, *_labels(urlsplit(public_url).hostname or "")}

    def check(self, password: str, *, email: str, field: str = "password") -> None:
        """See that *password* may be set for the account of *email*.

        Args:
            password: Counted in code points, as it is hashed: in NFC.
            email: Whose parts must not be in it.
            field: What a refusal calls the password.

        Raises:
            InvalidRequest: It may not; says why, and never repeats any of it.
        """
        reason = self._fault(password, email)
        if reason is not None:
            raise InvalidRequest(errors=[FieldError(field, reason)])

    def _fault(self, password: str, email: str) -> str | None:
        if len(password) > MAX_LENGTH:
            return f"takes at most {MAX_LENGTH} characters"
        password = unicodedata.normalize("NFC", password)
        if len(password) < MIN_LENGTH:
            return f"needs at least {MIN_LENGTH} characters"
        # UAX #15 section 12.1: normalization is stable for assigned characters only.
        if any(unicodedata.category(character) in {"Cn", "Cs"} for character in password):
            return (
                "holds a character that Unicode does not assign, or this server does not know yet"
            )
        user, _, host = email.lower().rpartition("@")
        mine = {_plain(user), *re.split(r"[^a-z0-9]+", user), *_labels(host)}
        names = {name for name in mine | self._names if len(name) >= SHORTEST_NAME}
        plain = _plain(password)
        if any(name in plain for name in names):
            return "must not hold a part of the e-mail address, or the name of this service"
        verdict = zxcvbn(password, user_inputs=sorted(names))
        if verdict.guesses < _LEAST_GUESSES:
            warning = verdict.feedback.warning if verdict.feedback else None
            return " ".join(
                filter(None, ("is too easy to guess.", warning and str(warning), _ADVICE))
            )
        return None


def _plain(text: str) -> str:
    """Return the letters and digits of *text*, in lower case."""
    return "".join(filter(str.isalnum, text.casefold()))


def _labels(host: str) -> list[str]:
    """Return what a host is called, without its top-level domain."""
    labels = [_plain(label) for label in host.split(".")]
    return labels[:-1] or labels
