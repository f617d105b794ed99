"""All four methods on real data, at equal tokens and over several seeds: one table, one JSON file.

    python benchmarks/methods.py DATA MODEL OUTPUT [--target law] [--tokens 100000] [--seeds 3] [--groups mixing stages]
                                 [--rows uniform versatune]

DATA has a folder for each domain with train.jsonl.gz and eval.jsonl.gz, three of them `general`, `math` and `code`;
MODEL is a Hugging Face folder. Every group of rows is a `raymix compare`, one worker a run, as many side by side as the
machine has cores; stopped and started again it goes on. 78 runs, meant to take less than two hours on two cores with a
model of 7 M parameters. What the model knows is detected once and reference losses are computed once, for all seeds.

    mixing      uniform, proportional, inverse; VersaTune constant (from MODEL/pretraining.json where it knows the
                distribution, and as detected) and with feedback; Mixture-of-Skills and MoSpec
    expansion   the target alone, the target and the rest evenly, VersaTune's expansion
    stages      DMT's strategies: multi-task, sequential, mixed sequential, DMT with k of the specialised data
    strategies  full fine-tuning on the target against CoFiTune without, with the gradient's, with the update's mask

A row's budget is `tokens` at its initial mixture, divided evenly among its stages.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from orchestrator.sweeps.compare.page import estimate_cell
from orchestrator.sweeps.compare.results import (
    ELSEWHERE,
    EVALUATION_SECONDS,
    MEAN,
    NUM_TOKENS,
    SIGNAL_SECONDS,
    TARGET_GAIN,
    TRAINING_SECONDS,
    WORST,
    Comparison,
    MeanEstimate,
)

RAYMIX = [sys.executable, "-m", "orchestrator.cli.main"]
SPECIALISED, GENERAL = ["math", "code"], ["general"]
GLOBAL_BATCH_SIZE, MAX_LENGTH = 4, 512
MASKS = ("none", "gradient", "update")
MEASURES = {"mean": MEAN, "worst": WORST, "target gain": TARGET_GAIN, "others' change": ELSEWHERE}
AMOUNTS = (NUM_TOKENS, TRAINING_SECONDS, EVALUATION_SECONDS, SIGNAL_SECONDS)
Variants = dict[str, dict[str, Any]]


def mixing_variants(target: str, known: dict[str, float] | None, detected: str, reference: str) -> Variants:
    """Who decides the shares."""
    rows: Variants = {name: {"mixing": {"type": name}} for name in ("uniform", "proportional", "inverse")}
    rows["inverse"]["mixing"]["initial"] = detected
    if known is not None:
        rows["versatune-constant-known"] = {"mixing": {"type": "fixed", "shares": known}}
    rows["versatune-constant-detected"] = {"mixing": {"type": "fixed", "shares": detected}}
    rows["versatune"] = {"mixing": {"type": "versatune", "initial": detected, "reference": reference}}
    for reward in ("similarity", "perplexity"):
        skills = {"type": "mixture_of_skills", "reward": reward}
        rows[f"mos-{reward}"] = {"mixing": skills | {"ema": False}}
        rows[f"mos-{reward}-ema"] = {"mixing": skills | {"ema": True}}
        rows[f"mospec-{reward}-ema"] = {"mixing": skills | {"ema": True, "target": target}}
    return rows


def expansion_variants(target: str, detected: str, reference: str) -> Variants:
    """How one domain is learned without forgetting the others."""
    return {
        "target-only": {"mixing": {"type": "target", "target": target, "share": 1.0}},
        "target-and-rest": {"mixing": {"type": "target", "target": target, "share": 0.5}},
        "versatune-expansion": {
            "mixing": {"type": "versatune", "initial": detected, "reference": reference, "target": target}
        },
    }


def stage_variants(num_tokens: int) -> Variants:
    """DMT's strategies. Concatenation of the sets, as in the paper, is what `proportional` mixes."""
    two = {"specialised": SPECIALISED, "general": GENERAL, "max_tokens": num_tokens // 2}
    sequence = [*SPECIALISED, *GENERAL]
    plans: dict[str, dict[str, Any]] = {
        "multi-task": {"plan": "multi_task", "max_tokens": num_tokens},
        "sequential": {"plan": "sequential", "order": sequence, "max_tokens": num_tokens // len(sequence)},
        "mixed-sequential": {"plan": "mixed_sequential", **two},
    }
    plans |= {f"dmt-1-{part}": {"plan": "dmt", "k": 1 / part, **two} for part in (256, 16, 4)}
    return {name: {"mixing": {"type": "proportional"}, "stages": plan} for name, plan in plans.items()}


def strategy_variants() -> Variants:
    """Which parameters move when the target alone is trained on."""
    rows: Variants = {"full": {"training.strategy": {"type": "full"}}}
    for mask in MASKS:
        rows[f"cofitune-mask-{mask}"] = {"training.strategy": {"type": "cofitune", "mask": mask}}
    return rows


def measure_once(given: argparse.Namespace) -> None:
    """distribution.json and reference.json, which the rows of several groups start from."""
    output = given.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    data = given.data.resolve()
    config = base_config(data, given.model.resolve(), output, domain_names(data), given.tokens) | {"name": "measured"}
    path = output / "measured.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    for verb, name in (("detect", "distribution.json"), ("reference", "reference.json")):
        if not (output / name).exists():
            subprocess.run([*RAYMIX, verb, str(path), "--output", str(output / name)], check=True)


def domain_names(data: Path) -> list[str]:
    """Folders of DATA that hold a domain."""
    return [folder.name for folder in sorted(data.iterdir()) if (folder / "train.jsonl.gz").exists()]


def write_configs(given: argparse.Namespace) -> dict[str, Path]:
    """A configuration for each group."""
    data, output = given.data.resolve(), given.output.resolve()
    measured = (str(output / "distribution.json"), str(output / "reference.json"))
    names = domain_names(data)
    pretraining = given.model / "pretraining.json"
    known = json.loads(pretraining.read_text()).get("document_share") if pretraining.exists() else None
    variants = {
        "mixing": mixing_variants(given.target, known, *measured),
        "expansion": expansion_variants(given.target, *measured),
        "stages": stage_variants(given.tokens),
        "strategies": strategy_variants(),
    }
    trained = dict.fromkeys(variants, names) | {"stages": [*SPECIALISED, *GENERAL], "strategies": [given.target]}
    paths = {}
    for group in given.groups:
        config = base_config(data, given.model.resolve(), output, names, given.tokens)
        for name in set(names) - set(trained[group]):
            config["domains"][name]["fraction"] = 0.0
        chosen = {name: row for name, row in variants[group].items() if not given.rows or name in given.rows}
        config |= {"name": group, "compare": {"target": given.target, "variants": chosen}}
        if group == "stages":
            config["compare"]["target"] = GENERAL[0]
        output.mkdir(parents=True, exist_ok=True)
        if chosen:
            paths[group] = output / f"{group}.yaml"
            paths[group].write_text(yaml.safe_dump(config, sort_keys=False))
    return paths


def base_config(data: Path, model: Path, output: Path, names: list[str], num_tokens: int) -> dict[str, Any]:
    """What all groups have in common."""
    return {
        "output_dir": str(output),
        "model": {"path": str(model), "dtype": "bfloat16"},
        "domains": {
            name: {part: str(data / name / f"{part}.jsonl.gz") for part in ("train", "eval")} for name in names
        },
        "data": {"max_length": MAX_LENGTH, "too_long": "truncate", "cache_dir": str(output / "token-stores")},
        "mixing": {"type": "proportional"},
        "training": {
            "max_tokens": num_tokens,
            # Small steps, so that a third of the budget, a stage's, is still a whole number of them within 3 %.
            "global_batch_size": GLOBAL_BATCH_SIZE,
            "micro_batch_size": GLOBAL_BATCH_SIZE,
            "learning_rate": 5e-4,
            "checkpoint_every": 1000,
        },
        # Some six evaluations, which the algorithms answer to; each of them costs as much as two steps.
        "evaluation": {
            "every": max(1, num_tokens // 6 // (GLOBAL_BATCH_SIZE * MAX_LENGTH)),
            "max_rows": 8,
            "signal_examples": 8,
        },
        "detection": {
            "generation": {"max_new_tokens": 64},
            "texts_per_round": 500,
            "max_texts": 1500,
            "calibration": {"texts_per_domain": 60},
        },
        "cluster": {"num_workers": 1},
    }


def result_rows(results: dict[str, Comparison]) -> list[dict[str, Any]]:
    """A row for each variant of each group, in plain data."""
    rows = []
    for group, comparison in results.items():
        for name, result in comparison.variants.items():
            measures = {title: _plain(result.means.get(measure)) for title, measure in MEASURES.items()}
            differences = {f"{title} vs first": _plain(result.differences.get(m)) for title, m in MEASURES.items()}
            amounts = {amount: _plain(result.means.get(amount)) for amount in AMOUNTS}
            row = {"group": group, "row": name, "seeds": len(result.runs), "target": comparison.target}
            rows.append(row | measures | differences | amounts)
    return rows


def results_table(results: dict[str, Comparison]) -> Table:
    """All groups in one table."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("row")
    for heading in (*MEASURES, "mean vs first", "seeds", "tokens", "train s", "eval s", "signal s"):
        table.add_column(heading, justify="right")
    for group, comparison in results.items():
        table.add_row(f"{group}, target {comparison.target}", style="bold")
        for name, result in comparison.variants.items():
            signs = {MEAN: "", WORST: "", TARGET_GAIN: "+", ELSEWHERE: "+"}
            cells = [estimate_cell(result.means.get(measure), sign).whole for measure, sign in signs.items()]
            difference = estimate_cell(result.differences.get(MEAN), "+").whole
            amounts = [f"{mean.mean:,.0f}" if (mean := result.means.get(measure)) else "-" for measure in AMOUNTS]
            table.add_row(name, *cells, difference, str(len(result.runs)), *amounts)
    return table


def _plain(estimate: MeanEstimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.model_dump()


def main() -> None:
    """Compare group by group, then print and write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "model", "output"):
        parser.add_argument(name, type=Path)
    groups = ["mixing", "expansion", "stages", "strategies"]
    parser.add_argument("--target", default="law")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--groups", nargs="+", choices=groups, default=groups)
    parser.add_argument("--rows", nargs="+", help="only these rows")
    given = parser.parse_args()
    if {"mixing", "expansion"} & set(given.groups):
        measure_once(given)
    results = {}
    for group, config in write_configs(given).items():
        done = subprocess.run([*RAYMIX, "compare", str(config), "--seeds", str(given.seeds)], check=False)
        if done.returncode not in (0, 1):  # 1: some runs failed, which the table shows by their seeds
            sys.exit(done.returncode)
        path = given.output / f"{group}-compare" / "compare.json"
        results[group] = Comparison.model_validate_json(path.read_bytes())
    Console(width=None if sys.stdout.isatty() else 160).print(results_table(results))
    (given.output / "methods.json").write_text(json.dumps(result_rows(results), indent=1))


if __name__ == "__main__":
    main()
