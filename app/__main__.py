"""Where the command `realtime-tokens` begins."""

import sys


def main() -> None:
    """Run the command line; a missing package ends with one line instead of a traceback."""
    try:
        from app.cli import run  # noqa: PLC0415 - so that its own imports can fail with a sentence

        run()
    except ModuleNotFoundError as error:
        sys.exit(
            f"The Python module {error.name} is missing. Install what the service needs with:"
            " make run, or: pip install --require-hashes -r requirements/run.txt"
        )


if __name__ == "__main__":
    main()
