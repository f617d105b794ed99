"""The domains' own texts as plain documents, for fitting a classifier and for held-out openings, and where a detection
keeps its files.
"""

import heapq
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.detection import ClassifierJudgeConfig
from orchestrator.config.run import RunConfig
from workers.config.data import DomainConfig
from workers.config.model import ModelConfig
from workers.data.files import Shard
from workers.data.formats.example import Example
from workers.data.reading import ZSTD_WINDOW_MIB
from workers.data.sources import Source, plan_sources, read_examples
from workers.data.tokenization import hash_prompt
from workers.fingerprint import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
_VERSION = 1  # of the estimates: incremented when the same texts and answers would give other shares
_WITHOUT_EFFECT = {"concurrency", "max_attempts", "max_pause_seconds", "timeout_seconds"}


@dataclass(frozen=True)
class DomainTexts:
    """The sources of one domain's texts: two sides that share no prompt."""

    domain: str
    train: list[Source]
    held_out: list[Source]
    held_out_fraction: float
    """Fraction of the prompts that is held out if both sides have the same sources."""

    @property
    def identity(self) -> list[Any]:
        """What the texts depend on, in plain JSON types."""
        # The digest already distinguishes contents that were read with different windows.
        left_out = {"path", "zstd_window_mib"}
        both = (self.train, self.held_out)
        sides = [[json.loads(source.model_dump_json(exclude=left_out)) for source in side] for side in both]
        return [self.domain, *sides, self.held_out_fraction]

    def read(self, is_held_out: bool, max_rows: int, seed: int) -> list[str]:
        """At most `max_rows` texts of one side, chosen and ordered by a hash; ValueError if there are none."""

        def order(text: str) -> bytes:
            return blake2b(f"{seed}\x1f{text}".encode("utf-8", "replace"), digest_size=16).digest()

        texts = heapq.nsmallest(max_rows, self._texts(is_held_out), key=order)
        if not texts:
            side = "held-out" if is_held_out else "training"
            raise ValueError(f"domain {self.domain!r}: no {side} text for the detection; give it more rows")
        return texts

    def _texts(self, is_held_out: bool) -> Iterator[str]:
        is_split = self.train == self.held_out
        for source in self.held_out if is_held_out else self.train:
            for example in read_examples(source, Shard()):
                if not isinstance(example, Example):
                    continue
                is_behind = hash_prompt(example) < self.held_out_fraction * 2.0**64
                if not is_split or is_behind is is_held_out:
                    yield plain_text(example)


def find_domain_texts(domain: str, config: DomainConfig, zstd_window_mib: int = ZSTD_WINDOW_MIB) -> DomainTexts:
    """Training and evaluation rows of the domain; if it has only one of them, these are divided in two by prompt.

    ValueError for a streamed domain: its texts are chosen from all of them.
    """
    if config.streaming:
        raise ValueError(
            f"domains.{domain}.streaming: all texts of the domain would be read; remove it, or name a sample of its "
            "files in `train`"
        )
    train = plan_sources(domain, config, "train", zstd_window_mib=zstd_window_mib)
    held_out = plan_sources(domain, config, "eval", zstd_window_mib=zstd_window_mib)
    # Evaluation rows alone are divided in half; of training rows, the token stores hold out the same prompts.
    fraction = config.eval_fraction if train else 0.5
    return DomainTexts(domain, train or held_out, held_out or train, fraction)


def plain_text(example: Example) -> str:
    """A document, or the texts of a conversation (speech, thoughts, calls) line by line, without roles, which a base
    model has never seen.
    """
    return "\n".join(example.texts)


def cut_openings(tokenizer: "PreTrainedTokenizerBase", texts: list[str], num_tokens: int) -> list[Ids]:
    """The first tokens of every text that is at least twice as long; of every long enough text if there are none."""
    ids = _encode(tokenizer, texts)
    long = [row[:num_tokens] for row in ids if len(row) >= 2 * num_tokens]
    return long or [row for row in (row[:num_tokens] for row in ids) if len(row) == num_tokens]


def cut_windows(tokenizer: "PreTrainedTokenizerBase", texts: list[str], skip: int, num_tokens: int) -> list[str]:
    """Each text in the form in which generated ones are judged: `num_tokens` tokens after the first `skip`."""
    windows = [row[skip : skip + num_tokens] or row for row in _encode(tokenizer, texts)]
    return [text for window in windows if (text := str(tokenizer.decode(window))).strip()]


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[Ids]:
    encoded: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]


@dataclass(frozen=True)
class Places:
    """The folders of one detection, named by a digest of everything that their content depends on.

        <output_dir>/detection/texts-<hash>/          free texts: model, settings of generation, seed
                               <domain>-<hash>/       continuations of the domain's openings: the same and its held-out
                                                      rows
                               answers-<hash>.jsonl   the judge's answers: its settings, domains, what it was fitted on
                               result-<hash>/         distribution.json, distribution.html

    So a killed detection resumes, another judge uses the same texts, and a finished detection is only read.
    """

    texts: Path
    continuations: dict[str, Path]
    answers: Path
    result: Path

    @classmethod
    def of(cls, config: RunConfig, domains: Mapping[str, DomainTexts]) -> "Places":
        root = config.output_dir.resolve() / "detection"
        settings = config.detection
        model = model_identity(config.model)
        # Free texts are stored without their openings, so they depend on the openings' length.
        writing = [model, settings.generation.model_dump(), settings.calibration.opening_tokens, config.seed]
        sources = [texts.identity for texts in domains.values()]
        judging: list[Any] = [settings.judge.model_dump(mode="json", exclude=_WITHOUT_EFFECT), list(domains)]
        if isinstance(settings.judge, ClassifierJudgeConfig):
            judging += [sources, writing]
        everything = [_VERSION, writing, sources, judging, settings.model_dump(mode="json"), config.trained_domains]
        return cls(
            texts=root / f"texts-{fingerprint(writing)}",
            continuations={
                name: root / f"{name}-{fingerprint([writing, settings.calibration.model_dump(), texts.identity])}"
                for name, texts in domains.items()
            },
            answers=root / f"answers-{fingerprint(judging)}.jsonl",
            result=root / f"result-{fingerprint(everything)}",
        )


def model_identity(model: ModelConfig) -> list[Any]:
    """What identifies the model: the files of a folder, or name and revision on the hub."""
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        return [model.path, model.revision, model.dtype]
    files = sorted(path for pattern in ("*.safetensors", "*.json") for path in folder.glob(pattern))
    # Weights are compared by size and time, as hashing them would take minutes.
    stats = [(path.name, path.stat()) for path in files]
    return [str(folder.resolve()), model.dtype, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]
