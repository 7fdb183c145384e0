"""What can go wrong, and what a shell sees of it: the one table of exit codes.

    StropError            1   anything else: what no other code names, or a bug
    ├── RecipeError       2   recipe, model or arguments
    │   └── ModelError    2   recipe, model or arguments
    ├── DataError         3   data
    ├── CheckpointError   4   no checkpoint to resume from, or one of another recipe, data or base model
    ├── NumericsError     5   a loss or gradient that is not a number
    ├── OutOfMemoryError  6   out of memory
    ├── BudgetReached     7   stopped at modal.max_cost (raise it to resume)
    ├── CloudError        8   Modal or an endpoint cannot be reached, or refused
    │   └── EndpointError 8   Modal or an endpoint cannot be reached, or refused
    ├── ParityError       9   an export that differs from the trained model
    ├── StorageError     10   a file that this machine could not write or read (make room, or mend it, and run it again)
    └── Interrupted      75   interrupted (run the same command again to resume)
        └── RankLost     75   interrupted (run the same command again to resume)

The numbers are a contract: a launcher retries 75 and signals and nothing else. Help and documentation are made from
`EXIT_CODES`. Every message says what is wrong, where (file:line or recipe key) and how to fix it; `cli` prints the
message and no traceback.
"""

import errno
import os
import re
from typing import ClassVar


