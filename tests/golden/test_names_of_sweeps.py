"""Names of the runs inside a sweep: comparisons, searches, populations, coarse searches, detections.

A sweep that was killed, or is started again with more seeds or trials, finds what it has trained by these names.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from orchestrator.config.sweep import SweepConfig
from orchestrator.mixing import Measured
from orchestrator.prepare.detection.domain_texts import DomainTexts, Places, find_domain_texts
from orchestrator.prepare.detection.judges.base import JudgeAnswer, Memory
from orchestrator.searches import Proposal
from orchestrator.searches.regmix import SHARES
from orchestrator.searches.space import Point
from orchestrator.sweeps.coarse.driver import full_runs, node_runs
from orchestrator.sweeps.coarse.tree import Candidate
from orchestrator.sweeps.compare.driver import expand_variants
from orchestrator.sweeps.stages.chain import digest_run
from orchestrator.sweeps.tune.driver import search_folder
from orchestrator.sweeps.tune.sampling import tune_folder
from orchestrator.sweeps.tune.trials import Trials
from tests.golden.configurations import stores_of, written
from tests.golden.recorded import check_recorded
from workers.config.data import DomainConfig
from workers.data.sources import Source

WHY = "A sweep that users have begun would train again what it has trained."
SPACE = "{mixing.sigma: {uniform: [0.1, 1.0]}, training.learning_rate: {loguniform: [1.0e-6, 1.0e-4]}}"
POINTS: list[Point] = [
    {"mixing.sigma": 0.25, "training.learning_rate": 1e-5},
    {"mixing.sigma": 0.625, "training.learning_rate": 3e-5},
]


def trials_of(run: SweepConfig) -> Trials:
    """As a search prepares them."""
    return Trials(
        base=run.plan.replaced(output_dir=search_folder(run)),
        space=run.build_search().space,
        stores=stores_of(run),
        metric="mean",
        target=None,
        measured=Measured(
            distributions={"detected": {"math": 0.2, "code": 0.5, "chat": 0.3}},
            references={"computed": {"math": 0.7, "code": 1.1, "chat": 1.9}},
        ),
        here=Path("/no-such-disk"),
    )


def test_runs_of_a_comparison(tmp_path: Path) -> None:
    run = written(tmp_path, "versatune", "compare.variants.small.training.learning_rate=1e-6")
    variants = expand_variants(run, ["small", "uniform", "versatune"], 2)
    found = {
        label: {str(each.folder): digest_run(each, stores_of(each)) for each in runs}
        for label, runs in variants.items()
    }
    check_recorded("names", "comparison", found, WHY)


def test_trials_of_a_search(tmp_path: Path) -> None:
    trials = trials_of(written(tmp_path, "versatune", f"search={{type: random, space: {SPACE}, num_trials: 3}}"))
    found = [str(trials.run_of(point).folder) for point in POINTS]
    check_recorded("names", "trials of a random search", found, WHY)


def test_trials_of_a_mixture_regression(tmp_path: Path) -> None:
    trials = trials_of(written(tmp_path, "fixed", "search={type: regmix, num_trials: 4}"))
    mixes = [{"math": 0.25, "code": 0.5, "chat": 0.25}, {"math": 0.5, "code": 0.125, "chat": 0.375}]
    found = [str(trials.plan_of(Proposal({SHARES: mix})).folder) for mix in mixes]
    check_recorded("names", "trials of RegMix", found, WHY)


def test_members_of_a_population(tmp_path: Path) -> None:
    search = f"search={{type: pbt, population: 3, generations: 2, space: {SPACE}}}"
    trials = trials_of(written(tmp_path, "versatune", "training.schedule=constant", search))
    steps = (trials.base.training.max_steps or 0) // 2
    first, second = (Proposal(trials.space.changes(point), num_steps=steps) for point in POINTS)
    proposals = [first, second, Proposal(second.changes, parent=first, num_steps=steps)]
    found = [str(trials.plan_of(proposal).folder) for proposal in proposals]
    check_recorded("names", "members of a population", found, WHY)


def test_runs_of_a_coarse_search(tmp_path: Path) -> None:
    run = written(tmp_path, "plain", "coarse_search={speciality: [math], num_seeds: 2}")
    runs = [*full_runs(run), *node_runs(run, Candidate((0.25, 0.5), ("attention", "feed_forward")))]
    found = {str(each.folder): digest_run(each, stores_of(each)) for each in runs}
    check_recorded("names", "coarse search", found, WHY)


def test_folder_of_ray_tune(tmp_path: Path) -> None:
    """What a driver that was killed left there is found by its name, and removed."""
    with tune_folder(tmp_path) as folder:
        assert folder.parent == tmp_path.resolve()
        assert folder.name == f".ray-tune-{blake2b(str(tmp_path.resolve()).encode(), digest_size=6).hexdigest()}"


def texts_of(run: SweepConfig) -> dict[str, DomainTexts]:
    """The texts of the trained domains, by sources of fixed content."""
    return {
        name: DomainTexts(name, [_source(f"{name}-1")], [_source(f"{name}-2")], 0.05) for name in run.trained_domains
    }


def _source(digest: str) -> Source:
    path = Path("/no-such-disk") / f"{digest}.jsonl"
    return Source(path=path, format="messages", fields={}, harmless=["id"], digest=digest, size=1000, num_shards=1)


def test_files_of_a_detection(tmp_path: Path) -> None:
    judge = "{type: endpoint, base_url: http://localhost:8000/v1, model: judge}"
    cases = {
        "classifier": [],
        "endpoint": [f"detection.judge={judge}"],
        "endpoint, more at once": [f"detection.judge={judge}", "detection.judge.concurrency=64"],
        "likelihood": ["detection.judge={type: likelihood, model: {path: owner/judge}}"],
        "more texts": ["detection.max_texts=20000"],
        "hotter": ["detection.generation.temperature=1.3", "seed=4"],
        "longer openings": ["detection.calibration.opening_tokens=32"],
    }
    found = {}
    for label, changes in cases.items():
        run = written(tmp_path, "fixed detected", *changes)
        places = Places.of(run, texts_of(run))
        paths = [places.texts, *places.continuations.values(), places.answers, places.result]
        assert {path.parent for path in paths} == {Path("/no-such-disk/runs/detection").resolve()}
        found[label] = [path.name for path in paths]
    check_recorded("names", "detection", found, WHY)


def test_texts_that_a_detection_reads(tmp_path: Path) -> None:
    """Chosen by hash: others would be other texts under the same name."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "text number {number}"}}\n' for number in range(40)))
    texts = find_domain_texts("law", DomainConfig(train=[path], eval_fraction=0.2))
    found = {"identity": texts.identity, "train": texts.read(False, 4, 7), "held out": texts.read(True, 4, 7)}
    check_recorded("names", "texts of a detection", found, WHY)


class Judge:
    """Says the same of every text."""

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer]]:
        yield from ((index, JudgeAnswer((0.25, 0.75))) for index in range(len(texts)))


def test_answers_of_a_judge_are_found_by_their_text(tmp_path: Path) -> None:
    """They may have been paid for."""
    Memory(Judge(), tmp_path / "answers.jsonl").ask(["a text", "\u00fcber \ud800"])
    check_recorded("names", "answers of a judge", (tmp_path / "answers.jsonl").read_text().splitlines(), WHY)
