"""Where a detection keeps its files: in folders named by a digest of everything that their content depends on.

    <output_dir>/detection/texts-<hash>/          free texts: model, settings of generation, seed
                           <domain>-<hash>/       continuations of the domain's openings: the same and its held-out rows
                           answers-<hash>.jsonl   the judge's answers: its settings, domains, what it was fitted on
                           result-<hash>/         distribution.json, distribution.html

So a killed detection resumes, another judge uses the same texts, and a finished detection is only read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.detection import ClassifierJudgeConfig
from orchestrator.config.run import RunConfig
from orchestrator.prepare.detection.domain_texts import DomainTexts
from workers.config.model import ModelConfig
from workers.fingerprint import fingerprint

_VERSION = 1  # of the estimates: incremented when the same texts and answers would give other shares
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
