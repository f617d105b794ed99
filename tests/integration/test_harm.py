"""A run that does harm says so, with a real training: the base model stays the best, whatever is trained after it."""

import json
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.views.summary import verdict_lines
from tests.integration import not_finite_cases
from tests.integration.zero_processes import processes
from tests.runs import DOMAINS, write_run

TAUGHT = ("facts", "greetings")
SETTINGS: dict[str, Any] = {
    "mixing": {"type": "uniform"},
    "training__deepspeed__zero_stage": 0,
    "training__max_steps": 8,
    "evaluation__every": 4,
    "evaluation__max_rows": 24,
    "cluster__num_workers": 1,
}


@cache
def demo(root: Path) -> Path:
    """The demo's files, its base model fine-tuned a little: a model that has read nothing has nothing to lose."""
    from orchestrator.cli.demo.driver import write_demo

    write_demo(root / "demo")
    teach(root / "demo" / "base", root / "demo" / "taught", root / "demo" / "data")
    return root / "demo"


def teach(base: Path, output: Path, data: Path, num_steps: int = 200) -> None:
    """Fine-tune the demo's base in plain torch, which takes seconds."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    rows = [line for name in TAUGHT for line in (data / f"{name}.jsonl").read_text().splitlines()]
    choice, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(num_steps):
        batch = tokenizer.apply_chat_template(
            [json.loads(line)["messages"] for line in choice.sample(rows, 8)],
            return_dict=True,
            return_tensors="pt",
            padding=True,
            return_assistant_tokens_mask=True,
        )
        labels = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


@pytest.fixture
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo(tmp_path_factory.getbasetemp())


def train(folder: Path, demo_folder: Path | None = None, base: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The summary of a run on the demo's base and data, or on small ones of its own."""
    if demo_folder is not None:
        data = demo_folder / "data"
        changes |= {
            "model": {"path": str(base), "dtype": "float32"},
            "domains": {
                name: {"train": str(data / f"{name}.jsonl"), "eval": str(data / f"{name}-held-out.jsonl")}
                for name in TAUGHT
            },
            "data": {"max_length": 128},
        }
    folder.mkdir(exist_ok=True)
    assert processes(1).run(not_finite_cases.train, write_run(folder, **(SETTINGS | changes)), {})[0] == ""
    return dict(json.loads((folder / "runs" / "small" / "summary.json").read_text()))


def test_a_learning_rate_that_is_too_high_ends_with_the_verdict(tmp_path: Path, demo_folder: Path) -> None:
    summary = train(tmp_path, demo_folder, demo_folder / "taught", training__learning_rate=1e-2)
    run = RunFolder(tmp_path / "runs" / "small")
    run.refresh()
    assert (summary["verdict"], summary["best"]["step"]) == ("worse_than_base", 0)
    losses = [sum(map(feedback.loss_nats, run.domains)) / len(run.domains) for feedback in run.feedback]
    assert len(losses) == 3 and min(losses) == losses[0] == pytest.approx(summary["best"]["loss_nats"])
    assert not (run.path / "best").exists() and (run.path / "model" / "config.json").exists()
    assert run.summary is not None
    first, causes, *_ = verdict_lines(run, run.summary)
    assert first.startswith("Worse than the base model: ") and "a learning rate that is too high" in causes


def test_a_run_that_does_good_keeps_its_best(tmp_path: Path) -> None:
    summary = train(tmp_path)
    assert summary["verdict"] == "improved" and summary["best"]["step"] == 8
    assert (tmp_path / "runs" / "small" / "best" / "config.json").exists()
    assert not (tmp_path / "runs" / "small" / "checkpoints" / "best").exists()  # it became that folder


@pytest.mark.parametrize("state", ["of an older version", "as it is"])
def test_a_run_that_goes_on_counts_the_base_whoever_wrote_its_checkpoint(tmp_path: Path, state: str) -> None:
    """An older version kept the best of the evaluations after the base's, in best/ and in the checkpoint's state."""
    path = write_run(tmp_path, **SETTINGS, training__learning_rate=1.0, training__checkpoint_every=4)
    assert processes(1).run(not_finite_cases.train, path, {})[0] == ""
    folder = tmp_path / "runs" / "small"
    losses = json.loads((folder / "summary.json").read_text())
    assert losses["verdict"] == "worse_than_base"
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    for name in ("summary.json", "feedback/00000008.json"):
        (folder / name).unlink()
    if state == "of an older version":
        older = {"step": 4, "criterion": "mean", "loss_nats": 1e6}
        rewrite_state(folder / "checkpoints" / "step-00000004", older)
        shutil.copytree(folder / "model", folder / "best")
    shutil.rmtree(folder / "model")
    assert processes(1).run(not_finite_cases.train, path, {})[0] == ""
    assert json.loads((folder / "summary.json").read_text())["best"] == losses["best"]
    newest = json.loads((folder / "checkpoints" / "step-00000008" / "state.json").read_text())["state"]["best"]
    assert newest == losses["best"] and newest["step"] == 0
    assert not (folder / "best").exists()
    told = "best/ was removed: up to step 4 no evaluation beat" in (folder / "events.jsonl").read_text()
    assert told == (state == "of an older version")


def rewrite_state(checkpoint: Path, best: dict[str, Any]) -> None:
    import hashlib

    path = checkpoint / "state.json"
    content = json.loads(path.read_text())
    assert content["state"]["best"]["step"] == 0
    content["state"]["best"] = best
    path.write_text(json.dumps(content, indent=1))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = {
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_every_domain_says_what_became_of_it(tmp_path: Path) -> None:
    domains = train(tmp_path)["domains"]
    assert list(domains) == list(DOMAINS)
    for domain in domains.values():
        assert domain["lowest_step"] in (0, 4, 8) and domain["loss_nats_lowest"] <= domain["loss_nats_end"]
        assert domain["is_worse_than_base"] is False
