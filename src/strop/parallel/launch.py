"""`strop train` on a machine with several GPUs: torch's own elastic launcher, one rank for each."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence

from strop.errors import RankLost, RecipeError, StropError
from strop.parallel.place import Place
from strop.run.folder import RunFolder

_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


def ranks_to_start(asked: str | None, place: Place, engine: str) -> int:
    """How many ranks to start on this machine: one for each GPU, or as many as were asked for; 1 starts none.

    Args:
        asked: A number, or `all`; None is `all` for an engine that can.
        place: This process's: where somebody has started ranks already, none are started.
        engine: Of the recipe; Unsloth trains on one GPU.

    Raises:
        RecipeError: That is no number, there are fewer GPUs, or these ranks are not what was asked for.
    """
    if asked is not None and asked != "all" and (not asked.isdecimal() or int(asked) < 1):
        raise RecipeError(f"--gpus={asked}: give a number from 1, or all")
    if place.ranks > 1:
        if asked not in (None, "all", str(place.local_ranks)):
            raise RecipeError(f"--gpus={asked}: {place.local_ranks} ranks were started on this machine already")
        if engine == "unsloth":
            raise RecipeError(f"train.engine=unsloth trains on one GPU, and {place.ranks} ranks were started")
        return 1
    if asked is None and engine == "unsloth":
        return 1
    import torch

    found = torch.cuda.device_count()
    wanted = max(1, found) if asked in (None, "all") else int(asked)
    if asked is not None and wanted > found:
        raise RecipeError(f"--gpus={asked}: {found or 'no'} {'GPU' if found == 1 else 'GPUs'} can be seen here")
    if wanted > 1 and engine == "unsloth":
        raise RecipeError(f"--gpus={asked}: train.engine=unsloth trains on one")
    return wanted


def launch(command: Sequence[str], ranks: int, folder: RunFolder) -> int:
    """Run a command of strop on several ranks of this machine, and wait for all of them.

    Args:
        command: Arguments of strop.
        ranks: How many.
        folder: The run's.

    Returns:
        The exit code: rank 0's if it has one; 75 where another rank was lost, or all were ended and the run is saved.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # a rank has said itself what is wrong
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # so have NCCL and gloo, whatever else they warn of
    obeyed = [name for name in _SIGNALS if signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle=",".join(obeyed),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "strop", *command)
    except ChildFailedError as failed:
        return judge({rank: failure.exitcode for rank, failure in failed.failures.items()})
    except SignalException as ended:
        return {"finished": 0, "interrupted": RankLost.exit_code}.get(str(folder.status), 128 + int(ended.sigval))
    return 0


def judge(codes: Mapping[int, int]) -> int:
    """One exit code for those of the ranks that failed, by rank.

    One that a signal or a bug ended is lost to the others, which say so and can be resumed; rank 0's own is what the
    run ended with.
    """
    if codes.get(0, 0) > 0:
        return codes[0]
    by_signal = [rank for rank, code in codes.items() if code < 0]
    if by_signal or StropError.exit_code in codes.values():
        return RankLost.exit_code
    return next(iter(codes.values()))