class StropError(Exception):
    """Base of every error that strop raises on purpose.

    Attributes:
        exit_code: That the command ends with.
        meaning: Of the exit code, as help and documentation say it.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "anything else: what no other code names, or a bug"


class RecipeError(StropError, ValueError):
    """The recipe cannot be run as written: an unknown or contradictory key, or a model that cannot be used."""

    exit_code = 2
    meaning = "recipe, model or arguments"


class ModelError(RecipeError):
    """The model folder is unsafe, unreadable, incomplete or of an unsupported family."""


class DataError(StropError, ValueError):
    """The rows are faulty or missing, or nothing in them can be learned."""

    exit_code = 3
    meaning = "data"


class CheckpointError(StropError, RuntimeError):
    """A run cannot be resumed: no checkpoint verifies, or it belongs to another recipe, data or base model."""

    exit_code = 4
    meaning = "no checkpoint to resume from, or one of another recipe, data or base model"


class NumericsError(StropError, ArithmeticError):
    """A loss or gradient is not finite. Raised before the update, so the weights are those of the last step."""

    exit_code = 5
    meaning = "a loss or gradient that is not a number"


class OutOfMemoryError(StropError, MemoryError):
    """Not even the smallest microbatch fits."""

    exit_code = 6
    meaning = "out of memory"


class BudgetReached(StropError):
    """The limit that the user set was reached. A checkpoint was written, and the run can be resumed."""

    exit_code = 7
    meaning = "stopped at modal.max_cost (raise it to resume)"


class CloudError(StropError):
    """Modal cannot be reached, or refused. Nothing is lost: a run there continues, or is as it was."""

    exit_code = 8
    meaning = "Modal or an endpoint cannot be reached, or refused"


class EndpointError(CloudError):
    """An endpoint of `strop serve`, here or on Modal, cannot be reached, or refused."""


class ParityError(StropError):
    """An export gives other tokens or logits than the trained model, or stops elsewhere. Nothing was put in place."""

    exit_code = 9
    meaning = "an export that differs from the trained model"


class StorageError(StropError):
    """The machine could not write or read a file: the disk is full or fails, or it is not allowed to."""

    exit_code = 10
    meaning = "a file that this machine could not write or read (make room, or mend it, and run it again)"


class Interrupted(StropError):
    """SIGINT or SIGTERM: a checkpoint was written, and `strop train` resumes from it."""

    exit_code = 75
    meaning = "interrupted (run the same command again to resume)"


class RankLost(Interrupted):
    """Another rank of the run was killed, has failed or hangs. What was saved last is what there is to resume from."""


_KINDS: tuple[type[StropError], ...] = (
    StropError,
    RecipeError,
    DataError,
    CheckpointError,
    NumericsError,
    OutOfMemoryError,
    BudgetReached,
    CloudError,
    ParityError,
    StorageError,
    Interrupted,
)

EXIT_CODES = {
    0: "done",
    **{kind.exit_code: kind.meaning for kind in _KINDS},
    129: "ended by SIGHUP, as the terminal closed, with nothing to resume",
    130: "interrupted by Ctrl-C, with nothing to resume",
    143: "ended by SIGTERM, with nothing to resume",
}
"""Every exit code of the command line, in ascending order, and what it means."""


def exit_code_help() -> str:
    """All exit codes as a Markdown list, for `strop --help`."""
    return "\n".join(f"- {code}: {meaning}" for code, meaning in EXIT_CODES.items())


_NAMES = {
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of this path is a file and not a folder",
    errno.EISDIR: "this is a folder; name a file",
    errno.ELOOP: "its links lead in a circle; name the file itself",
    errno.ENOENT: "check the name",
    errno.EEXIST: "name another",
    errno.ENOTEMPTY: "name another folder",
    errno.ENXIO: "this is no ordinary file",
    errno.ENODEV: "this is no ordinary file",
    errno.ESPIPE: "this is no ordinary file",
    errno.EILSEQ: "this file system does not take such a name",
}
"""Faults of a name that someone gave, by errno, and what to do."""

REMEDIES = {
    errno.ENOSPC: "make room there, or name another place",
    errno.EDQUOT: "make room there, or name another place",
    errno.EFBIG: "this file system or `ulimit -f` takes no larger file: name another place, or raise the limit",
    errno.EROFS: "name another place",
    errno.EACCES: "check its permissions and those of its folders, or name another place",
    errno.EPERM: "check its permissions and those of its folders, or name another place",
    errno.EIO: "the disk may be failing: see `dmesg`",
    errno.ESTALE: "the network file system has lost it: mount it again",
    errno.EMFILE: "raise the limit of open files: `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine",
    errno.EAGAIN: "too many processes or threads: raise the limit, `ulimit -u`",
    errno.ETXTBSY: "another program uses it",
    errno.EBUSY: "another program uses it",
}
"""Faults of the machine, by errno, and what to do. What is in neither table is of the machine too."""

_NETWORK = {
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.EHOSTDOWN,
    errno.ETIMEDOUT,
    errno.EADDRNOTAVAIL,
}
_LONGEST_NAME = 200


def of_system(error: BaseException, name: object = None) -> StropError | None:
    """What the operating system's error means: a name that cannot be, a machine that cannot, or no connection.

    Args:
        error: An OSError, or one of a library: of Rust, which says `(os error 28)`, or of torch.
        name: What was read or written; by default the file that the error names.

    Returns:
        The error to raise in its place; None if it says nothing of the operating system.
    """
    number = _errno(error)
    if isinstance(error, ConnectionError | TimeoutError) or number in _NETWORK or (number or 0) < 0:  # a host's name
        return CloudError(f"no connection: {error}")
    if number is None:
        return None
    named = getattr(error, "filename", None) or (str(error).partition(": ")[2] if number == errno.ENOENT else None)
    what = shown_name(named if name is None else name) or "a file"
    why = os.strerror(number)
    if number == errno.ENOMEM:
        return OutOfMemoryError(f"{what}: {why}; `strop plan` says what a run needs")
    if number in _NAMES:
        return RecipeError(f"{what}: {why}; {_NAMES[number]}")
    remedy = REMEDIES.get(number)
    return StorageError(f"{what} cannot be read or written: {why}" + (f"; {remedy}" if remedy else ""))


def of_file(error: OSError, name: object) -> StropError:
    """What the operating system's error means for a file, or for what a message calls it."""
    return of_system(error, name) or StorageError(f"{shown_name(name)} cannot be read or written: {error}")


def _errno(error: BaseException) -> int | None:
    if isinstance(error, OSError) and isinstance(error.errno, int):
        return error.errno
    if isinstance(error, FileNotFoundError):  # safetensors raises it with a text alone
        return errno.ENOENT
    found = re.search(r"\((?:os error )?(\d+)\)", str(error))  # Rust's form, or torch's: Input/output error (5)
    return int(found[1]) if found and os.strerror(int(found[1])) in str(error) else None


def shown_name(name: object) -> str:
    """A file's name as messages show it: the middle of an overlong one is left out, and no byte moves the cursor."""
    if name is None or isinstance(name, int):  # a file descriptor
        return ""
    text = os.fsdecode(name) if isinstance(name, bytes | os.PathLike) else str(name)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= _LONGEST_NAME else f"{text[:120]}...{text[-60:]}"
