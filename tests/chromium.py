"""Finds a Chromium for the tests that need a browser, and installs one where it may.

``python -m tests.chromium`` does so beforehand and prints where it is.
"""

import os
import shutil
import subprocess
import sys

FLAGS = (
    "--headless",
    "--no-sandbox",  # it refuses to run as root otherwise, as in most containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""What a test's browser is started with; it speaks to nobody but the page under test."""

_NAMES = ("chromium", "chromium-browser", "google-chrome")


class NoChromium(Exception):
    """There is no browser to test with. Says what to do."""


def find_chromium() -> str:
    """Return the path of a Chromium: ``CHROMIUM_PATH``, else one on ``PATH``, else from apt.

    Raises:
        NoChromium: ``CHROMIUM_PATH`` is wrong, or there is none and it cannot be installed.
    """
    if path := os.environ.get("CHROMIUM_PATH"):
        if shutil.which(path) is None:
            raise NoChromium("CHROMIUM_PATH does not name a program: correct it or unset it.")
        return path
    if (found := _on_path()) is None:
        _install()
        found = _on_path()
    if found is None:
        raise NoChromium("apt-get installed chromium, but it is not on PATH. Set CHROMIUM_PATH.")
    return found


def _on_path() -> str | None:
    return next(filter(None, map(shutil.which, _NAMES)), None)


def _install() -> None:
    apt_get = shutil.which("apt-get")
    if apt_get is None or os.geteuid() != 0:
        raise NoChromium(
            "Tests of the web pages need Chromium. Install it (Debian, Ubuntu: sudo apt-get "
            "install chromium) or set CHROMIUM_PATH to a Chromium or Chrome you have."
        )
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        done = subprocess.run(
            [apt_get, "-qq", *arguments],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=sys.stderr,
            check=False,
        )
        if done.returncode != 0:
            raise NoChromium(
                f"apt-get {arguments[0]} failed; its reason stands above. Install chromium by "
                "hand, or set CHROMIUM_PATH to a Chromium or Chrome you have."
            )


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{find_chromium()}\n")
    except NoChromium as error:
        sys.exit(str(error))
