"""The cluster launcher's file, by the launcher's own preparation and schema."""

import re
from typing import Any

import pytest
import yaml

from tests.unit.deploy.manifests import DEPLOY, parse_command

PATH = DEPLOY / "ray-cluster.yaml"


@pytest.fixture(scope="module")
def prepared() -> dict[str, Any]:
    """The configuration as `ray up` has it after its own checks."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(PATH.read_text()))
    validate_config(config)
    return config


def test_all_machines_are_used(prepared: dict[str, Any]) -> None:
    num_workers = len(prepared["provider"]["worker_ips"])
    assert prepared["max_workers"] == num_workers
    (machines,) = prepared["available_node_types"].values()
    assert machines["min_workers"] == machines["max_workers"] == num_workers


def test_every_ray_is_started_with_the_token_that_is_copied(prepared: dict[str, Any]) -> None:
    starts = [
        command
        for part in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in prepared[part]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--head" in starts[0]
    assert "--address=$RAY_HEAD_IP:6379" in starts[1]
    assert prepared["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in prepared["setup_commands"]


def test_the_commands_in_its_head_fit_what_it_copies(prepared: dict[str, Any]) -> None:
    head = "".join(line for line in PATH.read_text().splitlines(keepends=True) if line.startswith("#   "))
    assert f"--wheel-dir {prepared['file_mounts']['~/raymix']} ." in head
    assert f"cp constraints.txt {prepared['file_mounts']['~/raymix']}/" in head
    assert any("~/raymix/constraints.txt ~/raymix/raymix-" in command for command in prepared["setup_commands"])
    (run,) = re.findall(r"(\S*/raymix run [^']+)'", head)
    assert parse_command(run)["config"].name == "config.yaml"
