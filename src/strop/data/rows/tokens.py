"""Rows that are tokenised already: ids, with TRL's masks or Hugging Face's labels; padding is dropped."""

from collections.abc import Mapping
from typing import Any

from strop.data.examples import Tokens
from strop.data.rows import masks
from strop.data.rows.fields import RowError, get, is_empty
from strop.readable import counted

_MASKS = ("assistant_masks", "assistant_mask", "completion_mask", "loss_mask", "train_mask")
TOKEN_KEYS = (*_MASKS, "input_ids", "labels", "attention_mask", "position_ids", "seq_lengths")


def read_tokens(row: Mapping[str, Any], unused: set[str]) -> Tokens:
    """A tokenised row.

    Raises:
        RowError: A mask does not fit, nothing is learned, or the row holds several samples.
    """
    ids = _integers(row, "input_ids")
    seen = _of_length(row, "attention_mask", [1] * len(ids))
    _refuse_packed(row, seen)
    learned = [True] * len(ids)
    of_tokens = [key for key in _MASKS if isinstance(row.get(key), list) and row[key]]
    masks.of_row({key: value for key, value in row.items() if key not in of_tokens}, unused)
    for key in of_tokens:
        mask = _of_length(row, key, ids)
        if other := next((value for value in mask if value not in (0, 1)), None):
            raise RowError(f"weight {other}: '{key}': a token is learned or not; write 1 or 0")
        learned = [bool(value) and was for value, was in zip(mask, learned, strict=True)]
    labels = _of_length(row, "labels", ids)
    if any(label not in (-100, token) for label, token, is_seen in zip(labels, ids, seen, strict=True) if is_seen):
        raise RowError("bad labels: each must be -100 or the token at its place")
    kept = [i for i, is_seen in enumerate(seen) if is_seen]
    found = Tokens(tuple(ids[i] for i in kept), tuple(learned[i] and labels[i] != -100 for i in kept))
    if not any(found.learned[1:]):
        raise RowError("not to be learned: no token of this row is learned")
    return found


def _refuse_packed(row: Mapping[str, Any], seen: list[int]) -> None:
    """Refuse several samples in one row, which must not attend to each other."""
    lengths = _integers(row, "seq_lengths") if not is_empty(row.get("seq_lengths")) else []
    positions = _of_length(row, "position_ids", list(range(len(seen))))
    kept = [position for position, is_seen in zip(positions, seen, strict=True) if is_seen]
    if len(lengths) > 1 or kept != list(range(kept[0] if kept else 0, len(kept) + (kept[0] if kept else 0))):
        raise RowError("packed: 'seq_lengths' or 'position_ids' name several samples; write a row for each")
    if any(mask not in (0, 1) for mask in seen):
        raise RowError("packed: 'attention_mask' counts several samples; write a row for each, and 0 or 1 in it")


def _integers(row: Mapping[str, Any], key: str) -> list[int]:
    value = get(row, key)
    if not isinstance(value, list) or not all(type(item) in (int, bool) for item in value):
        raise RowError(f"not token ids: '{key}' must be a list of integers")
    return value


def _of_length(row: Mapping[str, Any], key: str, default: list[int]) -> list[int]:
    """A list with a value for each token; the default if the row has none."""
    if is_empty(row.get(key)):
        return default
    value = _integers(row, key)
    if len(value) != len(default):
        raise RowError(
            f"mask does not fit: '{key}' has {counted(len(value), 'value')} for {counted(len(default), 'token')}"
        )
    return value
