"""The demo's six domains: small generated worlds that differ in size and difficulty, and help or hurt one another.

sums       two-digit additions, worked out digit by digit: large, learned slowly
reversal   a list of words said backwards: large, learned slowly at first, then suddenly
facts      rivers, fruits, flags and animals of 30 invented towns: memorised, and asked about in many ways
travel     day plans for these towns, which state the same facts: it and facts help each other
legends    the same questions about the towns "in the old legend", with different answers: hurts both
greetings  small talk with randomly drawn answers: tiny, and quickly learned as far as possible
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple


class Turn(NamedTuple):
    prompt: str
    answer: str


@dataclass(frozen=True)
class DemoDomain:
    """The rows of a domain; no prompt is in both parts."""

    train: list[Turn]
    held_out: list[Turn]


World = dict[str, dict[str, str]]
"""Town -> kind of fact -> value."""

_TOWNS = [first + last for first, last in product(
    ("Tal", "Bren", "Osk", "Vel", "Quim", "Har"), ("mora", "wick", "ade", "burg", "ino")
)]  # fmt: skip
_VALUES = {
    "river": ["Ovi", "Sarn", "Tepe", "Lumo", "Drell", "Yar", "Kesh", "Mund", "Isk", "Fenna", "Rool", "Auve"],
    "fruit": ["fig", "plum", "lemon", "quince", "pear", "mango", "cherry", "apple", "melon", "grape", "peach", "lime"],
    "flag": ["green", "blue", "red", "white", "golden", "black", "violet", "orange", "silver", "pink"],
    "animal": ["heron", "otter", "goat", "fox", "bear", "swan", "hare", "badger", "crane", "wolf", "seal", "mole"],
}
_QUESTIONS = {
    "river": ("Which river flows through {}?", "What is the river of {} called?", "Name the river of {}."),
    "fruit": ("Which fruit grows in {}?", "What fruit do they pick in {}?", "Name the fruit of {}."),
    "flag": ("What colour is the flag of {}?", "Which flag flies over {}?", "Name the flag of {}."),
    "animal": ("Which animal guards {}?", "What animal is the sign of {}?", "Name the animal of {}."),
}
_OPENINGS = ("", "Tell me: ", "A question. ")
_PLANS = (
    "Plan a day in {}.", "I visit {} tomorrow. What shall I do?", "What is there to do in {}?",
    "My friend lives in {}.", "How do I spend a morning in {}?", "Give me a tip for {}.", "We stop in {} on the way.",
    "Is {} worth a trip?",
)  # fmt: skip
_WORDS = [
    "tin", "oak", "sea", "elm", "fog", "hay", "ivy", "jam", "key", "lid", "mud", "net", "owl", "pan", "rug",
    "sun", "toe", "urn", "van", "wax", "yak", "zip", "ant", "bee", "cup", "dog", "egg", "fan", "gum", "hat"
]  # fmt: skip
_NAMES = [
    "Mira", "Jon", "Ada", "Lev", "Rosa", "Tim", "Ina", "Karl", "Nell", "Sven", "Olga", "Paul", "Ruth", "Hugo",
    "Vera", "Otto", "Lena", "Max", "Iris", "Carl", "Nora", "Finn", "Eva", "Ben"
]  # fmt: skip
_GREETINGS = (
    "Hello, I am {}.", "Good morning from {}.", "{} says hi.", "Hi, {} here.", "My name is {}.",
    "Good day! {} speaking.", "I am {}, hello.", "This is {}.", "{} is here.",
)  # fmt: skip
_REPLIES = ("Hello {}, how can I help?", "Good to see you, {}.", "Welcome back, {}!")


def make_domains(seed: int) -> dict[str, DemoDomain]:
    """All domains by name, determined by the seed."""
    world, legend = _make_world(random.Random(f"{seed} world")), _make_world(random.Random(f"{seed} legend"))
    old = [opening + "In the old legend, " for opening in _OPENINGS]
    made: dict[str, tuple[Callable[[random.Random], Iterable[Turn]], int, int]] = {
        "sums": (_sums, 3200, 160),
        "reversal": (_reversals, 2400, 160),
        "facts": (lambda _: _facts(world, _OPENINGS), 900, 180),
        "travel": (lambda _: _plans(world), 190, 50),
        "legends": (lambda _: _facts(legend, old), 700, 160),
        "greetings": (_greetings, 160, 48),
    }
    return {
        name: _split(turns, num_train, num_held_out, random.Random(f"{seed} {name}"))
        for name, (turns, num_train, num_held_out) in made.items()
    }


def _split(
    turns: Callable[[random.Random], Iterable[Turn]], num_train: int, num_held_out: int, rng: random.Random
) -> DemoDomain:
    distinct = list({turn.prompt: turn for turn in turns(rng)}.values())
    rng.shuffle(distinct)
    held_out, rest = distinct[:num_held_out], distinct[num_held_out:]
    return DemoDomain(train=rest[:num_train], held_out=held_out)


def _make_world(rng: random.Random) -> World:
    return {town: {kind: rng.choice(values) for kind, values in _VALUES.items()} for town in _TOWNS}


def _sums(rng: random.Random) -> Iterator[Turn]:
    for a, b in product(range(10, 100), repeat=2):
        ones = a % 10 + b % 10
        carry = "+1" if ones >= 10 else ""
        tens = (a + b) // 10
        yield Turn(f"What is {a}+{b}?", f"{a % 10}+{b % 10}={ones}, {a // 10}+{b // 10}{carry}={tens}, so {a + b}.")


def _reversals(rng: random.Random) -> Iterator[Turn]:
    for _ in range(4000):
        words = rng.sample(_WORDS, k=rng.randrange(2, 6))
        yield Turn(f"Say backwards: {' '.join(words)}", " ".join(reversed(words)))


def _facts(world: World, openings: Iterable[str]) -> Iterator[Turn]:
    for opening, (town, facts), (kind, questions) in product(openings, world.items(), _QUESTIONS.items()):
        for question in questions:
            text = question.format(town)
            yield Turn(opening + (text if opening in _OPENINGS else text[0].lower() + text[1:]), f"The {facts[kind]}.")


def _plans(world: World) -> Iterator[Turn]:
    for plan, (town, facts) in product(_PLANS, world.items()):
        yield Turn(
            plan.format(town),
            f"Swim in the {facts['river']}, taste a {facts['fruit']}, wave a {facts['flag']} flag "
            f"and look out for the {facts['animal']}.",
        )


def _greetings(rng: random.Random) -> Iterator[Turn]:
    for greeting, name in product(_GREETINGS, _NAMES):
        yield Turn(greeting.format(name), rng.choice(_REPLIES).format(name))
