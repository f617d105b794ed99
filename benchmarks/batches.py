"""Batches: rows per second of the loader against a bare NumPy gather of as many rows from the same memory maps.

    python benchmarks/batches.py [--json FILE]

The weights change every 100 batches. The bare loop draws rows with `rng.choice` and copies them domain by domain; it
keeps no promise. Both run in turn, several rounds, and the median of the ratios counts: the machine's noise hits both.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from workers.contracts import DomainWeights
from workers.data.batches import BatchLoader
from workers.data.schedule import DomainRows, Schedule

LENGTH, ROWS_PER_STEP, STEPS_PER_VERSION, NUM_STEPS, NUM_ROUNDS = 1024, 32, 100, 1000, 5


class Store:
    """The arrays of a token store, memory-mapped."""

    max_length = LENGTH

    def __init__(self, folder: Path, num_rows: int, rng: np.random.Generator) -> None:
        folder.mkdir()
        arrays: dict[str, Any] = {
            "input_ids": rng.integers(0, 32_000, (num_rows, LENGTH), dtype=np.int32),
            "position_ids": np.tile(np.arange(LENGTH, dtype=np.uint16), (num_rows, 1)),
            "loss_mask": rng.random((num_rows, LENGTH)) < 0.5,
        }
        arrays["row_lengths"] = np.full(num_rows, LENGTH, dtype=np.int32)
        arrays["row_loss_tokens"] = arrays["loss_mask"].sum(axis=1).astype(np.int32)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
            setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode="r"))


def measure_loader(stores: list[Any], rng: np.random.Generator) -> dict[str, float]:
    """Rows per second with the weights changing, and what a change costs."""
    names = [f"d{i}" for i in range(len(stores))]
    rows = [DomainRows(name, len(store.row_lengths), 1.0) for name, store in zip(names, stores, strict=True)]
    loader = BatchLoader(stores, Schedule(0, rows, ROWS_PER_STEP), 0, 1, horizon=STEPS_PER_VERSION)
    announcing, first_batches, num_stale = [], [], 0
    versions = []
    for version in range(NUM_STEPS // STEPS_PER_VERSION):
        shares = rng.dirichlet(np.ones(len(names)))
        versions.append(
            DomainWeights(
                version=version,
                effective_step=version * STEPS_PER_VERSION + 1,
                shares=dict(zip(names, (shares / shares.sum()).tolist(), strict=True)),
                reason="operator",
                by="benchmark",
            )
        )
    began = time.perf_counter()
    for step in range(1, NUM_STEPS + 1):
        version, is_first = divmod(step - 1, STEPS_PER_VERSION)
        if is_first == 0:
            start = time.perf_counter()
            loader.announce(versions[version])
            announcing.append(time.perf_counter() - start)
            batch = loader.get(step)
            first_batches.append(time.perf_counter() - start)
        else:
            batch = loader.get(step)
        num_stale += len(batch.row_B) * (batch.weights_version != version)
    seconds = time.perf_counter() - began
    loader.close()
    return {
        "rows_per_second": NUM_STEPS * ROWS_PER_STEP / seconds,
        "change_ms": statistics.median(announcing[1:]) * 1e3,
        "change_to_first_batch_ms": statistics.median(first_batches[1:]) * 1e3,
        "stale_rows": num_stale,
    }


def measure_bare(stores: list[Any], rng: np.random.Generator) -> float:
    """Rows per second of drawing and copying, nothing else."""
    sources = [[np.asarray(a) for a in (s.input_ids, s.position_ids, s.loss_mask)] for s in stores]
    began = time.perf_counter()
    for step in range(NUM_STEPS):
        if step % STEPS_PER_VERSION == 0:
            shares = rng.dirichlet(np.ones(len(stores)))
        domains = rng.choice(len(stores), ROWS_PER_STEP, p=shares)
        batch = [np.empty((ROWS_PER_STEP, LENGTH), dtype=source.dtype) for source in sources[0]]
        for domain in np.unique(domains):
            places = np.flatnonzero(domains == domain)
            rows = rng.integers(0, len(sources[domain][0]), len(places))
            for target, source in zip(batch, sources[domain], strict=True):
                target[places] = source[rows]
    return NUM_STEPS * ROWS_PER_STEP / (time.perf_counter() - began)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    file = parser.parse_args().json
    results = []
    for num_domains, num_rows in ((6, 2_000), (1_000, 20)):
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng(0)
            stores = [Store(Path(folder) / str(i), num_rows, rng) for i in range(num_domains)]
            rounds = []
            for _ in range(NUM_ROUNDS):
                bare = measure_bare(stores, rng)
                ours = measure_loader(stores, rng)
                rounds.append(ours | {"bare_rows_per_second": bare, "ratio": ours["rows_per_second"] / bare})
        medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        results.append({"domains": num_domains, **medians, "ratios": [round(r["ratio"], 3) for r in rounds]})
    print(f"{ROWS_PER_STEP} rows of {LENGTH} tokens a batch, weights changing every {STEPS_PER_VERSION} batches")
    print("domains  rows/s  bare gather rows/s  ratio  change ms  change to first batch ms  stale rows")
    for r in results:
        print(
            f"{r['domains']:7,}  {r['rows_per_second']:6,.0f}  {r['bare_rows_per_second']:18,.0f}  {r['ratio']:5.2f}  "
            f"{r['change_ms']:9.3f}  {r['change_to_first_batch_ms']:24.3f}  {r['stale_rows']:10.0f}"
        )
    if file:
        file.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
