"""What erased people are called: the name tells of whom it is that they were erased.

It is made of the very id of the user, so that nobody can be given such a name beforehand.
"""

NOWHERE = "erased.invalid"
"""Domain of the addresses of erased accounts; nobody can have one there (RFC 2606)."""

ERASED = "This person was erased, for good."
"""Why nobody is let back in."""


def erased_account(user_id: str) -> str:
    """Return the address that the account gets in place of its own."""
    return f"{user_id.lower()}@{NOWHERE}"


def erased_subject(user_id: str) -> str:
    """Return what an issuer's user is called in place of the subject."""
    return f"erased:{user_id}"


def is_erased(user_id: str, name: str) -> bool:
    """Tell whether this user, who is called *name*, was erased."""
    return name in {erased_account(user_id), erased_subject(user_id)}
