"""Numbers of a comparison, from the runs' files to the table."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from orchestrator.config.sweep import SweepConfig
from orchestrator.sweeps.compare.driver import expand_variants
from orchestrator.sweeps.compare.page import table, write_comparison
from orchestrator.sweeps.compare.results import (
    ELSEWHERE,
    MEAN,
    TARGET_GAIN,
    WORST,
    Comparison,
    MeanEstimate,
    collect,
    estimate,
    paired_difference,
)
from tests.unit.conftest import make_fake_run_in
from workers.validation.loss_statistics import ExampleLosses

DOMAINS = ("math", "code", "law")


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "study",
            "output_dir": tmp_path,
            "model": {"path": "owner/name"},
            "domains": {name: {"train": f"{name}.jsonl"} for name in DOMAINS},
            "mixing": {"type": "uniform"},
            "training": {"max_steps": 40, "global_batch_size": 8},
            "compare": {"target": "code", "variants": {"a": {}, "b": {}, "c": {}}},
        }
    )


@pytest.fixture
def comparison(config: SweepConfig) -> Comparison:
    """Variants a and b with three and two seeds done; c has failed."""
    make = make_fake_run_in(config.output_dir / "study-compare")
    for number, (label, num_done) in enumerate((("a", 3), ("b", 2))):
        for seed in range(num_done):
            make(f"{label}-seed{seed}", DOMAINS, total_steps=40, every=20, seed=10 * number + seed)
    return collect(config, expand_variants(config, ["a", "b", "c"], 3), {"c-seed0": "too hot"})


def summary(config: SweepConfig, run: str) -> dict[str, dict[str, float]]:
    return json.loads((config.output_dir / "study-compare" / run / "summary.json").read_text())


def test_the_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0]
    result = estimate(values)
    assert result is not None and result.half_width is not None
    assert result.mean == pytest.approx(7 / 3)
    assert result.half_width == pytest.approx(4.302653 * np.std(values, ddof=1) / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    one = estimate([1.5])
    assert one is not None and one.half_width is None and not one.is_clear
    assert estimate([]) is None and estimate([math.nan]) is None


def test_the_paired_difference_cancels_what_the_seed_does() -> None:
    theirs = {0: 1.0, 1: 2.0, 2: 5.0}
    ours = {0: 0.9, 1: 1.9, 2: 4.9, 7: 100.0}
    result = paired_difference(ours, theirs)
    assert result is not None and result.num_seeds == 3
    assert result.mean == pytest.approx(-0.1) and result.half_width == pytest.approx(0.0, abs=1e-9)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_errors_over_the_held_out_examples_are_of_the_seeds_means_and_paired(config: SweepConfig) -> None:
    """Worked out from the examples by leaving one out after the other; shown in square brackets."""
    make = make_fake_run_in(config.output_dir / "study-compare")
    rng = np.random.default_rng(0)
    tokens = {name: rng.integers(1, 80, 25 + 5 * number) for number, name in enumerate(DOMAINS)}
    hard = {name: rng.gamma(3.0, 0.5, len(counts)) for name, counts in tokens.items()}
    nats: dict[str, list[dict[str, np.ndarray]]] = {}
    for label, num_seeds in (("a", 3), ("b", 2)):
        for seed in range(num_seeds):
            run = make(f"{label}-seed{seed}", DOMAINS, total_steps=40, every=20, seed=seed)
            lost = {name: tokens[name] * (hard[name] + 0.1 * rng.normal(size=len(hard[name]))) for name in DOMAINS}
            nats.setdefault(label, []).append(lost)
            numbers = {name: np.arange(len(counts)).astype(np.uint64) for name, counts in tokens.items()}
            losses = {name: ExampleLosses(numbers[name], lost[name], tokens[name], 200) for name in DOMAINS}
            run.write_example_losses(40, losses)
            run.write_summary()
    found = collect(config, expand_variants(config, ["a", "b", "c"], 3), {})

    def jackknife(total: np.ndarray, size: np.ndarray) -> float:
        without = [np.delete(total, i).sum() / np.delete(size, i).sum() for i in range(len(total))]
        squares = [(loss - total.sum() / size.sum()) ** 2 for loss in without]
        return math.sqrt((len(total) - 1) / len(total) * sum(squares))

    mean = {name: np.mean([lost[name] for lost in nats["a"]], axis=0) for name in DOMAINS}
    pairs = list(zip(*nats.values(), strict=False))  # seeds that both have
    changed = {name: np.mean([b[name] - a[name] for a, b in pairs], axis=0) for name in DOMAINS}
    for name in DOMAINS:
        expected = jackknife(mean[name], tokens[name]), jackknife(changed[name], tokens[name])
        assert found.variants["a"].means[f"loss_nats/{name}"].held_out_error == pytest.approx(expected[0])
        assert found.variants["b"].differences[f"loss_nats/{name}"].held_out_error == pytest.approx(expected[1])
    errors = [jackknife(changed[name], tokens[name]) for name in DOMAINS]
    error = math.sqrt(sum(e * e for e in errors)) / 3
    difference = found.variants["b"].differences[MEAN]
    assert difference.held_out_error == pytest.approx(error)
    assert found.variants["b"].differences[WORST].held_out_error is None
    assert f"{difference.mean:+.3f} \u00b1{difference.half_width:.3f} [{error:.3f}]" in shown(found)
    assert "In square brackets: one standard error over the held-out examples" in " ".join(table(found).notes)


def shown(comparison: Comparison) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table(comparison).to_rich())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_losses_by_example_nothing_is_said_of_them(comparison: Comparison) -> None:
    assert "[" not in shown(comparison) and "square brackets" not in " ".join(table(comparison).notes)


def test_measures_come_from_the_summaries(config: SweepConfig, comparison: Comparison) -> None:
    seeds = [summary(config, f"a-seed{seed}") for seed in range(3)]
    means = comparison.variants["a"].means
    assert means[MEAN].mean == pytest.approx(np.mean([s["mean_loss_nats"]["end"] for s in seeds]))
    assert means[WORST].mean == pytest.approx(np.mean([s["worst_loss_nats"]["end"] for s in seeds]))
    ends = [{name: s["domains"][name]["loss_nats_end"] for name in DOMAINS} for s in seeds]  # type: ignore[index]
    starts = [{name: s["domains"][name]["loss_nats_start"] for name in DOMAINS} for s in seeds]  # type: ignore[index]
    gains = [start["code"] - end["code"] for start, end in zip(starts, ends, strict=True)]
    assert means[TARGET_GAIN].mean == pytest.approx(np.mean(gains))
    changes = [(e["math"] - s["math"] + e["law"] - s["law"]) / 2 for s, e in zip(starts, ends, strict=True)]
    assert means[ELSEWHERE].mean == pytest.approx(np.mean(changes))


def test_differences_are_paired_against_the_first_variant(config: SweepConfig, comparison: Comparison) -> None:
    assert comparison.variants["a"].differences == {}
    loss = {run: summary(config, run)["mean_loss_nats"]["end"] for run in ("a-seed0", "a-seed1", "b-seed0", "b-seed1")}
    difference = comparison.variants["b"].differences[MEAN]
    assert difference.num_seeds == 2
    assert difference.mean == pytest.approx((loss["b-seed0"] - loss["a-seed0"] + loss["b-seed1"] - loss["a-seed1"]) / 2)


def test_the_table_shows_every_variant_and_names_what_failed(comparison: Comparison) -> None:
    console = Console(width=200, file=io.StringIO())
    console.print(table(comparison).to_rich())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = {line.split()[0]: line for line in reversed(text.splitlines()) if line.strip()}
    assert f"{comparison.variants['a'].means[MEAN].mean:.3f}" in rows["a"]
    assert "failed: c-seed0: too hot" in text
    assert all(name in text for name in DOMAINS)


def test_a_difference_stands_out_where_it_is_more_than_its_interval(comparison: Comparison) -> None:
    for mean, half_width, style in ((-0.2, 0.1, "better"), (0.2, 0.1, "worse"), (-0.2, 0.3, ""), (-0.2, None, "")):
        comparison.variants["b"].differences[MEAN] = MeanEstimate(mean=mean, half_width=half_width, num_seeds=2)
        (column,) = [column for column in table(comparison).columns if column.heading == "mean loss vs a"]
        assert [cell.style for cell in column.cells] == ["", style, ""]


def test_the_lowest_loss_of_several_stands_out(comparison: Comparison) -> None:
    columns = {column.heading: column.cells for column in table(comparison).columns}
    for heading, measure in {"mean loss": MEAN, "worst loss": WORST, "law": "loss_nats/law"}.items():
        means = {label: result.means[measure].mean for label, result in comparison.variants.items() if result.means}
        lowest = min(means, key=lambda label: means[label])
        marked = [label for label, cell in zip("abc", columns[heading], strict=True) if cell.style == "best"]
        assert marked == [lowest]


def test_unequal_tokens_are_said(comparison: Comparison) -> None:
    assert not any("different numbers of tokens" in note for note in table(comparison).notes)
    comparison.variants["b"].means["num_tokens"].mean *= 1.2
    assert any("different numbers of tokens (up to 20.0% apart)" in note for note in table(comparison).notes)


def test_the_page_stands_alone_and_shows_names_as_text(tmp_path: Path, comparison: Comparison) -> None:
    comparison.failed["c-seed0"] = "<script>alert(1)</script>"
    write_comparison(comparison, tmp_path / "compare.html")
    page = (tmp_path / "compare.html").read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    assert f"{comparison.variants['b'].means[MEAN].mean:.3f}" in page


def test_the_json_reads_back(comparison: Comparison) -> None:
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
