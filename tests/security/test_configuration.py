"""A hostile configuration: nothing is executed, and it is refused within a second and 64 MiB."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MERGES = "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))
LAUGHS = "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
HOSTILE = {
    "apply": "name: !!python/object/apply:os.system ['touch MARKER']",
    "new": "name: !!python/object/new:os.system ['touch MARKER']",
    "name": "name: !!python/name:os.system",
    "tagged mapping": "training: !!python/object:os.stat_result {max_steps: 1}",
    "tagged list": "training: !!python/tuple [1]",
    "own tag": "name: !exec touch MARKER",
    "alias bomb": "a0: &a0 [x, x]\n" + LAUGHS,
    "merge bomb": "a0: &a0 {x: 1}\n" + MERGES,
    "alias of itself": "name: &a [*a]",
    "merge of itself": "name: &a {<<: *a}",
    "deep": "name: " + "[" * 100_000,
    "deep block": "".join("  " * depth + "a:\n" for depth in range(300)),
    "long list": "name: [" + "1," * 120_000 + "]",
    "long number": "seed: " + "9" * 200_000,
    "10 MB": "name: " + "x" * 10_000_000,
    "NUL": "name: a\0b",
    "two documents": "name: a\n---\nname: b",
    "escapes": 'name: "\\e[2J"',
}
# Runs the loader alone and prints seconds and further memory; importing it is not the file's doing.
CODE = """
import resource, sys, time
from pathlib import Path
from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
for path in map(Path, sys.argv[1:]):
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        load_config(path)
    except ConfigError as error:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(path.stem, time.process_time() - began, used, len(str(error)), repr(str(error)), sep="|")
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, int, int, str]]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, text in HOSTILE.items():
        (folder / f"{name}.yaml").write_text(text.replace("MARKER", str(folder / "marker")))
    paths = [str(folder / f"{name}.yaml") for name in HOSTILE]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *paths], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "marker").exists()
    found = {}
    for line in done.stdout.splitlines():
        name, seconds, kibibytes, length, message = line.split("|", 4)
        found[name] = (float(seconds), int(kibibytes), int(length), message)
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_quickly_and_briefly(refusals: dict[str, tuple[float, int, int, str]], name: str) -> None:
    seconds, kibibytes, length, message = refusals[name]
    assert seconds < 2  # one second on a machine that is not busy
    assert kibibytes < 64 * 1024
    assert ("tag '" in message) == ("!" in HOSTILE[name])
    assert length < 2500 and f"{name}.yaml" in message and "\\x1b[" not in message.replace("\\\\x1b", "")


def test_memory_is_measured_in_the_unit_that_is_meant() -> None:
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 1024  # KiB on Linux
