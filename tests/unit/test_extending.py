"""The package that docs/extending.md shows, written down outside of the tree, installed as pip does it, and used."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")

CONFIG = """
name: extended
model: {path: Qwen/Qwen2.5-0.5B}
domains:
  math: {train: [math.jsonl], eval: [math.jsonl]}
  code: {train: [code.jsonl], eval: [code.jsonl]}
mixing: {type: by_loss, power: 0.5, initial: {math: 0.25, code: 0.75}}
training:
  max_steps: 2
  strategy: {type: biases, also: [head]}
"""


def install(folder: Path, name: str, version: str, entry_points: dict[str, dict[str, str]]) -> None:
    """What pip leaves of a distribution, as far as it says what is installed."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{point} = {value}" for point, value in points.items())])
        for group, points in entry_points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups) + "\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, outside of the tree, that the documented package is installed in."""
    folder = tmp_path_factory.mktemp("site-packages")
    files = dict(re.findall(r"^`(raymix_extras/\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
    assert len(files) == 4 and len(files) == PAGE.count("```python"), "every example is a complete file"
    (folder / "raymix_extras").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    project = tomllib.loads(block)["project"]
    install(folder, project["name"], project["version"], project["entry-points"])
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in another folder, with what is installed in it and with raymix on its path."""
    path = f"{folder}:{ROOT}"
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True, check=False
    )


def evaluate(folder: Path, script: str) -> Any:
    """What a script prints, as JSON."""
    done = run_python(folder, "-c", script)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_algorithm_of_the_guide_passes_the_contract_tests(installed: Path) -> None:
    contract = ROOT / "tests" / "contract" / "test_mixing_algorithms.py"
    num_tests = contract.read_text(encoding="utf-8").count('@pytest.mark.parametrize("kind", MIXING_ALGORITHMS)')
    done = run_python(installed, "-m", "pytest", str(contract), "-k", "by_loss", "-p", "no:cacheprovider")
    assert done.returncode == 0 and f"{num_tests} passed" in done.stdout, done.stdout + done.stderr


def test_a_configuration_names_the_algorithm_and_the_strategy_of_the_guide(installed: Path) -> None:
    script = """
import json
from pathlib import Path
from orchestrator.config.load import load_config
from orchestrator.mixing import Domain, Measured, build_mixing_algorithm, initial_weights, resolve_mixing
from workers.contracts import DomainFeedback

config = load_config(Path("config.yaml"), check_files=False)
domains = [Domain("math", 1, 1), Domain("code", 1, 1)]
algorithm = build_mixing_algorithm(resolve_mixing(config.mixing, Measured(), config.trained_domains), domains)
feedback = DomainFeedback(
    run_id="r", attempt=1, step=0, weights_version=0,
    loss_sum_nats={"math": 90.0, "code": 10.0}, num_tokens={"math": 10, "code": 10},
)
print(json.dumps({
    "first": initial_weights(config.mixing, domains),
    "then": algorithm.observe(feedback),
    "kept": json.loads(config.model_dump_json())["mixing"],
    "strategy": type(config.training.strategy).__name__,
}))
"""
    found = evaluate(installed, script)
    assert found["first"] == {"math": 0.25, "code": 0.75}
    assert found["then"] == pytest.approx({"math": 0.75, "code": 0.25})  # square roots of 9 and 1
    assert found["kept"]["power"] == 0.5 and found["kept"]["initial"] == {"math": 0.25, "code": 0.75}
    assert found["strategy"] == "BiasesConfig"


def test_the_settings_of_the_guide_are_checked_as_ours_are(installed: Path) -> None:
    """The names of domains included, in a field whose name nothing else in the system knows."""
    (installed / "wrong.yaml").write_text(CONFIG.replace("math: 0.25", "maths: 0.25"))
    (installed / "misspelt.yaml").write_text(CONFIG.replace("power", "powr"))
    for name, what in (("wrong", "mixing.initial: ['maths'] are not domains of this run"), ("misspelt", "powr")):
        done = run_python(installed, "-m", "orchestrator.cli.main", "check", f"{name}.yaml")
        assert done.returncode == 2 and what in done.stderr, done.stderr


def test_the_signal_of_the_guide_is_measured(installed: Path) -> None:
    script = """
import json
import numpy as np
from workers.signals import MeasuredExamples, build_signal

def part(domain_E, now_E, base_E, tokens_E):
    return MeasuredExamples(
        num_domains=2, domain_E=np.array(domain_E), mean_hidden_EH=np.ones((len(domain_E), 1)),
        nats_sum_E={"response": np.array(now_E)}, base_nats_sum_E={"response": np.array(base_E)},
        num_targets_E={"response": np.array(tokens_E)},
    )

signal = build_signal("gain", ["a", "b"])
ranks = [part([0, 1], [3.0, 5.0], [9.0, 5.0], [2, 5]), part([0], [1.0], [3.0], [6])]
try:
    build_signal("gain:a", ["a", "b"])
except ValueError as error:
    refused = str(error)
print(json.dumps([signal.values(sum(signal.sums(rank) for rank in ranks)).tolist(), refused]))
"""
    values, refused = evaluate(installed, script)
    assert values == [1.0, 0.0]  # (6 + 2) nats over (2 + 6) tokens; nothing gained
    assert refused == "signal gain:a: it takes no parameter"


def test_the_strategy_of_the_guide_trains_what_it_says(installed: Path) -> None:
    script = """
import json
import torch
from orchestrator.config.load import load_config
from pathlib import Path
from workers.strategies import STRATEGIES

class Model(torch.nn.Module):
    def __init__(self, has_bias):
        super().__init__()
        self.body, self.head = torch.nn.Linear(2, 3, bias=has_bias), torch.nn.Linear(3, 2, bias=False)

strategy, config = STRATEGIES["biases"], load_config(Path("config.yaml"), check_files=False).training.strategy
model = Model(True)
applied = strategy.apply(model, config)
try:
    strategy.apply(Model(False), type(config)())
except ValueError as error:
    refused = str(error)
trained = [name for name, parameter in applied.named_parameters() if parameter.requires_grad]
print(json.dumps([applied is model, trained, refused]))
"""
    assert evaluate(installed, script) == [
        True,
        ["body.bias", "head.weight"],
        "training.strategy: biases: this model has no biases; name modules in `also`",
    ]


def test_the_search_of_the_guide_is_driven_to_its_end(installed: Path) -> None:
    """From a file that names it to what `raymix tune` leaves; the trainings are pretended, and their loss is sigma."""
    script = """
import json
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console

from orchestrator.config.load import load_config
from orchestrator.sweeps.tune import driver
from orchestrator.training import plan
from tests.crews import OneByOne, WorkHere
from tests.unit.sweeps.pretended import config_in, pretend, write_data
from workers.contracts import DomainFeedback

@contextmanager
def open_work(log):
    yield WorkHere()

def train(run):
    pretend(run)
    rounds.append(run.plan.folder.name.rpartition("-")[0])
    for path in (run.plan.folder / "feedback").glob("*[1-9].json"):
        feedback = DomainFeedback.model_validate_json(path.read_text())
        losses = {name: 10 * run.plan.training.learning_rate for name in feedback.loss_sum_nats}
        path.write_text(feedback.model_copy(update={"loss_sum_nats": losses}).model_dump_json())

rounds = []
driver.open_work, driver.check_resources = open_work, lambda cluster: None
driver.SideBySide = lambda console, at_most: OneByOne(train)
plan.find_start = lambda config: None  # a pretended training leaves no checkpoint
write_data(Path())
written = config_in(Path(), "halved").model_dump(mode="json", exclude_unset=True)
rates = {"training.learning_rate": {"loguniform": [1e-5, 1e-1]}}
written["search"] = {"type": "halving", "num_points": 4, "round_steps": 3, "space": rates}
Path("halved.yaml").write_text(yaml.safe_dump(written))
driver.tune(load_config(Path("halved.yaml"), check_files=False), Console())
folder = Path("runs/halved-tune")
record = json.loads((folder / "search.json").read_text())
Path("found.json").write_text(json.dumps({
    "record": record,
    "rounds": rounds,
    "page": (folder / "search.html").read_text(),
    "best": yaml.safe_load((folder / "best.yaml").read_text()),
}))
"""
    done = run_python(installed, "-c", script)
    assert done.returncode == 0, done.stderr
    found = json.loads((installed / "found.json").read_text())
    record, best = found["record"], found["best"]
    assert found["rounds"] == ["generation-1"] * 4 + ["generation-2"] * 2 + ["generation-3"]
    rates = [trial["changes"]["training.learning_rate (1)"] for trial in record["trials"]]
    scores = [trial["course"][-1]["score"] for trial in record["trials"]]
    assert record["type"] == "halving" and scores == pytest.approx(rates, rel=1e-6)
    assert rates[4:6] == sorted(rates[:4])[:2] and rates[6] == min(rates)
    assert [trial["course"][-1]["step"] for trial in record["trials"]] == [3] * 4 + [6] * 2 + [9]
    assert record["notes"] == ["3 rounds; (n): in round n."] and "7 trials of a halving search" in found["page"]
    assert {stage["learning_rate"] for stage in best["stages"]} == {min(rates)}
    assert best["name"] == "halved-best"


@pytest.mark.parametrize("module", ["by_loss", "gain", "biases", "halving"])
def test_the_modules_of_a_package_can_be_imported_first(installed: Path, module: str) -> None:
    """A package's own tests do so: the table that it is in must then not be built half way through its import."""
    script = f"""
import json
import raymix_extras.{module}
from orchestrator.mixing import MIXING_ALGORITHMS
from workers.plugins import plugin_faults
from workers.signals import SIGNALS
from workers.strategies import STRATEGIES
from orchestrator.searches import SEARCHES
found = ["by_loss" in MIXING_ALGORITHMS, "gain" in SIGNALS, "biases" in STRATEGIES, "halving" in SEARCHES]
print(json.dumps([*found, plugin_faults()]))
"""
    assert evaluate(installed, script) == [True, True, True, True, []]


def test_a_package_that_cannot_be_used_is_named_in_a_line(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "raymix_extras").symlink_to(installed / "raymix_extras")
    (tmp_path / "raymix_broken.py").write_text("import nowhere_to_be_found\n")
    mixing = {
        "uniform": "raymix_extras.by_loss:ByLoss",
        "gone": "raymix_broken:Gone",
        "half": "raymix_extras.by_loss:Half",
        "renamed": "raymix_extras.by_loss:ByLoss",
        "config": "raymix_extras.by_loss:ByLossConfig",
    }
    signals = {"gain:er": "raymix_extras.gain:Gain", "shape": "raymix_extras.by_loss:ByLoss"}
    strategies = {"full": "raymix_extras.biases", "none": "raymix_extras.gain", "bias": "raymix_extras.biases"}
    searches = {"pbt": "raymix_extras.halving:Halving", "loss": "raymix_extras.by_loss:ByLoss"}
    searches |= {"thirds": "raymix_extras.halving:Halving"}
    points = {"raymix.mixing": mixing, "raymix.signals": signals, "raymix.strategies": strategies}
    points["raymix.searches"] = searches
    install(tmp_path, "raymix-broken", "1.2", points)
    (tmp_path / "config.yaml").write_text(CONFIG)
    done = run_python(tmp_path, "-m", "orchestrator.cli.main", "run", "config.yaml")
    assert done.returncode == 2
    line = re.compile(r"plugin '(.+)' of raymix-broken 1\.2, group (raymix\.\w+): (.+); fix or uninstall it")
    faults = {match[1]: match[3] for text in done.stderr.splitlines() if (match := line.fullmatch(text))}
    assert len(done.stderr.splitlines()) == len(faults) == 13, done.stderr
    assert faults == {
        "uniform": "the name 'uniform' is taken",
        "gone": "raymix_broken:Gone cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        "half": "raymix_extras.by_loss:Half cannot be imported: AttributeError: module 'raymix_extras.by_loss' has no "
        "attribute 'Half'",
        "renamed": "raymix_extras.by_loss:ByLoss has no config class as its type parameter whose type is "
        "Literal['renamed']",
        "config": "raymix_extras.by_loss:ByLossConfig is not a MixingAlgorithm",
        "gain:er": "raymix_extras.gain:Gain has a colon in its name, which separates a name from its parameter",
        "shape": "raymix_extras.by_loss:ByLoss is not a signal: it has no sums and no values",
        "full": "the name 'full' is taken",
        "none": "raymix_extras.gain is not a strategy: it has no function `apply`",
        "bias": "raymix_extras.biases has no `config_class` of StrategySettings whose type is Literal['bias']",
        "pbt": "the name 'pbt' is taken",
        "loss": "raymix_extras.by_loss:ByLoss is not a Search",
        "thirds": "raymix_extras.halving:Halving has no config class as its type parameter whose type is "
        "Literal['thirds']",
    }
    assert run_python(tmp_path, "-m", "orchestrator.cli.main", "schema").returncode == 0, "the rest works"
