"""How far the sampled held-out loss is from that of the whole held-out set, and whether the standard errors say so.

    python benchmarks/evaluation_sample.py DATA --model FOLDER [--rows 64] [--seeds 200] [--steps 30] [--json FILE]

DATA holds a folder for each domain with train.jsonl.gz and eval.jsonl.gz. One training on an even mix measures the loss
of every held-out example under the base model and under the trained one; everything else is drawing samples of these
losses. Two held-out sets of each domain: its own `eval` file, and a larger one set aside from its training file, of
which a sample is a small part.

`first rows` are the first rows of the store, which is packed longest first, as raymix once measured them. `random rows`
are as many rows of the store drawn at random, `sample` is what is measured now (`workers.validation.held_out`), one for
each seed.
`within 1` and `within 2` are the shares of the samples whose loss is within so many standard errors of the whole set's:
68 % and 95 % where the errors are right.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.sweep import SweepConfig
from orchestrator.mixing import Measured, resolve_mixing
from orchestrator.prepare.token_stores import prepare_stores
from orchestrator.training.driver import train_in_process
from orchestrator.training.plan import build_plan, domain_sizes
from orchestrator.views.console import redirect_output
from workers.data.permutation import derive_key, permutation
from workers.data.store import TokenStore
from workers.validation.example_losses import read_losses
from workers.validation.held_out import draw_sample
from workers.validation.loss_statistics import ExampleLosses, paired_difference

MAX_LENGTH = 512
LARGER_FRACTION = 0.08


@dataclass
class DomainResult:
    """One held-out set of one domain; losses in nats per loss token, mean absolute differences over the seeds."""

    domain: str
    num_examples: int
    mean_sampled: float
    """Examples in a sample, mean over the seeds."""
    loss: float
    first_rows: float
    random_rows: float
    sample: float
    within_1: dict[str, float]
    """Of `base`, `trained` and their `difference`."""
    within_2: dict[str, float]


def measure(data: Path, model: Path, steps: int, is_larger: bool, folder: Path) -> tuple[dict[str, TokenStore], Path]:
    """Train once with every held-out example measured before and after; the evaluation stores and the run's folder."""
    domains = {}
    for part in sorted(path.parent for path in data.glob("*/train.jsonl.gz")):
        own = {"eval_fraction": LARGER_FRACTION} if is_larger else {"eval": [str(part / "eval.jsonl.gz")]}
        domains[part.name] = {"train": [str(part / "train.jsonl.gz")], **own}
    config = SweepConfig.model_validate(
        {
            "name": "larger" if is_larger else "own",
            "output_dir": str(folder),
            "model": {"path": str(model), "dtype": "float32"},
            "domains": domains,
            "data": {"max_length": MAX_LENGTH},
            "mixing": {"type": "uniform"},
            "training": {
                "max_steps": steps,
                "global_batch_size": 8,
                "micro_batch_size": 8,
                "learning_rate": 5e-4,
                "checkpoint_every": steps,
                "deepspeed": {"zero_stage": 0},
            },
            "evaluation": {"every": steps, "max_rows": "all", "best": None},
            "cluster": {"num_workers": 1},
        }
    )
    stores = prepare_stores(config.domains, config.data, config.model, config.cache_dir)
    plan = build_plan(config, "sample", stores).model_copy(update={"export": False})
    plan.folder.mkdir(parents=True)
    train_in_process(plan, resolve_mixing(config.mixing, Measured(), config.trained_domains), domain_sizes(stores))
    return {name: pair.eval for name, pair in stores.items()}, plan.folder


