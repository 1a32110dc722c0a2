"""The operator's commands. Each is one domain call and its answer in plain lines."""

import os
import sys

import typer
from sqlalchemy.exc import ProgrammingError

from app.audit.checkpoints import Unreadable
from app.audit.pruning import CannotPrune
from app.audit.segments import CannotExport
from app.base.db import DatabaseFault, reason_of
from app.base.errors import Problem
from app.base.keys import SecretFault
from app.cli import audit, keys, models, operating, serving, users
from app.identity.sign_in import GrantRefused
from app.minting.profiles import ProfilesFault
from app.settings import SettingsFault

app = typer.Typer(
    name="realtime-tokens",
    help="Mints short-lived OpenAI Realtime tokens for your users, and writes down that it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback with local variables would show secrets
)
app.add_typer(serving.commands)
app.add_typer(operating.commands)
app.add_typer(models.commands)
app.add_typer(users.commands, name="users")
app.add_typer(keys.commands, name="keys")
app.add_typer(audit.commands, name="audit")


def run() -> None:
    """Run the command line; what an operator can mend ends with a line, not a traceback."""
    os.umask(0o077)  # what lies in DATA_DIR is for its owner alone
    try:
        app()
    except (SettingsFault, ProfilesFault) as error:
        lines = error.faults
    except Problem as problem:
        reasons = "; ".join(f"{fault.field} {fault.reason}" for fault in problem.errors)
        lines = [f"{problem.detail} {reasons}".strip()]
    except (
        DatabaseFault,
        SecretFault,
        GrantRefused,
        CannotExport,
        CannotPrune,
        Unreadable,
        OSError,
        TimeoutError,
    ) as error:
        lines = [str(error)]
    except ProgrammingError as error:  # on PostgreSQL, what the role has no right to
        lines = [reason_of(error)]
    except UnicodeEncodeError:
        lines = ["an argument holds bytes that are not UTF-8"]
    for line in lines:
        typer.echo(f"realtime-tokens: {line}", err=True)
    sys.exit(1)
