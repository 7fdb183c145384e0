"""Which answers a row asks to be learned, under the names that other tools use.

On a turn or on the row: true or 1 learns, false or 0 does not (`masked` is the other way round); on the row also a list
with one value for each turn. An answer that is not learned is still read as context.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from strop.data.rows.fields import RowError, is_empty

LEARN = ("train", "training", "trainable", "learn", "loss", "loss_mask", "loss_masks", "weight", "weights")
LISTS = (*LEARN, "assistant_masks", "assistant_mask", "train_mask")
HIDE = ("masked",)
MASK_KEYS = frozenset((*LEARN, *LISTS, *HIDE))
UNDESIRABLE = ("label", "kto_tag")
REFUSED_IN_TURNS = {
    "mask": "'mask' may mean either; write train: true or train: false",
    "train_detail": "parts of a turn cannot be learned by themselves; write train: true or train: false",
    "training_detail": "parts of a turn cannot be learned by themselves; write train: true or train: false",
}
_SAID_OF_A_TURN = frozenset((*LEARN, *HIDE, *REFUSED_IN_TURNS))


def of_turn(turn: Mapping[str, Any], where: str) -> bool | None:
    """Whether a turn asks to be learned; None if it does not say.

    Raises:
        RowError: Its keys contradict each other, or ask for something between learning and not.
    """
    if _SAID_OF_A_TURN.isdisjoint(turn):
        return None
    for key, reason in REFUSED_IN_TURNS.items():
        if not is_empty(turn.get(key)):
            raise RowError(f"unclear mask: '{key}'{where}: {reason}")
    said = {key: _flag(turn[key], key, where) for key in (*LEARN, *HIDE) if turn.get(key) is not None}
    if len(set(said.values())) > 1:
        raise RowError(f"contradiction: {' and '.join(map(repr, said))}{where} do not agree")
    return next(iter(said.values()), None)


def of_row(row: Mapping[str, Any], num_turns: int = 0) -> Sequence[bool] | None:
    """What a row's own list says of each turn; None if it has none.

    Raises:
        RowError: The row as a whole is not to be learned, or its list does not fit its turns.
    """
    if MASK_KEYS.isdisjoint(row) and not any(key in row for key in UNDESIRABLE):
        return None
    _refuse_unwanted(row)
    flags: list[bool] | None = None
    for key in LISTS:
        value = row.get(key)
        if not isinstance(value, list) or not value:
            continue
        if len(value) != num_turns:
            raise RowError(f"mask does not fit: '{key}' has {len(value)} values for {num_turns or 'no'} turns")
        found = [_flag(item, key, f", value {i + 1}") for i, item in enumerate(value)]
        if flags is not None and found != flags:
            raise RowError(f"contradiction: '{key}' does not agree with the row's other mask")
        flags = found
    return flags


def _refuse_unwanted(row: Mapping[str, Any]) -> None:
    """Refuse a row that as a whole is not to be learned, or only partly."""
    for key in (*LEARN, *HIDE):
        value = row.get(key)
        is_figure = key == "loss" and not isinstance(value, bool)  # a column of losses, as logs have it
        if value is None or isinstance(value, list | str) or is_figure:
            continue
        if not _flag(value, key, ""):
            raise RowError(
                f"not to be learned: '{key}' is {_show(value)}; data.on_bad_row=skip trains without such rows"
            )
    for key in UNDESIRABLE:
        if row.get(key) in (False, "false", "False"):  # 0 is equal to False
            raise RowError(
                f"undesirable answer: '{key}' is {_show(row[key])}, and training would teach it; "
                "data.on_bad_row=skip trains on the desirable rows alone"
            )


def _flag(value: Any, key: str, where: str) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value) != (key in HIDE)
    if isinstance(value, int | float):
        raise RowError(
            f"weight {value}: '{key}'{where}: strop learns an answer or does not; write 1 or 0, "
            "or repeat whole files with data.train_file's repeat"
        )
    raise RowError(f"not true or false: '{key}'{where} is {_show(value)}")


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:40]
