"""The command line: arguments in, text and exit codes out. What the commands do is in `strop.api`."""

import sys

from strop.cli.app import app
from strop.errors import OutOfMemoryError, StropError

# Importing the commands registers them; `strop --help` lists them in this order.
from strop.cli import before, during, after  # isort: skip

__all__ = ["after", "app", "before", "during", "main"]


def _end(error: StropError) -> None:
    from strop.present.console import error as show

    show(error)
    sys.exit(error.exit_code)


def main() -> None:
    """Run the command line; user errors become one message and a documented exit code, never a traceback."""
    try:
        app()
    except StropError as error:
        _end(error)
    except MemoryError:
        _end(OutOfMemoryError("this machine's memory does not suffice; `strop plan` says what a run needs"))
    except RuntimeError as error:
        # Where memory is asked for in large pieces, each place says itself what to do; this is for all others.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _end(
            OutOfMemoryError(
                f"the GPU's memory does not suffice: {str(error).partition('. ')[0]}. Is another program using it? "
                "`strop plan` says what a run needs; `nvidia-smi` what is free"
            )
        )
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()
        sys.exit(0)
