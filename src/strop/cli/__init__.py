"""The command line: arguments in, text and exit codes out. What the commands do is in `strop.api`."""

import sys

from strop.cli.app import app
from strop.errors import StropError

# Importing the commands registers them; `strop --help` lists them in this order.
from strop.cli import before, during, after  # isort: skip

__all__ = ["after", "app", "before", "during", "main"]


def main() -> None:
    """Run the command line; user errors become one message and a documented exit code, never a traceback."""
    try:
        app()
    except StropError as error:
        from strop.present.console import error as show

        show(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()
        sys.exit(0)
