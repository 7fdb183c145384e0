"""What can go wrong, and what a shell sees of it.

    StropError            1   a bug in strop, if nothing below fits
    ├── RecipeError       2   the recipe: an unknown or contradictory key, a model that cannot be used
    │   └── ModelError    2   the model folder: unsafe, unreadable or of an unsupported family
    ├── DataError         3   the rows: faulty, missing, or nothing in them that can be learned
    ├── CheckpointError   4   no checkpoint verifies, or it belongs to another recipe, data or base model
    ├── NumericsError     5   a loss or gradient that is not a number; nothing was updated
    ├── OutOfMemoryError  6   out of memory at the smallest microbatch
    ├── BudgetReached     7   stopped at the limit the user set; resumable
    ├── CloudError        8   Modal cannot be reached, or refused; nothing is lost, ask again
    │   └── EndpointError 8   an endpoint that `strop chat URL` asks cannot be reached, or refused
    ├── ParityError       9   an export does not answer as the trained model does; nothing was put in place
    └── Interrupted      75   stopped by SIGINT or SIGTERM after saving; resumable

The numbers are a contract: a launcher retries 75 and signals and nothing else. Every message says what is
wrong, where (file:line or recipe key) and how to put it right; `cli` prints the message and no traceback.
"""


class StropError(Exception):
    """Base of every error that strop raises on purpose."""

    exit_code = 1


class RecipeError(StropError, ValueError):
    """The recipe cannot be run as written."""

    exit_code = 2


class ModelError(RecipeError):
    """The model folder is unsafe, incomplete or of a family that strop does not know."""


class DataError(StropError, ValueError):
    """The rows cannot be trained on as they are."""

    exit_code = 3


class CheckpointError(StropError, RuntimeError):
    """A run cannot be continued: nothing verifies, or what was saved belongs to something else."""

    exit_code = 4


class NumericsError(StropError, ArithmeticError):
    """A loss or gradient is not finite. Raised before the update, so the weights are those of the last step."""

    exit_code = 5


class OutOfMemoryError(StropError, MemoryError):
    """Not even the smallest microbatch fits."""

    exit_code = 6


class BudgetReached(StropError):
    """The limit that the user set was reached; a checkpoint was written and the run can go on later."""

    exit_code = 7


class CloudError(StropError):
    """Modal cannot be reached or refuses; a run there goes on, or is as it was."""

    exit_code = 8


class EndpointError(CloudError):
    """An endpoint of `strop serve`, here or on Modal, cannot be reached or refuses."""


class ParityError(StropError):
    """What was exported gives other tokens or logits than the trained model, or does not stop where it does."""

    exit_code = 9


class Interrupted(StropError):
    """SIGINT or SIGTERM: a checkpoint was written and `strop train` continues from it."""

    exit_code = 75
