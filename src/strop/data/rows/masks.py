"""Which answers a row asks to be learned, under the names that other tools use.

On a turn or on the row: true or 1 learns, false or 0 does not (`masked` is the other way round); on the row also a list
with one value for each turn. An answer that is not learned is still read as context.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from strop.data.rows.fields import RowError, is_empty, parsed

LEARN = ("train", "training", "trainable", "learn", "loss", "loss_mask", "loss_masks", "weight", "weights")
HIDE = ("masked",)
TURN_KEYS = (*LEARN, *HIDE)
ROW_KEYS = (*TURN_KEYS, "assistant_masks", "assistant_mask", "train_mask")
UNDESIRABLE = ("label", "kto_tag")
UNCLEAR = {
    **dict.fromkeys(
        ("mask", "is_masked", "ignore", "loss_weight"), "it may mean either; write train: true or train: false"
    ),
    "train_detail": "parts of a turn cannot be learned by themselves; write train: true or train: false",
    "training_detail": "parts of a turn cannot be learned by themselves; write train: true or train: false",
}
OF_A_TURN = frozenset((*TURN_KEYS, *UNCLEAR))
_SAID_OF_A_ROW = frozenset((*ROW_KEYS, *UNCLEAR))
_WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
"""As the cells of a CSV file have them."""


def of_turn(turn: Mapping[str, Any], where: str) -> bool | None:
    """Whether a turn asks to be learned; None if it does not say.

    Raises:
        RowError: Its keys contradict each other, or ask for something between learning and not.
    """
    if OF_A_TURN.isdisjoint(turn):
        return None
    _refuse_unclear(turn, where)
    said = {key: _flag(turn[key], key, where) for key in TURN_KEYS if not is_empty(turn.get(key))}
    if len(set(said.values())) > 1:
        raise RowError(f"contradiction: {' and '.join(map(repr, said))}{where} do not agree")
    return next(iter(said.values()), None)


def _refuse_unclear(values: Mapping[str, Any], where: str) -> None:
    for key, reason in UNCLEAR.items():
        if not is_empty(values.get(key)):
            raise RowError(f"unclear mask: '{key}'{where}: {reason}")


def of_row(row: Mapping[str, Any], unused: set[str], num_turns: int = 0) -> Sequence[bool] | None:
    """What a row's own list says of each turn; None if it has none.

    Args:
        row: The row.
        unused: Told of those of `ROW_KEYS` that say nothing about learning, such as a loss as logs have it.
        num_turns: Of the row.

    Raises:
        RowError: The row as a whole is not to be learned, or its list does not fit its turns.
    """
    if _SAID_OF_A_ROW.isdisjoint(row):
        return None
    flags: list[bool] | None = None
    _refuse_unclear(row, "")
    for key in ROW_KEYS:
        value = row.get(key)
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = parsed(value, f"'{key}'")
        if is_empty(value):
            continue
        if isinstance(value, list):
            found = _of_each(value, key, num_turns)
            if flags is not None and found != flags:
                raise RowError(f"contradiction: '{key}' does not agree with the row's other mask")
            flags = found
        elif _says_nothing(value, key):
            unused.add(key)
        elif not _flag(value, key, ""):
            raise RowError(
                f"not to be learned: '{key}' is {_show(value)}; data.on_bad_row=skip trains without such rows"
            )
    return flags


def refuse_undesirable(row: Mapping[str, Any], unused: set[str]) -> None:
    """Refuse a row whose answer is marked as one not to give (KTO).

    Args:
        row: The row, without the columns that have a part of it.
        unused: Told of a label that means something else.

    Raises:
        RowError: It is.
    """
    for key in UNDESIRABLE:
        value = row.get(key)
        word = value.strip().lower() if isinstance(value, str) else value
        if word in (False, "false"):  # 0 is equal to False
            raise RowError(
                f"undesirable answer: '{key}' is {_show(value)}, and training would teach it; "
                "data.on_bad_row=skip trains on the desirable rows alone"
            )
        if word is not True and word != "true" and not is_empty(value):
            unused.add(key)


def _of_each(value: list[Any], key: str, num_turns: int) -> list[bool]:
    if len(value) != num_turns:
        raise RowError(f"mask does not fit: '{key}' has {len(value)} values for {num_turns or 'no'} turns")
    return [_flag(item, key, f", value {i + 1}") for i, item in enumerate(value)]


def _says_nothing(value: Any, key: str) -> bool:
    """Whether the value of a row's key is about something else: a word, or a loss as logs have it."""
    if key not in TURN_KEYS:  # a list or nothing
        return True
    if isinstance(value, str):
        return value.strip().lower() not in ("true", "false") and (key == "loss" or not _is_number(value))
    return key == "loss" and not isinstance(value, bool)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _flag(value: Any, key: str, where: str) -> bool:
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value) != (key in HIDE)
    if isinstance(value, int | float) or (isinstance(value, str) and _is_number(value)):
        raise RowError(
            f"weight {value}: '{key}'{where}: strop learns an answer or does not; write 1 or 0, "
            "or repeat whole files with data.train_file's repeat"
        )
    raise RowError(f"not true or false: '{key}'{where} is {_show(value)}")


def _show(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:40]
