"""Names of what a training leaves on disk: runs, stages, reference losses, importance.

A user's folder is found by them. Where one changes, a finished stage or reference is trained again, and a tracker shows
a resumed run as another one, although nothing that the user wrote has changed.
"""

import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from orchestrator.prepare.importance import _scores_file, with_importance
from orchestrator.runs.lock import bound_settings, claim_folder
from orchestrator.sweeps.references import plan_alone
from orchestrator.sweeps.stages.chain import digest_run, plan_stages
from orchestrator.sweeps.study.grid import build_cells, plan_trainings
from tests.golden.configurations import CHANGES, stores_of, written
from tests.golden.recorded import check_recorded, recorded
from workers.strategies.cofitune.importance import KINDS, write_importance

WHY = "Folders that users have would no longer be found, and their content be trained again."
PLANS = ("stages", "dmt", "sequential")


def test_settings_that_bind_a_run(tmp_path: Path) -> None:
    """Every key and default of them is part of a run's id and of every digest below."""
    found = {name: bound_settings(written(tmp_path, name)) for name in CHANGES}
    assert found.pop("free keys") == found["plain"]
    check_recorded("bound_settings", "plain", found["plain"], WHY)
    check_recorded("bound_settings", "stages", found["stages"], WHY)


@pytest.mark.parametrize("name", ["plain", "stages"])
def test_id_of_a_run(name: str, tmp_path: Path) -> None:
    """The folder's own place is part of it, so it is written out here from the recorded settings."""
    run = written(tmp_path, name, f"output_dir={tmp_path / 'runs'}")
    settings = json.dumps(recorded("bound_settings", name), sort_keys=True)
    identity = f"{(tmp_path / 'runs' / 'assistant').resolve()}\n{settings}"
    with claim_folder(run) as run_id:
        assert run_id == f"assistant-{blake2b(identity.encode(), digest_size=6).hexdigest()}", WHY


def test_digests_of_settings_and_data(tmp_path: Path) -> None:
    runs = {name: written(tmp_path, name) for name in CHANGES}
    found = {name: digest_run(run, stores_of(run)) for name, run in runs.items()}
    started = written(tmp_path, "plain", "start={run: /no-such-disk/runs/before, optimizer: kept}")
    found["started"] = digest_run(started, stores_of(started))
    check_recorded("names", "digests of runs", found, WHY)


def test_folders_of_stages(tmp_path: Path) -> None:
    found = {
        name: [str(stage.find_folder()) for stage in plan_stages(written(tmp_path, name), stores_of)] for name in PLANS
    }
    check_recorded("names", "stages", found, WHY)


def test_a_stage_is_found_by_its_digest_whatever_it_is_called(tmp_path: Path) -> None:
    plan = plan_stages(written(tmp_path, "stages", f"output_dir={tmp_path}"), stores_of)
    begun = tmp_path / "stages" / f"called-otherwise-{plan[1].digest}"
    begun.mkdir(parents=True)
    assert plan[1].find_folder() == begun
    assert recorded("names", "stages")["stages"][1].endswith(plan[1].digest)


def test_folders_of_a_study(tmp_path: Path) -> None:
    study = "study={specialised: [math, code], general: [chat], k: [1, 0.25], seeds: [1, 2], max_steps: 120}"
    trainings = plan_trainings(build_cells(written(tmp_path, "plain", study)), stores_of)
    found = {str(each.find_folder()): each.parent and each.parent.key for each in trainings.nodes.values()}
    check_recorded("names", "trainings of a study, with the digests of their parents", found, WHY)


@pytest.mark.parametrize(
    "name", ["versatune", "reference steps", "lora", "cofitune", "epochs", "tokens", "deepspeed", "mixture of skills"]
)
def test_folders_of_reference_losses(name: str, tmp_path: Path) -> None:
    run = written(tmp_path, name)
    stores = stores_of(run)
    folders = {domain: plan_alone(run, domain, stores).folder for domain in run.trained_domains}
    assert {folder.parent for folder in folders.values()} == {Path("/no-such-disk/runs/references").resolve()}
    check_recorded("names", f"references, {name}", {domain: path.name for domain, path in folders.items()}, WHY)


def test_files_of_importance_scores(tmp_path: Path) -> None:
    found = {}
    for name in ("cofitune", "cofitune measured"):
        run = written(tmp_path, name)
        settings = run.training.strategy.importance  # type: ignore[union-attr]
        train = stores_of(run)["code"].train
        assert train is not None
        found[name] = str(_scores_file(run, settings, "code", train))
    check_recorded("names", "importance scores", found, WHY)


def test_file_of_merged_importance(tmp_path: Path) -> None:
    """Named by its content, so that runs with equal importance have equal plans."""
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for place, path in enumerate(files):
        values = np.arange(6, dtype=np.float32).reshape(2, 3) / 8 if place else np.full((2, 3), 0.25, np.float32)
        write_importance(path, {kind: values for kind in KINDS}, {})
    named = f"training.strategy.importance.files=[{', '.join(map(str, files))}]"
    run = written(tmp_path, "cofitune", named, f"output_dir={tmp_path / 'runs'}")
    strategy = with_importance(run, {}, Console(quiet=True)).training.strategy
    (merged,) = strategy.importance.files  # type: ignore[union-attr]
    assert (run.folder / "importance.safetensors").exists()
    check_recorded("names", "merged importance", str(merged.relative_to((tmp_path / "runs").resolve())), WHY)
