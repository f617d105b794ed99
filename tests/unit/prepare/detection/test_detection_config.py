"""Settings of detection: what the defaults are, what is refused, and that reading them loads nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.config.detection import DetectionConfig
from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
from tests.unit.prepare.detection.wordy_model import write_config

ROOT = Path(__file__).parents[4]


def load(folder: Path, detection: dict[str, object]) -> None:
    data = write_config(folder / "data").model_dump(mode="json", exclude_none=True, exclude={"detection"})
    (folder / "config.yaml").write_text(yaml.safe_dump(data | {"detection": detection}))
    load_config(folder / "config.yaml")


def test_the_defaults_sample_the_models_own_distribution() -> None:
    generation = DetectionConfig().generation
    assert (generation.temperature, generation.top_p, generation.top_k, generation.repetition_penalty) == (1, 1, 0, 1)
    assert DetectionConfig().judge.type == "classifier" and DetectionConfig().estimate == "corrected"


def test_a_correction_without_calibration_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"detection: .*texts_per_domain is 0; set it to 100, or use"):
        load(tmp_path, {"calibration": {"texts_per_domain": 0}})
    DetectionConfig.model_validate({"calibration": {"texts_per_domain": 0}, "estimate": "average"})


@pytest.mark.parametrize(
    ("detection", "message"),
    [
        ({"judge": {"type": "oracle"}}, "judge"),
        ({"judge": {"type": "endpoint", "base_url": "file:///x", "model": "m"}}, "not an http:// or https:// address"),
        ({"judge": {"type": "endpoint", "base_url": "http://h/v1", "model": "m", "api_key": "sk-1"}}, "api_key"),
        ({"tolerance": 0}, "tolerance"),
        ({"generation": {"temperature": 0}}, "temperature"),
    ],
)
def test_faults_are_named_by_their_place(tmp_path: Path, detection: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, detection)
    (line,) = error.value.lines
    assert message in line and "config.yaml:" in line and "detection" in line


def test_nothing_heavy_is_loaded_to_read_them() -> None:
    heavy = ("sklearn", "scipy", "torch", "ray", "transformers", "httpx2", "tenacity", "plotly")
    script = f"import sys, orchestrator.config.run; print(*sorted({set(heavy)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