def study(name: str, store: TokenStore, losses: list[ExampleLosses], rows: int, seeds: int) -> DomainResult:
    """Samples of one held-out set against the whole of it; `losses` are of the base and of the trained model."""
    base, trained = losses
    whole = draw_sample(store, "all")
    place = {int(example): i for i, example in enumerate(base.example_E)}
    row_E = np.empty_like(whole.row_E)
    row_E[[place[int(example)] for example in whole.example_E]] = whole.row_E
    samples = [
        np.array([place[int(example)] for example in draw_sample(store, rows, derive_key(seed)).example_E])
        for seed in range(seeds)
    ]
    at_random = [
        np.flatnonzero(np.isin(row_E, permutation(derive_key(s), store.num_rows)[:rows])) for s in range(seeds)
    ]
    off: dict[str, list[float]] = {key: [] for key in ("base", "trained", "difference")}
    for chosen in samples:
        a, b = part(base, chosen), part(trained, chosen)
        left_out = np.sqrt(1 - len(chosen) / base.num_held_out)
        difference, error = paired_difference(b, a)
        off["base"].append((a.loss_nats - base.loss_nats) / a.sampling_error)
        off["trained"].append((b.loss_nats - trained.loss_nats) / b.sampling_error)
        off["difference"].append((difference - (trained.loss_nats - base.loss_nats)) / (error * left_out))
    within = [{key: float((np.abs(values) < n).mean()) for key, values in off.items()} for n in (1, 2)]
    return DomainResult(
        domain=name,
        num_examples=base.num_held_out,
        mean_sampled=fmean(len(chosen) for chosen in samples),
        loss=base.loss_nats,
        first_rows=abs(part(base, np.flatnonzero(row_E < rows)).loss_nats - base.loss_nats),
        random_rows=fmean(abs(part(base, chosen).loss_nats - base.loss_nats) for chosen in at_random),
        sample=fmean(abs(part(base, chosen).loss_nats - base.loss_nats) for chosen in samples),
        within_1=within[0],
        within_2=within[1],
    )


def part(losses: ExampleLosses, chosen: NDArray[np.int64]) -> ExampleLosses:
    """The losses of some of the examples."""
    arrays = (losses.example_E[chosen], losses.loss_sum_nats_E[chosen], losses.num_tokens_E[chosen])
    return ExampleLosses(*arrays, num_held_out=losses.num_held_out)


def table(results: list[DomainResult]) -> Iterator[str]:
    """A line for each domain, and their means."""
    yield f"{'':10} examples sampled  loss   first rows random rows  sample   within 1 (base, trained, diff.)  within 2"
    for r in results:
        counts = f"{r.num_examples:>8,} {r.mean_sampled:>7.0f} {r.loss:>6.3f}"
        yield f"{r.domain:10} {counts} {_figures(r.first_rows, r.random_rows, r.sample, r.within_1, r.within_2)}"
    means = [fmean(getattr(r, key) for r in results) for key in ("first_rows", "random_rows", "sample")]
    within = [{k: fmean(getattr(r, key)[k] for r in results) for k in r.within_1} for key in ("within_1", "within_2")]
    yield f"{'mean':10} {'':23} {_figures(*means, *within)}"


def _figures(first: float, random: float, sample: float, one: dict[str, float], two: dict[str, float]) -> str:
    shares = ["  ".join(f"{value:4.0%}" for value in within.values()) for within in (one, two)]
    return f"{first:>10.4f} {random:>11.4f} {sample:>8.4f}   {shares[0]:>28}   {shares[1]:>18}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    content = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, is_larger in (("own eval file", False), ("set aside from training", True)):
            with redirect_output(Path(folder) / "log"):
                stores, run = measure(arguments.data, arguments.model, arguments.steps, is_larger, Path(folder))
            losses = [read_losses(run, step) for step in (0, arguments.steps)]
            results = [
                study(name, store, [part_of[name] for part_of in losses], arguments.rows, arguments.seeds)
                for name, store in stores.items()
            ]
            print(f"\n{title}: {arguments.rows} rows, {arguments.seeds} seeds, nats per loss token")
            print("\n".join(table(results)))
            content[title] = [asdict(result) for result in results]
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
