"""Where a detection keeps its files: folders named by everything that their content depends on.

    <output_dir>/detection/texts-<hash>/          free texts: model, way of writing, seed
                           <domain>-<hash>/       continuations of the domain's openings: these and its held-out rows
                           answers-<hash>.jsonl   what the judge said: settings, domains, what it was fitted on
                           result-<hash>/         distribution.json, distribution.html

So a detection goes on where it was killed, another judge reads the same texts, and a finished one is only read.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.detection import ClassifierJudgeConfig
from orchestrator.config.run import RunConfig
from orchestrator.prepare.detection.domain_texts import DomainTexts
from workers.config.model import ModelConfig

_VERSION = 1  # of the estimates: raised when the same texts and answers would give other shares
_WITHOUT_EFFECT = {"concurrency", "max_attempts", "max_pause_seconds", "timeout_seconds"}


@dataclass(frozen=True)
class Places:
    """The folders of one detection."""

    texts: Path
    continuations: dict[str, Path]
    answers: Path
    result: Path

    @classmethod
    def of(cls, config: RunConfig, domains: Mapping[str, DomainTexts]) -> "Places":
        """The folders for this configuration."""
        root = config.output_dir.resolve() / "detection"
        settings = config.detection
        model = model_identity(config.model)
        # The judge of free texts takes their openings off, so they depend on the openings' length.
        writing = [model, settings.generation.model_dump(), settings.calibration.opening_tokens, config.seed]
        sources = [texts.identity for texts in domains.values()]
        judging: list[Any] = [settings.judge.model_dump(mode="json", exclude=_WITHOUT_EFFECT), list(domains)]
        if isinstance(settings.judge, ClassifierJudgeConfig):
            judging += [sources, writing]
        everything = [_VERSION, writing, sources, judging, settings.model_dump(mode="json"), config.trained_domains]
        return cls(
            texts=root / f"texts-{_digest(writing)}",
            continuations={
                name: root / f"{name}-{_digest([writing, settings.calibration.model_dump(), texts.identity])}"
                for name, texts in domains.items()
            },
            answers=root / f"answers-{_digest(judging)}.jsonl",
            result=root / f"result-{_digest(everything)}",
        )


def model_identity(model: ModelConfig) -> list[Any]:
    """What tells this model from another: the files of a folder, or name and revision on the hub."""
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        return [model.path, model.revision, model.dtype]
    files = sorted(path for pattern in ("*.safetensors", "*.json") for path in folder.glob(pattern))
    # Weights are told apart by size and time, as a hash of all of them would take minutes.
    return [str(folder.resolve()), model.dtype, [[path.name, *_size_and_time(path)] for path in files]]


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(identity: Any) -> str:
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=6).hexdigest()
