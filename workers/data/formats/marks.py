"""Which answers are trained on: by marks in the messages, and by `train_on`."""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.config.data import TrainOn
from workers.data.formats.example import Message, says_something
from workers.data.formats.values import Row, RowError, is_blank, kind_of

_LEARN = ("weight", "loss_weight", "loss_scale", "train", "training", "trainable", "learn", "loss")
_LEAVE = ("masked", "mask")
# Parts of an answer, by their characters.
_PARTS = ("train_detail", "training_detail")
# Whether an annotator liked the answer, which is not the same as whether to train on it.
_OPINIONS = ("label", "kto_tag", "desirable", "chosen", "rejected")
MARKS = frozenset((*_LEARN, *_LEAVE, *_PARTS, *_OPINIONS))
"""Keys of a message that say whether it is trained on."""

_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def read_mark(turn: Row, role: str, where: str) -> bool | None:
    """Whether a message is marked to be trained on; None without a mark."""
    said = {name: read_switch(turn[name], f"{where}: `{name}`") for name in _LEARN if not is_blank(turn.get(name))}
    said |= {name: not read_switch(turn[name], f"{where}: `{name}`") for name in _LEAVE if not is_blank(turn.get(name))}
    if parts := [name for name in _PARTS if not is_blank(turn.get(name))]:
        raise RowError(f"parts of an answer are marked: {where} has `{parts[0]}`; raymix trains on whole answers only")
    if opinions := [name for name in _OPINIONS if isinstance(turn.get(name), bool)]:
        raise RowError(
            f"preference data: {where} has `{opinions[0]}`; use `weight` 0 or 1 to say whether to train on the answer"
        )
    if len(set(said.values())) > 1:
        raise RowError(f"contradiction: {where} is included and excluded, by {', '.join(f'`{name}`' for name in said)}")
    if not said:
        return None
    name, is_learned = next(iter(said.items()))
    if is_learned and role != "assistant":
        raise RowError(
            f"only answers are trained on: {where} is by the {role}, but `{name}` includes it; remove `{name}`"
        )
    return is_learned


def read_switch(value: Any, place: str, remedy: str = "give 0 or 1") -> bool:
    """A weight as a boolean; RowError for any value other than 0 and 1."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    if isinstance(value, int | float):
        raise RowError(f"weight other than 0 and 1: {place} is {value}; raymix has no fractional weights, {remedy}")
    raise RowError(f"wrong type: {place} is {kind_of(value)}, not 0, 1, true or false; {remedy}")


def find_learned(messages: Sequence[Message], marks: Mapping[int, bool], train_on: TrainOn) -> tuple[bool, ...]:
    """Whether each message is trained on; () if every answer is.

    Raises:
        RowError: nothing is left to train on.
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = set(answers[-1:] if train_on == "last" else answers)
    learned = tuple(index in wanted and marks.get(index, True) for index in range(len(messages)))
    if not any(is_learned and says_something(message) for is_learned, message in zip(learned, messages, strict=True)):
        why = "all have weight 0"
        if train_on == "last":
            is_blank_one = marks.get(answers[-1], True)
            why = f"train_on is last, and the last answer {'is blank' if is_blank_one else 'has weight 0'}"
        raise RowError(f"no answer to learn from ({why})")
    return () if all(learned[index] for index in answers) else learned
