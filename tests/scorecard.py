"""The reliability scorecard: each promise, the tests that hold it, and a fault on which they turn red.

make scorecard                                run the tests of every row, the long ones as well, and print the table
python -m tests.scorecard R1 S4               of some rows
python -m tests.scorecard --plant [ROW ...]   plant each row's fault in a copy of the tree: its test has to fail
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
_NOT_COPIED = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache")


@dataclass(frozen=True)
class Fault:
    """A change of one place of a file by which a test turns red."""

    file: str
    right: str
    wrong: str
    test: str


@dataclass(frozen=True)
class Row:
    promise: str
    tests: tuple[str, ...]
    """Ids of pytest, below tests/; none where nothing holds the promise yet."""
    fault: Fault


ROWS = {
    "R1": Row(
        "killed or stopped at any step: no sample missing, twice or in another order",
        (
            "chaos/test_kill.py",
            "unit/data/test_schedule.py",
            "integration/test_stages.py::test_a_plan_stopped_inside_its_second_stage_ends_as_the_undisturbed_one",
        ),
        Fault(
            "workers/training/loop.py",
            "range(trainer.num_steps_done + 1,",
            "range(trainer.num_steps_done + 2,",
            "integration/test_stages.py::test_a_plan_stopped_inside_its_second_stage_ends_as_the_undisturbed_one",
        ),
    ),
    "R2": Row(
        "resumed: losses, domain weights, parameters and moments to the bit",
        ("chaos/test_kill.py", "integration/test_checkpoint.py::test_going_on_is_the_undisturbed_run_bit_for_bit"),
        Fault(
            "workers/engine/checkpoint.py",
            'trained.set_adam_step(content["adam_step"] if with_optimizer else 0)',
            "trained.set_adam_step(0)",
            "integration/test_checkpoint.py::test_going_on_is_the_undisturbed_run_bit_for_bit",
        ),
    ),
    "R3": Row(
        "another number of ranks or ZeRO stage: the same global batches, the same state",
        (
            "unit/data/test_batches.py::test_the_slices_of_all_ranks_are_the_global_batch",
            "unit/data/test_batches.py::test_ranks_that_do_not_divide_the_batch_are_refused",
            "integration/test_checkpoint.py::test_another_world_size_or_stage_goes_on",
        ),
        Fault(
            "workers/data/batches.py",
            "slice(rank * rows, (rank + 1) * rows)",
            "slice(0, rows)",
            "unit/data/test_batches.py::test_the_slices_of_all_ranks_are_the_global_batch",
        ),
    ),
    "R4": Row(
        "a rank killed: the group is replaced, nothing is lost",
        ("chaos/test_kill.py",),
        Fault(
            "orchestrator/training/driver.py",
            "max_failures=cluster.max_failures",
            "max_failures=0",
            "chaos/test_kill.py::test_a_run_whose_rank_is_killed_is_the_undisturbed_run",
        ),
    ),
    "R5": Row(
        "a rank stopped: named with machine, process and phase within the bound, and replaced",
        ("chaos/test_kill.py", "unit/controller/test_watch.py"),
        Fault(
            "orchestrator/controller/watch.py",
            "[0]))[0] > bound_s:",
            "[0]))[0] > 9 * bound_s:",
            "unit/controller/test_watch.py",
        ),
    ),
    "R6": Row(
        "the controller killed at any moment: no acknowledged update lost, none counted twice",
        ("chaos/test_controller_kill.py", "unit/controller/test_journal.py"),
        Fault(
            "orchestrator/controller/core.py",
            "return feedback.step > self._last_counted",
            "return True",
            "unit/controller/test_journal.py::test_pushing_again_changes_nothing",
        ),
    ),
    "R7": Row(
        "the driver killed: the same command goes on; an earlier attempt's feedback is refused",
        ("chaos/test_kill.py", "unit/controller/test_core.py::test_lower_attempts_and_other_runs_are_refused"),
        Fault(
            "orchestrator/controller/core.py",
            "if feedback.attempt < self.attempt:",
            "if False:",
            "unit/controller/test_core.py::test_lower_attempts_and_other_runs_are_refused",
        ),
    ),
    "R8": Row(
        "the head killed with all of Ray: the same command goes on from the run's folder alone",
        ("chaos/test_kill.py", "unit/engine/test_checkpoint.py"),
        Fault(
            "workers/engine/checkpoint.py",
            "for path in reversed(list_checkpoints(folder)):",
            "for path in list_checkpoints(folder):",
            "unit/engine/test_checkpoint.py",
        ),
    ),
    "R9": Row(
        "a torn or altered checkpoint is never loaded: named by file, the one before it is used",
        ("unit/engine/test_checkpoint.py", "unit/engine/test_stored_tensors.py", "integration/test_not_finite.py"),
        Fault(
            "workers/engine/checkpoint.py",
            'if sha256(path / name) != expected["sha256"]:',
            "if False:",
            "unit/engine/test_checkpoint.py",
        ),
    ),
    "R10": Row(
        "a full disk: the run stops at once with place and bytes, the checkpoint before is unharmed",
        (
            "chaos/test_full_disk.py",
            "unit/training/test_full_disk.py",
            "unit/controller/test_journal.py::test_what_could_not_be_written_was_never_decided",
            "integration/test_checkpoint.py::test_a_disk_error_is_raised_on_all_ranks_and_keeps_the_previous_checkpoint",
        ),
        Fault(
            "orchestrator/training/driver.py",
            "    if read_failure(plan.folder):  #",
            "    if False:  #",
            "unit/training/test_full_disk.py",
        ),
    ),
    "R11": Row(
        "bad rows: every one found with file, line and reason, no good row lost",
        ("unit/data/test_sources.py", "security/test_untrusted_rows.py", "security/test_damaged_files.py"),
        Fault(
            "workers/data/framing.py",
            "MAX_ROW_BYTES = 8 * 2**20",
            "MAX_ROW_BYTES = 2**40",
            "unit/data/test_sources.py",
        ),
    ),
    "R12": Row(
        "NaN or infinite on any rank: no update anywhere, the domain and rows are named",
        (
            "integration/test_not_finite.py",
            "integration/test_gradients.py::test_a_gradient_that_is_not_finite_changes_nothing_and_is_told",
            "integration/test_gradients.py::test_no_checkpoint_holds_what_is_not_finite",
            "unit/controller/test_core.py::test_a_bad_loss_is_replaced_by_the_last_good_one_and_told",
        ),
        Fault(
            "workers/engine/optimizer.py",
            "if not math.isfinite(self.norm):",
            "if False:",
            "integration/test_gradients.py::test_a_gradient_that_is_not_finite_changes_nothing_and_is_told",
        ),
    ),
    "R13": Row(
        "no rank trains a step on an old mix",
        (
            "unit/data/test_batches.py::test_no_batch_of_an_old_mix_after_its_announcement",
            "unit/controller/test_core.py::test_a_version_that_was_pulled_is_never_replaced_for_that_step",
            "integration/test_live_run.py::test_what_was_set_and_pinned_by_hand_holds_from_its_step_on",
        ),
        Fault(
            "workers/data/batches.py",
            "self._ready[-1].step >= weights.effective_step",
            "self._ready[-1].step > weights.effective_step",
            "unit/data/test_batches.py::test_no_batch_of_an_old_mix_after_its_announcement",
        ),
    ),
    "R14": Row(
        "a slow rank: shares unchanged, and it is named",
        ("chaos/test_slow_rank.py", "unit/controller/test_watch.py"),
        Fault("orchestrator/controller/watch.py", "_SLOW = 2.0", "_SLOW = 200.0", "unit/controller/test_watch.py"),
    ),
    "R15": Row(
        "1,000 workers at one controller: nothing lost, memory flat (how soon it answers: benchmarks/controller.py)",
        ("unit/controller/test_many_workers.py",),
        Fault(
            "orchestrator/controller/core.py",
            "feedback.step > self._last_counted",
            "feedback.step >= self._last_counted",
            "unit/controller/test_many_workers.py",
        ),
    ),
    "R16": Row(
        "at every step each domain is within a row of its share; weight 0 is never drawn",
        ("unit/data/test_apportionment.py", "unit/data/test_schedule.py"),
        Fault(
            "workers/data/apportionment.py",
            'np.argsort(due_D, kind="stable")',
            'np.argsort(-due_D, kind="stable")',
            "unit/data/test_apportionment.py",
        ),
    ),
    "R17": Row(
        "every mixing algorithm: finite shares that sum to one, a state that carries everything",
        ("contract/test_mixing_algorithms.py",),
        Fault(
            "orchestrator/mixing/base.py",
            "return {name: value / total for name, value in values.items()}",
            "return dict(values)",
            "contract/test_mixing_algorithms.py",
        ),
    ),
    "R18": Row(
        "a search whose driver is killed: what is done stays done",
        (
            "integration/test_cluster.py::test_a_search_whose_driver_was_killed_goes_on_and_leaves_every_cpu_free",
            "unit/sweeps/tune/test_trial.py::test_a_trial_that_was_done_reports_the_same_again_and_trains_nothing",
        ),
        Fault(
            "orchestrator/sweeps/tune/sampling.py",
            "                if is_done(folder):\n                    return\n",
            "",
            "unit/sweeps/tune/test_trial.py::test_a_trial_that_was_done_reports_the_same_again_and_trains_nothing",
        ),
    ),
    "R19": Row(
        "faults of every kind at random moments: the undisturbed run's result",
        ("chaos/test_random_faults.py", "chaos/test_object_storage.py"),
        Fault(
            "workers/training/step_log.py",
            "    file.truncate(keep)",
            "    pass",
            "chaos/test_random_faults.py",
        ),
    ),
    "R20": Row(
        "SIGTERM or Ctrl-C: a checkpoint, and the same command goes on",
        (
            "unit/training/test_stopping.py",
            "integration/test_compare.py::test_stopped_runs_are_resumed_and_all_others_are_done",
            "integration/test_ended_runs.py",
        ),
        Fault(
            "orchestrator/training/driver.py",
            "        stopping.set()\n\n    before",
            "        pass\n\n    before",
            "unit/training/test_stopping.py",
        ),
    ),
    "S1": Row(
        "a local run listens on 127.0.0.1 only",
        ("integration/test_live_run.py::test_it_is_kept_to_this_machine_and_its_user",),
        Fault(
            "orchestrator/training/driver.py",
            'LocalTorchConfig if cluster.address == "local" else TorchConfig',
            "TorchConfig",
            "integration/test_live_run.py::test_it_is_kept_to_this_machine_and_its_user",
        ),
    ),
    "S2": Row(
        "nothing acts without the token, nor for another site's page",
        (
            "unit/dashboard/test_server.py",
            "unit/dashboard/test_remote.py",
            "integration/test_live_run.py::test_what_was_set_and_pinned_by_hand_holds_from_its_step_on",
        ),
        Fault(
            "orchestrator/dashboard/guard.py",
            'scheme.lower() == "bearer" and hmac.compare_digest(digest_of(given.strip()), digest)',
            'scheme.lower() == "bearer"',
            "unit/dashboard/test_server.py",
        ),
    ),
    "S3": Row(
        "Ray as it is deployed takes no job without its token",
        (
            "integration/test_cluster.py::test_without_the_right_token_nothing_is_taken",
            "unit/deploy/test_ray_cluster.py",
            "unit/deploy/test_kuberay.py",
        ),
        Fault(
            "deploy/ray-cluster.yaml",
            "RAY_AUTH_MODE=token ~/raymix-env/bin/ray start --head",
            "~/raymix-env/bin/ray start --head",
            "unit/deploy/test_ray_cluster.py::test_every_ray_is_started_with_the_token_that_is_copied",
        ),
    ),
    "S4": Row(
        "a hostile configuration: nothing runs, refused within a second and 64 MiB",
        ("security/test_configuration.py",),
        Fault(
            "orchestrator/config/load.py",
            "elif self._num_values > _MAX_VALUES:",
            "elif self._num_values > _MAX_VALUES * 10**6:",
            "security/test_configuration.py",
        ),
    ),
    "S5": Row(
        "nothing that is read from disk can run code",
        (
            "unit/test_architecture.py::test_nothing_read_from_disk_can_run_code",
            "security/test_untrusted_rows.py::test_a_store_never_unpickles",
        ),
        Fault(
            "workers/data/store.py",
            'np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)',
            'np.load(folder / f"{name}.npy", allow_pickle=True)',
            "security/test_untrusted_rows.py::test_a_store_never_unpickles",
        ),
    ),
    "S6": Row(
        "no code of a model or a data set runs, no pickled weights are read",
        ("unit/model/test_loading.py", "security/test_untrusted_rows.py::test_a_loading_script_is_never_run"),
        Fault(
            "workers/model/base_config.py",
            "revision=config.revision, trust_remote_code=False)",
            "revision=config.revision, trust_remote_code=True)",
            "unit/test_architecture.py::test_nothing_read_from_disk_can_run_code",
        ),
    ),
    "S7": Row(
        "no name leads out of its folder, no row is taken for a path",
        (
            "unit/dashboard/test_catalog.py::test_no_name_leads_out_of_the_folder",
            "unit/dashboard/test_server.py::test_no_address_leads_out_of_the_folder",
            "security/test_untrusted_rows.py::test_a_row_is_never_taken_for_a_path",
        ),
        Fault(
            "orchestrator/dashboard/catalog.py",
            "is_inside = folder.is_relative_to(self.root) and folder.is_dir()",
            "is_inside = folder.is_dir()",
            "unit/dashboard/test_catalog.py",
        ),
    ),
    "S8": Row(
        "endless lines and compressed bombs: given up in flat memory",
        (
            "unit/data/test_sources.py::test_a_bomb_is_given_up_in_flat_memory",
            "unit/data/test_sources.py::test_a_line_over_the_limit_costs_only_itself",
            "security/test_damaged_files.py",
            "security/test_damaged_runs.py",
        ),
        Fault(
            "workers/data/reading.py",
            "_MAX_EXPANSION = 200",
            "_MAX_EXPANSION = 10**9",
            "unit/data/test_sources.py::test_a_bomb_is_given_up_in_flat_memory",
        ),
    ),
    "S9": Row(
        "hostile names are text in every page",
        ("unit/dashboard/test_server.py", "integration/test_dashboard.py::test_hostile_names_stay_names"),
        Fault(
            "orchestrator/views/table.py",
            "autoescape=True",
            "autoescape=False",
            "unit/dashboard/test_server.py::test_hostile_names_are_text_in_every_page",
        ),
    ),
}


def _pytest(tests: list[str], folder: Path, results: Path) -> int:
    command = [sys.executable, "-m", "pytest", f"--junit-xml={results}", *(f"tests/{test}" for test in tests)]
    environment = os.environ | {"PYTHONPATH": str(folder), "RAYMIX_SHARED": _shared()}
    return subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


def _shared() -> str:
    return os.environ.get("RAYMIX_SHARED", str(ROOT.parent / "shared"))


def _measure(rows: list[str]) -> bool:
    """Run the tests of the rows, each file once, and print the table; whether every row is held."""
    wanted = sorted({test for name in rows for test in ROWS[name].tests})
    whole = {test for test in wanted if "::" not in test}
    files = [test for test in wanted if test in whole or test.partition("::")[0] not in whole]
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        _pytest(files, ROOT, results)
        cases = [(_id_of(case), case) for case in ElementTree.parse(results).getroot().iter("testcase")]
    num_held = 0
    for name in rows:
        row, counts = ROWS[name], {"passed": 0, "skipped": 0, "failed": 0}
        for test, case in cases:
            if any(test == each or test.startswith((f"{each}::", f"{each}[")) for each in row.tests):
                bad = case.find("failure") is not None or case.find("error") is not None
                counts["failed" if bad else "skipped" if case.find("skipped") is not None else "passed"] += 1
        is_held = counts["passed"] > 0 and not counts["failed"]
        num_held += is_held
        numbers = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "no test yet"
        print(f"{name:4} {'held' if is_held else 'NOT HELD':9} {row.promise}  ({numbers})")
    print(f"{num_held} of {len(rows)} rows are held")
    return num_held == len(rows)


def _id_of(case: ElementTree.Element) -> str:
    """As pytest is given it, below tests/."""
    file = case.attrib["classname"].removeprefix("tests.").replace(".", "/")
    return f"{file}.py::{case.attrib['name']}"


def _plant(rows: list[str]) -> bool:
    """Plant the fault of each row in a copy of the tree; whether each turned its test red."""
    all_red = True
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=_NOT_COPIED)
        for name in rows:
            fault = ROWS[name].fault
            path = copy / fault.file
            content = path.read_text()
            path.write_text(content.replace(fault.right, fault.wrong))
            code = _pytest([fault.test], copy, Path(folder) / "results.xml")
            path.write_text(content)
            all_red &= code == 1  # of pytest: tests failed
            print(f"{name:4} {'red' if code == 1 else f'NOT RED (exit code {code})'}  {fault.file}: {fault.wrong!r}")
    return all_red


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="all if none is given")
    parser.add_argument("--plant", action="store_true", help="plant each row's fault instead")
    arguments = parser.parse_args()
    rows = arguments.rows or list(ROWS)
    if unknown := [name for name in rows if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    return 0 if (_plant if arguments.plant else _measure)(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
