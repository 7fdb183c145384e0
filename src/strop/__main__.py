"""`strop` and `python -m strop`: the guard of `cli` stands before anything else is imported but what it needs itself.

Until then, some hundredths of a second, Ctrl-C ends the process as it does later.
"""

import os
import signal
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\ninterrupted by Ctrl-C\n")
    os._exit(130)  # nothing has begun


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
    signal.signal(signal.SIGINT, _end)

from strop.cli import main  # noqa: E402 (Ctrl-C within it is a traceback otherwise)

if __name__ == "__main__":
    main()
