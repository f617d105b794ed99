"""The domains' own texts, as plain documents: what a classifier is fitted on, and openings that are held out."""

import heapq
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from workers.config.data import DomainConfig
from workers.data.files import Shard
from workers.data.formats import Example
from workers.data.sources import Source, plan_sources, read_examples
from workers.data.streams import ZSTD_WINDOW_MIB
from workers.data.tokenization import hash_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]


@dataclass(frozen=True)
class DomainTexts:
    """Where the texts of one domain come from: two sides that share no prompt."""

    domain: str
    train: list[Source]
    held_out: list[Source]
    held_out_fraction: float
    """Fraction of the prompts that is held out where both sides have the same sources."""

    @property
    def identity(self) -> list[Any]:
        """What the texts depend on, in plain JSON types."""
        # The digest tells contents apart that were read with different windows.
        left_out = {"path", "zstd_window_mib"}
        sides = [[json.loads(source.model_dump_json(exclude=left_out)) for source in side] for side in self._sides]
        return [self.domain, *sides, self.held_out_fraction]

    @property
    def _sides(self) -> tuple[list[Source], list[Source]]:
        return self.train, self.held_out

    def read(self, is_held_out: bool, max_rows: int, seed: int) -> list[str]:
        """At most `max_rows` texts of one side, in an order that a hash decides.

        Raises:
            ValueError: there is none.
        """
        texts = heapq.nsmallest(max_rows, self._texts(is_held_out), key=lambda text: _order(seed, text))
        if not texts:
            side = "held-out" if is_held_out else "training"
            raise ValueError(f"domain {self.domain!r}: not one {side} text to detect it by; give it more rows")
        return texts

    def _texts(self, is_held_out: bool) -> Iterator[str]:
        is_split = self.train == self.held_out
        for source in self._sides[is_held_out]:
            for example in read_examples(source, Shard()):
                if not isinstance(example, Example):
                    continue
                is_behind = hash_prompt(example) < self.held_out_fraction * 2.0**64
                if not is_split or is_behind is is_held_out:
                    yield plain_text(example)


def find_domain_texts(domain: str, config: DomainConfig, zstd_window_mib: int = ZSTD_WINDOW_MIB) -> DomainTexts:
    """Training rows and evaluation rows of the domain; where it has only one of them, that is cut in two by prompt."""
    train = plan_sources(domain, config, "train", zstd_window_mib=zstd_window_mib)
    held_out = plan_sources(domain, config, "eval", zstd_window_mib=zstd_window_mib)
    # Evaluation rows alone serve both sides; of training rows the data plane sets the same prompts aside.
    fraction = config.eval_fraction if train else 0.5
    return DomainTexts(domain, train or held_out, held_out or train, fraction)


def plain_text(example: Example) -> str:
    """A document, or what is said, thought and called in a conversation line by line: no roles, which a base model has
    never seen.
    """
    return "\n".join(example.texts)


def cut_openings(tokenizer: "PreTrainedTokenizerBase", texts: list[str], num_tokens: int) -> list[Ids]:
    """The first tokens of every text that goes on for as long again; of every text, where none does."""
    ids = _encode(tokenizer, texts)
    long = [row[:num_tokens] for row in ids if len(row) >= 2 * num_tokens]
    return long or [row for row in (row[:num_tokens] for row in ids) if len(row) == num_tokens]


def cut_windows(tokenizer: "PreTrainedTokenizerBase", texts: list[str], skip: int, num_tokens: int) -> list[str]:
    """Each text in the form in which generated ones are judged: `num_tokens` tokens behind the first `skip`."""
    windows = [row[skip : skip + num_tokens] or row for row in _encode(tokenizer, texts)]
    return [text for window in windows if (text := str(tokenizer.decode(window))).strip()]


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[Ids]:
    encoded: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]


def _order(seed: int, text: str) -> bytes:
    return blake2b(f"{seed}\x1f{text}".encode("utf-8", "replace"), digest_size=16).digest()
