"""Finished runs and sweeps, made up on the spot, whose pages and tables are frozen."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from orchestrator.check.record import CheckedDomain, CheckedPlan, IsolationPlan, MemoryNeed, StagePlace
from orchestrator.config.sections import StudyConfig
from orchestrator.prepare.detection.quantification import DetectedDistribution, EstimatedShares, ExampleText, Round
from orchestrator.probe.driver import Probe
from orchestrator.probe.geometry import Geometry
from orchestrator.runs.benchmark_record import MetricScores, Score, TaskScores
from orchestrator.runs.records import DataRecord, DomainCounts, Finding, StoreCounts
from orchestrator.sweeps.coarse.tree import SearchResult, search
from orchestrator.sweeps.compare.driver import expand_variants
from orchestrator.sweeps.compare.results import Comparison, collect
from orchestrator.sweeps.study.grid import Trainings, build_cells, plan_trainings
from orchestrator.sweeps.tune.trials import Evaluation, SearchRecord, TrialRecord
from tests.golden.configurations import stores_of, written
from tests.unit.benchmarks.scores import scored
from tests.unit.conftest import FakeRun, make_fake_run_in
from tests.unit.sweeps.coarse.test_tree import Table, near
from workers.data.report import Report
from workers.validation.loss_statistics import ExampleLosses

DOMAINS = ("math", "code", "chat", "safety")
_STORE = StoreCounts(
    num_examples=200, num_distinct=190, num_prompts=180, num_rows=30, num_tokens=9000, num_targets=3000
)
_COUNTS = DomainCounts(
    train=_STORE,
    eval=_STORE.model_copy(update={"num_examples": 64, "num_prompts": 60, "num_rows": 40}),
    train_files=Report(num_rows=1_000, num_too_long=13, num_tokens_cut=4_321, dropped={"reasoning": 2}),
    eval_files=Report(num_rows=500, num_too_long=4),
    num_leaked_prompts=6,
)


def finished_run(folder: Path, name: str, seed: int) -> Path:
    """A run of twelve steps, with benchmarks and counts of its data."""
    run = make_fake_run_in(folder)(name, DOMAINS, total_steps=12, every=4, seed=seed)
    scored(run, 0.25, 0.25 + 0.125 * seed)
    record = DataRecord(domains=dict.fromkeys(DOMAINS, _COUNTS), findings=[])
    (run.path / "data.json").write_text(record.model_dump_json())
    return run.path


def half_run(folder: Path) -> Path:
    """A run that has come to half of its steps, without a summary."""
    path: Path = make_fake_run_in(folder)("half", DOMAINS, total_steps=12, num_steps=6, every=4, seed=5).path
    return path


def compared(folder: Path) -> Comparison:
    """Two variants with three and two seeds, their losses by example, and a third whose run failed."""
    variants = [f"compare.variants.{label}.training.learning_rate={rate}" for label, rate in (("a", 1e-5), ("b", 1e-6))]
    run = written(
        folder, "plain", "compare.target=code", "compare.variants.c.seed=1", *variants, f"output_dir={folder}"
    )
    runs = expand_variants(run, ["a", "b", "c"], 3)
    rng = np.random.default_rng(0)
    tokens = {name: rng.integers(1, 80, 20) for name in DOMAINS}
    for each in [*runs["a"], *runs["b"][:2]]:
        made = make_fake_run_in(each.output_dir)(each.name, DOMAINS, total_steps=8, every=4, seed=each.seed)
        made.write_example_losses(8, {name: _losses(rng, counts) for name, counts in tokens.items()})
        made.write_summary()
    return collect(run, runs, {runs["c"][0].name: "out of memory"})


def _losses(rng: np.random.Generator, tokens: np.ndarray) -> ExampleLosses:
    return ExampleLosses(
        np.arange(len(tokens)).astype(np.uint64), tokens * rng.gamma(3.0, 0.5, len(tokens)), tokens, 200
    )


def searched() -> SearchRecord:
    """Trials of every state, over a number, a word and a mix."""
    trials = [
        _trial("trial-a", "finished", [2.5, 2.125], sigma=0.25, kind="ratio", code=0.5),
        _trial("trial-b", "finished", [2.5, 1.96875], sigma=0.03125, kind="loss", code=0.125),
        _trial("trial-c", "ended early", [2.75], sigma=0.9, kind="ratio", code=0.25),
        _trial("trial-d", "failed", [], sigma=0.5, kind="loss", code=0.75),
    ]
    return SearchRecord(
        name="tuned",
        type="random",
        metric="mean loss",
        base_score=2.625,
        trials=trials,
        best="trial-b",
        notes=["The regression explains 87.5 % of the variance."],
    )


def _trial(name: str, state: str, scores: Sequence[float], sigma: float, kind: str, code: float) -> TrialRecord:
    return TrialRecord.model_validate(
        {
            "name": name,
            "folder": f"/no-such-disk/{name}",
            "changes": {
                "mixing.sigma": sigma,
                "mixing.update": kind,
                "mixing.initial": {"math": 1 - code, "code": code},
            },
            "state": state,
            "reason": "the loss is not finite" if state == "failed" else "",
            "course": [Evaluation(step=20 * (place + 1), score=score) for place, score in enumerate(scores)],
            "losses_nats": {"math": scores[-1] - 0.25, "code": scores[-1] + 0.25} if scores else {},
        }
    )


def coarse_result() -> SearchResult:
    """A tree whose best node is in its last step."""
    return search(Table(near(0.3, {("feed_forward",): 0.0625, ("up",): 0.125})))


def finished_study(folder: Path) -> tuple[StudyConfig, Trainings]:
    """A study of two domains, all trainings done but the last."""
    study = (
        "study={specialised: [math], general: [chat], k: [0.25, 0.5, 1], seeds: [0, 1], grids: [single, mix], "
        "strategies: [multi_task, dmt], num_resamples: 100}"
    )
    run = written(folder, "plain", study, f"output_dir={folder / 'study'}")
    trainings = plan_trainings(build_cells(run), stores_of)
    for seed, node in enumerate(list(trainings.nodes.values())[:-1]):
        _finish_stage(node.find_folder(), seed)
    assert run.study is not None
    return run.study, trainings


def _finish_stage(folder: Path, seed: int) -> None:
    names = ["math", "chat"]
    run = FakeRun(folder, names, total_steps=4, every=2, seed=seed)
    run.write_start()
    run.write_steps(1, 4)
    run.write_summary()
    rows = {"row": [2, 0, 2], "example": [1, 0, 0], "num_tokens": [30, 10, 20]}
    losses = {name: rows | {"loss_sum_nats": [3.0 * (seed + 1), 1.0, 2.0 + seed]} for name in names}
    (folder / "evaluation.json").write_text(json.dumps({"domains": losses}))


def detected() -> DetectedDistribution:
    """Three estimates over two rounds, by a judge that costs."""
    estimates = {
        "corrected": _estimate(0.5, 0.3125, 0.1875),
        "average": _estimate(0.4375, 0.34375, 0.21875),
        "counts": _estimate(0.46875, 0.328125, 0.203125),
    }
    chosen = estimates["corrected"]
    names = list(chosen.shares)
    return DetectedDistribution(
        shares=chosen.shares,
        standard_errors=chosen.standard_errors,
        intervals=chosen.intervals,
        confidence=0.95,
        estimate="corrected",
        estimates=estimates,
        rounds=[
            Round(num_texts=1000, shares=_estimate(0.53125, 0.28125, 0.1875).shares, change=None),
            Round(num_texts=2000, shares=chosen.shares, change=0.03125),
        ],
        is_converged=False,
        num_texts=2000,
        num_unparsed=17,
        unparsed_notes={"no domain": 12, "two domains": 5},
        num_calibration_texts=dict.fromkeys(names, 100),
        responses={name: {other: 0.875 if other == name else 0.0625 for other in names} for name in names},
        examples={name: [ExampleText(text=f"A text of {name}.", probability=0.9375)] for name in names},
        model="owner/model-1b",
        domains=names,
        seed=0,
        judge={"type": "endpoint", "cost_usd": 1.25},
        generation={},
    )


def _estimate(*shares: float) -> EstimatedShares:
    by_name = dict(zip(DOMAINS, shares, strict=False))
    return EstimatedShares(
        shares=by_name,
        standard_errors=dict.fromkeys(by_name, 0.015625),
        intervals={name: (share - 0.03125, share + 0.046875) for name, share in by_name.items()},
    )


def probed() -> Probe:
    """Two models, six texts of three domains."""
    distances_DD = np.array([[0.0, 1.5, 2.25], [1.5, 0.0, 0.75], [2.25, 0.75, 0.0]])
    points_N2 = np.arange(12, dtype=np.float64).reshape(6, 2) / 4
    geometries = {
        "base": Geometry(0.125, 0.625, distances_DD, points_N2),
        "tuned": Geometry(0.4375, 0.9375, distances_DD * 2, points_N2[::-1].copy()),
    }
    return Probe("0.5", list(DOMAINS[:3]), [f"text {number}" for number in range(6)], np.arange(6) % 3, geometries)


def benchmarked() -> list[TaskScores]:
    """Two tasks, one of them better, one a loss without errors."""
    better = MetricScores(
        base=Score(value=0.25, stderr=0.015625), result=Score(value=0.5, stderr=0.03125), is_higher_better=True
    )
    loss = MetricScores(base=Score(value=2.0), result=Score(value=2.5), is_higher_better=False)
    return [
        TaskScores(task="sums", harness="0.4.13", num_samples=1234, metrics={"exact_match": better}),
        TaskScores(task="prose", harness="0.4.13", limit=10, num_samples=10, metrics={"loss": loss}),
    ]


def checked_plan() -> CheckedPlan:
    """The second stage of a plan, with everything that a plan may tell of."""
    counts = _COUNTS.model_dump()
    domains = {
        "math": CheckedDomain(**counts, share=0.75, epochs=1.53125, eval_rows_measured=32),
        "safety": CheckedDomain(**(counts | {"train": None}), share=None, epochs=None, eval_rows_measured=40),
    }
    return CheckedPlan(
        name="assistant",
        stage=StagePlace(
            number=2, count=3, name="chat", starts_from="skills", folder="stages/chat-0123456789ab", is_finished=False
        ),
        steps=1_400,
        global_batch_size=32,
        micro_batch_size=4,
        max_length=1_024,
        tokens=45_000_000,
        algorithm="versatune",
        workers=2,
        group_sizes=[2],
        zero_stage=2,
        domains=domains,
        memory=MemoryNeed(
            num_parameters=1_000_000,
            num_trainable=250_000,
            peak_gib=3.25,
            moment="backward pass",
            parts_gib={"weights": 1.5, "optimizer": 1.75},
        ),
        training_notes=["12 matrices have an adapter of rank 16"],
        isolation=IsolationPlan(way="positions", difference_nats=0.0009765625, message="0.001 nats a token at most"),
        findings=[
            Finding(severity="warning", kind="leaks", where="domains.math", message="6 prompts are in both"),
            Finding(severity="note", kind="context", where="data.max_length", message="1,024 of 4,096 positions"),
        ],
    )
