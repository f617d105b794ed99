"""Which answers are to be learned: what the messages say themselves, and `train_on`."""

from collections.abc import Mapping, Sequence
from typing import Any

from workers.config.data import TrainOn
from workers.data.formats.example import Message, says_something
from workers.data.formats.values import Row, RowError, is_blank, kind_of

_LEARN = ("weight", "loss_weight", "loss_scale", "train", "training", "trainable", "learn", "loss")
_LEAVE = ("masked", "mask")
# Stretches of an answer by their characters.
_PARTS = ("train_detail", "training_detail")
# Whether somebody liked the answer: not the same as whether to learn it.
_OPINIONS = ("label", "kto_tag", "desirable", "chosen", "rejected")
MARKS = frozenset((*_LEARN, *_LEAVE, *_PARTS, *_OPINIONS))
"""Keys of a message that say whether it is one to learn."""

_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def read_mark(turn: Row, role: str, where: str) -> bool | None:
    """Whether a message says that it is to be learned; None where it says nothing."""
    said = {name: read_switch(turn[name], f"{where}: `{name}`") for name in _LEARN if not is_blank(turn.get(name))}
    said |= {name: not read_switch(turn[name], f"{where}: `{name}`") for name in _LEAVE if not is_blank(turn.get(name))}
    if parts := [name for name in _PARTS if not is_blank(turn.get(name))]:
        raise RowError(f"parts of an answer are marked: {where} has `{parts[0]}`; raymix learns an answer whole or not")
    if opinions := [name for name in _OPINIONS if isinstance(turn.get(name), bool)]:
        raise RowError(
            f"preference data: {where} has `{opinions[0]}`; say with `weight` 0 or 1 whether to learn the answer"
        )
    if len(set(said.values())) > 1:
        raise RowError(f"contradiction: {where} is to be learned and not, by {', '.join(f'`{name}`' for name in said)}")
    if not said:
        return None
    name, is_learned = next(iter(said.items()))
    if is_learned and role != "assistant":
        raise RowError(
            f"only answers are learned: {where} is by the {role}, and `{name}` says to learn it; take `{name}` out"
        )
    return is_learned


def read_switch(value: Any, place: str, remedy: str = "give 0 or 1") -> bool:
    """A weight as yes or no; RowError for any other than 0 and 1."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    if isinstance(value, int | float):
        raise RowError(f"weight other than 0 and 1: {place} is {value}; raymix has no fractional weights, {remedy}")
    raise RowError(f"wrong type: {place} is {kind_of(value)}, not 0, 1, true or false; {remedy}")


def find_learned(messages: Sequence[Message], marks: Mapping[int, bool], train_on: TrainOn) -> tuple[bool, ...]:
    """Whether each message is one to learn; () where every answer is.

    Raises:
        RowError: nothing is left to learn.
    """
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = set(answers[-1:] if train_on == "last" else answers)
    learned = tuple(index in wanted and marks.get(index, True) for index in range(len(messages)))
    if not any(is_learned and says_something(message) for is_learned, message in zip(learned, messages, strict=True)):
        why = "all have weight 0"
        if train_on == "last":
            is_blank_one = marks.get(answers[-1], True)
            why = f"train_on is last, and the last one {'is blank' if is_blank_one else 'has weight 0'}"
        raise RowError(f"no answer to learn from ({why})")
    return () if all(learned[index] for index in answers) else learned
