"""One rank is slow: it is named, and the run is what it would have been."""

import json
import os
from pathlib import Path

import pytest

from tests.chaos.test_kill import assert_equal_runs
from tests.runs import ROOT, raymix, read_lines, write_run
from tests.unit.test_extending import install

# Full fine-tuning in which every forward pass of the second rank takes a tenth of a second longer, give or take: many
# times as long as the first rank's.
STRATEGY = '''
import os
import random
import time
from typing import Literal

from workers.strategies.full import apply
from workers.strategy import StrategySettings


class SlowConfig(StrategySettings):
    """As full fine-tuning."""

    type: Literal["slow"] = "slow"
    """The name."""


config_class = SlowConfig


def attach(engine, config):
    if os.environ["RANK"] == "1":
        engine.module.register_forward_hook(lambda *_: time.sleep(random.uniform(0.05, 0.15)))
    return None
'''


@pytest.mark.soak
def test_a_slow_rank_is_named_and_changes_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_strategy.py").write_text(STRATEGY)
    install(tmp_path, "slow-strategy", "1.0", {"raymix.strategies": {"slow": "slow_strategy"}})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    references = json.loads((finished / "reference.json").read_text())["loss_nats"]
    config = write_run(
        tmp_path, mixing__reference=references, training__strategy={"type": "slow"}, cluster__hang_seconds=12
    )
    done = raymix("run", config)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "small"
    assert_equal_runs(run, finished)
    (named,) = [line for line in read_lines(run / "events.jsonl") if line["kind"] == "slow_rank"]
    assert named["step"] <= 20
    assert named["message"].startswith("rank 1 on ") and "is slow, and the others wait for it" in named["message"]
    assert not [line for line in read_lines(finished / "events.jsonl") if line["kind"] == "slow_rank"]
