"""The whole detection over a model whose shares are known: what it finds, when it stops, what it keeps."""

from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.prepare.detection import judges, rounds
from orchestrator.prepare.detection.driver import distribution_view, with_detected_shares, write_page
from orchestrator.prepare.detection.judges import JudgeAnswer
from orchestrator.prepare.detection.quantification import DetectedDistribution
from orchestrator.prepare.detection.rounds import find_distribution, known_distribution
from tests.unit.prepare.detection.wordy_model import SHARES, WordyModel, write_config


@pytest.fixture(autouse=True)
def wordy_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "TextGenerator", WordyModel)
    monkeypatch.setattr(WordyModel, "jobs", [])


def quiet() -> Console:
    return Console(file=StringIO(), width=100)


def test_it_finds_the_shares_and_writes_everything_down(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    found = find_distribution(config, quiet())
    assert all(abs(found.shares[name] - share) < 0.06 for name, share in SHARES.items())
    assert set(found.estimates) == {"average", "counts", "corrected"} and found.estimate == "corrected"
    assert found.rounds[-1].shares == pytest.approx(found.estimates["corrected"].shares)
    assert found.num_texts == found.rounds[-1].num_texts and found.num_unparsed == 0
    assert found.num_calibration_texts == dict.fromkeys(SHARES, 60)
    assert found.responses["law"]["law"] > 0.5
    assert all(found.examples[name] and "opening" in found.examples[name][0].text for name in SHARES)
    assert all(lower <= found.shares[name] + 0.01 and found.shares[name] - 0.01 <= upper
               for name, (lower, upper) in found.intervals.items())  # fmt: skip


def test_it_goes_on_until_the_shares_hold_still(tmp_path: Path) -> None:
    still = find_distribution(write_config(tmp_path / "a", tolerance=0.5), quiet())
    assert [done.num_texts for done in still.rounds] == [200, 400] and still.is_converged
    assert still.rounds[0].change is None and still.rounds[1].change == pytest.approx(
        max(abs(still.rounds[1].shares[name] - still.rounds[0].shares[name]) for name in SHARES)
    )
    restless = find_distribution(write_config(tmp_path / "b", tolerance=1e-9, max_texts=500), quiet())
    assert [done.num_texts for done in restless.rounds] == [200, 400, 500] and not restless.is_converged


def test_a_killed_detection_goes_on_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = find_distribution(write_config(tmp_path / "whole"), quiet())
    num_jobs = len(WordyModel.jobs)
    WordyModel.jobs.clear()

    class Killed(WordyModel):
        def __call__(self, job: Any) -> Any:
            if len(self.jobs) == 8:
                raise KeyboardInterrupt
            return super().__call__(job)

    config = write_config(tmp_path / "killed")
    monkeypatch.setattr(rounds, "TextGenerator", Killed)
    with pytest.raises(KeyboardInterrupt):
        find_distribution(config, quiet())
    assert known_distribution(config) is None
    monkeypatch.setattr(rounds, "TextGenerator", WordyModel)
    resumed = find_distribution(config, quiet())
    assert len(WordyModel.jobs) == num_jobs  # 8 before, the others after, none twice
    assert resumed.model_copy(update={"model": whole.model}) == whole
    assert known_distribution(config) == resumed


def test_another_judge_reads_the_same_texts(tmp_path: Path) -> None:
    find_distribution(write_config(tmp_path / "a"), quiet())
    config = write_config(tmp_path / "b")
    find_distribution(config, quiet())
    num_jobs = len(WordyModel.jobs)
    other = config.detection.model_copy(
        update={"judge": config.detection.judge.model_copy(update={"max_rows": 50}), "estimate": "counts"}
    )
    find_distribution(config.model_copy(update={"detection": other}), quiet())
    assert len(WordyModel.jobs) == num_jobs


class Reticent:
    """Calls everything law, except what it does not answer."""

    def __init__(self, *settings: Any) -> None:
        pass

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer]]:
        for index, text in enumerate(texts):
            is_answered = "statute" in text
            yield index, JudgeAnswer((1.0, 0.0, 0.0) if is_answered else None, "" if is_answered else "no idea")


def test_what_the_judge_did_not_say_is_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(judges.JUDGES, "classifier", Reticent)
    config = write_config(tmp_path, estimate="counts", calibration={"texts_per_domain": 0})
    found = find_distribution(config, quiet())
    assert 0 < found.num_unparsed < found.num_texts and found.unparsed_notes == {"no idea": found.num_unparsed}
    num_parsed = found.num_texts - found.num_unparsed
    assert found.estimates["counts"].shares == {"law": 1.0, "code": 0.0, "health": 0.0}
    assert found.shares["code"] == pytest.approx(1 / (num_parsed + 3))  # one text added to each: never 0
    assert found.responses == {} and set(found.estimates) == {"average", "counts"}


def test_a_judge_that_says_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(Reticent):
        def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer]]:
            yield from ((index, JudgeAnswer(None, "HTTP 400: what?")) for index in range(len(texts)))

    monkeypatch.setitem(judges.JUDGES, "classifier", Silent)
    config = write_config(tmp_path, estimate="average", calibration={"texts_per_domain": 0})
    with pytest.raises(ValueError, match=r"named no domain for any of 200 texts; it answered: HTTP 400"):
        find_distribution(config, quiet())


def test_detected_becomes_shares_and_a_run_that_goes_on_keeps_them(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    ready = with_detected_shares(config, quiet())
    kept = DetectedDistribution.read(config.folder / "distribution.json")
    assert ready.mixing.initial == kept.shares  # type: ignore[union-attr]
    assert (config.folder / "distribution.html").stat().st_size > 100_000
    other = kept.model_copy(update={"shares": {"law": 0.2, "code": 0.2, "health": 0.6}})
    other.write(config.folder / "distribution.json")
    assert with_detected_shares(config, quiet()).mixing.initial == other.shares  # type: ignore[union-attr]


def test_a_file_of_shares_is_used_and_kept(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    find_distribution(config, quiet()).write(tmp_path / "found.json")
    mixing = config.mixing.model_copy(update={"initial": tmp_path / "found.json"})
    ready = with_detected_shares(config.model_copy(update={"mixing": mixing}), quiet())
    assert ready.mixing.initial == DetectedDistribution.read(tmp_path / "found.json").shares  # type: ignore[union-attr]
    assert (config.folder / "distribution.json").exists()


def test_domains_that_are_only_measured_get_no_share(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    health = config.domains["health"].model_copy(update={"train": []})
    found = find_distribution(config.model_copy(update={"domains": config.domains | {"health": health}}), quiet())
    assert set(found.shares) == {"law", "code"} and sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares["law"] == pytest.approx(2 / 3, abs=0.08)
    assert found.estimates["corrected"].shares["health"] == pytest.approx(SHARES["health"], abs=0.1)


def test_the_table_shows_the_estimates_side_by_side(tmp_path: Path) -> None:
    found = find_distribution(write_config(tmp_path), quiet())
    console = quiet()
    console.print(distribution_view(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in text for word in ("plain average", "hard counts", "corrected", "law", "converged"))
    page = tmp_path / "page.html"
    hostile = found.model_copy(deep=True)
    hostile.examples["law"][0].text = "<script>alert(1)</script>"
    write_page(hostile, page)
    assert "<script>alert(1)" not in page.read_text()
