"""How close does knowledge detection with the offline judge come to the truth?

    python benchmarks/detection.py DATA MODEL OUTPUT [--texts 2000] [--truth SHARES.json] [--mixtures 20] [--workers 2]

DATA has a folder for each domain with train.jsonl.gz and eval.jsonl.gz; MODEL is a Hugging Face folder. Two parts:
mixtures of held-out rows with random shares, and texts that the model writes, compared with --truth (domain -> share,
or {"document_share": {...}}) where it is given. Total variation from the truth, all estimates side by side. A study
that was stopped goes on: OUTPUT keeps the texts. Writes OUTPUT/detection.json.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from orchestrator.cluster.session import ray_session
from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.detection import DetectionConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.prepare.detection.domain_texts import cut_windows, find_domain_texts
from orchestrator.prepare.detection.driver import distribution_view
from orchestrator.prepare.detection.judges import JudgeContext, build_judge
from orchestrator.prepare.detection.judges.base import Calibration, parsed
from orchestrator.prepare.detection.quantification import (
    DetectedDistribution,
    average,
    correct,
    hard_answers,
    total_variation,
)
from orchestrator.prepare.detection.rounds import find_distribution
from workers.model.tokenizer import load_tokenizer

ROWS_PER_MIXTURE = 300
CALIBRATION_ROWS = 300  # of each domain, from the training side


def read_config(data: Path, model: Path, output: Path, num_texts: int, num_workers: int) -> SweepConfig:
    """A configuration that only its detection is used of."""
    return SweepConfig.model_validate(
        {
            "name": "detection",
            "output_dir": str(output),
            "model": {"path": str(model)},
            "domains": {
                folder.name: {"train": str(folder / "train.jsonl.gz"), "eval": str(folder / "eval.jsonl.gz")}
                for folder in sorted(data.iterdir())
                if (folder / "train.jsonl.gz").exists()
            },
            "mixing": {"type": "versatune", "initial": "detected"},
            "training": {"max_steps": 1},
            "detection": {"max_texts": num_texts, "texts_per_round": max(1, num_texts // 2)},
            "cluster": {"num_workers": num_workers},
        }
    )


def measure_mixtures(config: SweepConfig, num_mixtures: int) -> dict[str, list[float]]:
    """Total variation of each estimate on random mixtures of rows that neither judge nor calibration has seen."""
    settings: DetectionConfig = config.detection
    assert settings.judge.type == "classifier"
    tokenizer = load_tokenizer(config.model)
    sources = {name: find_domain_texts(name, domain) for name, domain in config.domains.items()}
    names, max_rows = list(sources), settings.judge.max_rows
    form = settings.calibration.opening_tokens, settings.generation.max_new_tokens

    def windows(name: str, is_held_out: bool, max_rows: int) -> list[str]:
        return cut_windows(tokenizer, sources[name].read(is_held_out, max_rows, config.seed), *form)

    training = {name: windows(name, False, max_rows + CALIBRATION_ROWS) for name in names}
    context = JudgeContext(names, lambda: {name: texts[CALIBRATION_ROWS:] for name, texts in training.items()})
    judge = build_judge(settings.judge, context)

    def judged(texts: list[str]) -> np.ndarray:
        return parsed([answer for _, answer in judge.answers(texts)])[0]

    known = [judged(training[name][:CALIBRATION_ROWS]) for name in names]
    calibration = Calibration(np.concatenate(known), np.repeat(np.arange(len(names)), [len(part) for part in known]))
    held_out = [judged(windows(name, True, 10 * ROWS_PER_MIXTURE)) for name in names]
    rng = np.random.default_rng(config.seed)
    distances: dict[str, list[float]] = {"average": [], "counts": [], "corrected": []}
    for _ in range(num_mixtures):
        counts = rng.multinomial(ROWS_PER_MIXTURE, rng.dirichlet(np.ones(len(names))))
        rows = [part[rng.choice(len(part), n, replace=n > len(part))] for part, n in zip(held_out, counts, strict=True)]
        answers_ND, truth_D = np.concatenate(rows), counts / ROWS_PER_MIXTURE
        distances["average"].append(total_variation(average(answers_ND), truth_D))
        distances["counts"].append(total_variation(average(hard_answers(answers_ND)), truth_D))
        distances["corrected"].append(total_variation(correct(answers_ND, calibration), truth_D))
    return distances


def compare(distribution: DetectedDistribution, truth: dict[str, float]) -> dict[str, float]:
    """Total variation of each estimate, and of the shares that a run would start from."""
    truth_D = np.array([truth[name] for name in distribution.domains])
    shares = {name: estimate.shares for name, estimate in distribution.estimates.items()}
    shares["shares"] = distribution.shares
    return {
        name: total_variation(np.array([by_domain[domain] for domain in distribution.domains]), truth_D)
        for name, by_domain in shares.items()
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "model", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--mixtures", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    config = read_config(given.data, given.model, given.output, given.texts, given.workers)
    console = Console()
    result: dict[str, object] = {"texts": given.texts, "domains": list(config.domains)}
    started = time.monotonic()
    with ray_session(ClusterConfig(num_workers=given.workers)):
        distribution = find_distribution(config, console)
    result |= {"seconds": time.monotonic() - started, "shares": distribution.shares}
    console.print(distribution_view(distribution))
    if given.truth:
        truth = json.loads(given.truth.read_text())
        result["total_variation"] = distances = compare(distribution, truth.get("document_share", truth))
        print("generated texts, total variation: " + ", ".join(f"{k} {v:.4f}" for k, v in distances.items()))
    if given.mixtures:
        mixtures = measure_mixtures(config, given.mixtures)
        print(f"{given.mixtures} mixtures of {ROWS_PER_MIXTURE} held-out rows, total variation, mean and worst:")
        for name, values in mixtures.items():
            print(f"  {name:10} {np.mean(values):.4f}  {np.max(values):.4f}")
        result["mixtures"] = mixtures
    (given.output / "detection.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
