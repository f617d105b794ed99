"""`raymix coarse-search` as a user runs it: a tree of two levels, trained node by node, and the same command again."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs import raymix, read_lines, write_llama, write_run
from workers.contracts import DomainFeedback

SPECIALITY, OTHERS = "add", ("copy", "law")
MODULES = ("attention", "feed_forward")
BROAD = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))
WEIGHT = 0.5
NUM_STEPS = 6

pytestmark = pytest.mark.soak
Candidate = tuple[tuple[float, float], str]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a search that has ended; its last step has nothing new to train."""
    path = write_run(
        tmp_path_factory.mktemp("coarse"),
        cluster__num_workers=1,
        mixing={"type": "uniform"},
        training__max_steps=NUM_STEPS,
        evaluation__every=NUM_STEPS,
        coarse_search={
            "speciality": [SPECIALITY],
            "versatility_weight": WEIGHT,
            "num_seeds": 1,
            "tie_margin": 0,
            "module_sets": [[module] for module in MODULES],
        },
    )
    write_llama(path.parent / "base", num_hidden_layers=4)  # the fewest that every range of the tree has a layer of
    done = raymix("coarse-search", path)
    assert done.returncode == 0, done.stderr
    assert not any(word in done.stdout for word in ("Traceback", "ray::", "DeepSpeed", "WARNING"))
    (path.parent / "stdout.txt").write_text(done.stdout)
    return path


def search_folder(config: Path) -> Path:
    return config.parent / "runs" / "small-search"


def read_nodes(config: Path) -> dict[Candidate, dict[str, Any]]:
    nodes = json.loads((search_folder(config) / "coarse.json").read_text())["nodes"]
    return {(tuple(node["layers"]), *node["modules"]): node for node in nodes}


def measure(run: Path) -> tuple[float, float]:
    """What a run gained on the speciality, and how probable it left all else, from its first and last evaluation."""
    files = sorted((run / "feedback").glob("*.json"))
    start, end = (DomainFeedback.model_validate_json(files[i].read_bytes()) for i in (0, -1))
    assert (start.step, end.step) == (0, NUM_STEPS)
    fall = {name: start.loss_nats(name) - end.loss_nats(name) for name in (SPECIALITY, *OTHERS)}
    return fall[SPECIALITY], sum(math.exp(fall[name]) for name in OTHERS) / len(OTHERS)


def halves(layers: tuple[float, float]) -> list[tuple[float, float]]:
    middle = sum(layers) / 2
    return [(layers[0], middle), (middle, layers[1])]


def test_every_node_trains_its_own_part_on_the_speciality_alone(config: Path) -> None:
    nodes = read_nodes(config)
    assert len(nodes) == 6 + 4 and {node[0] for node in nodes} > set(BROAD)
    ends = set()
    for (layers, module), node in nodes.items():
        (run,) = map(Path, node["runs"])
        strategy = json.loads((run / "config.json").read_text())["training"]["strategy"]
        assert (strategy["type"], strategy["mask"]) == ("cofitune", "none")
        assert (tuple(strategy["layers"]), strategy["modules"]) == (layers, [module])
        assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, NUM_STEPS + 1))
        assert {line["domain"] for line in read_lines(run / "samples.jsonl")} == {SPECIALITY}
        assert not {path.name for path in run.iterdir()} & {"model", "best", "checkpoints"}
        ends.add(measure(run))
    assert len(ends) == len(nodes)  # no two of them moved the same weights
    assert len(list(search_folder(config).glob("*/summary.json"))) == len(nodes) + 1  # and full fine-tuning


def test_the_winner_is_the_one_that_the_runs_losses_say(config: Path) -> None:
    """The tree walked again from the evaluations on disk: Spec, Vers, Uni, and which nodes went on."""
    nodes, folder = read_nodes(config), search_folder(config)
    full_gain, full_left = measure(folder / "full-seed0")
    assert full_gain > 0
    uni: dict[Candidate, float] = {}
    for place, node in nodes.items():
        gain, left = measure(Path(node["runs"][0]))
        uni[place] = gain / full_gain + WEIGHT * left
        assert (node["spec"], node["vers"], node["uni"]) == pytest.approx((gain / full_gain, left, uni[place]))
    first = max(((layers, module) for layers in BROAD for module in MODULES), key=uni.__getitem__)
    narrow = [(layers, module) for layers in halves(first[0]) for module in MODULES]
    winner = max(narrow, key=uni.__getitem__)
    assert {place for place, node in nodes.items() if node["is_kept"]} == {first, winner}
    assert {place for place, node in nodes.items() if 2 in node["steps"]} == set(narrow)
    assert {place for place, node in nodes.items() if 3 in node["steps"]} == {(winner[0], module) for module in MODULES}
    record = json.loads((folder / "coarse.json").read_text())
    assert record["full_versatility"] == pytest.approx(full_left)
    strategy = {"type": "cofitune", "layers": list(winner[0]), "modules": [winner[1]]}
    assert record["winner"] == yaml.safe_load((folder / "strategy.yaml").read_text())["strategy"] == strategy


def test_the_terminal_and_the_page_show_every_node(config: Path) -> None:
    printed, page = (config.parent / "stdout.txt").read_text(), (search_folder(config) / "coarse.html").read_text()
    assert len(page) > 100_000  # its scripts lie inside it
    for (layers, module), node in read_nodes(config).items():
        title = f"layers {100 * layers[0]:g}-{100 * layers[1]:g} %, {module.replace('_', '-')}"
        (line,) = (line for line in printed.splitlines() if line.strip().startswith(title))
        numbers = [f"{node[key]:.3f}" for key in ("spec", "vers", "uni")]
        assert line.removeprefix(f" {title}").split()[:3] == numbers
        assert title in page and all(number in page for number in numbers)


def test_the_same_command_again_trains_nothing(config: Path) -> None:
    folder = search_folder(config)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix == ".jsonl"}
    record, events = (folder / "coarse.json").read_bytes(), [path.read_bytes() for path in before]
    again = raymix("coarse-search", config, timeout_s=60)
    assert again.returncode == 0, again.stderr
    assert "starting Ray" not in again.stdout and "7 of 7 runs are done already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [path.read_bytes() for path in before] == events
    assert (folder / "coarse.json").read_bytes() == record
