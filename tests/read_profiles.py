"""Reads session profiles from settings and from TOML that stands in a test."""

from datetime import date
from pathlib import Path
from typing import Any

from app.minting.catalogue import Catalogue
from app.minting.profiles import Profiles, Wish
from app.settings import Settings

CATALOGUE = Catalogue.built_in()
TODAY = date(2026, 11, 20)
TRANSCRIBERS_OFF = date(2027, 2, 26)


def profiles(on: date = TODAY, **settings: Any) -> Profiles:
    """Return the profiles that *settings* give, whatever the environment says."""
    return Profiles.read(Settings.model_construct(**settings), catalogue=CATALOGUE, today=on)


def from_toml(file: Path, text: str, **settings: Any) -> Profiles:
    """Return the profiles of *text*, which is written to *file* first."""
    file.write_text(text)
    return profiles(profiles_file=file, **settings)


def session(read: Profiles, wish: Wish | None = None, *, on: date = TODAY) -> dict[str, Any]:
    """Return the session that a user gets."""
    return read.session_for("user", wish or Wish(), today=on).session
