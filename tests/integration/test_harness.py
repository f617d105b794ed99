"""Tasks that the harness should not be left alone with: they run code, or cannot be had."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from orchestrator.benchmarks.harness import evaluate_model, load_tasks
from tests.integration.plain_scores import PlainModel, write_tasks
from tests.runs import write_llama
from workers.config.model import ModelConfig
from workers.model.tokenizer import load_tokenizer

QUESTIONS = ("1+1=", "what is law", "say court")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Local task files; the harness's own 14,000, which take seconds to read, are left out."""
    from lm_eval.tasks._index import TaskIndex

    build: Callable[[Any, list[Path]], dict[str, Any]] = TaskIndex.build
    own = tmp_path / "tasks"
    monkeypatch.setattr(TaskIndex, "build", lambda self, paths: build([path for path in paths if path == own]))
    write_tasks(own, [{"question": "1+1=", "choices": ["2", "3"], "answer": 0, "text": "2"}])
    return own


def write_variant(folder: Path, name: str, **changes: Any) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"include": "write.yaml", "task": name, **changes}))


def load_error(names: Iterable[str], folder: Path, allow_code: bool = False) -> str:
    with pytest.raises(ValueError) as error:
        load_tasks(list(names), folder, allow_code)
    return str(error.value)


def test_the_code_that_a_model_writes_is_run_only_when_allowed(folder: Path) -> None:
    write_variant(folder, "program", unsafe_code=True)
    write_variant(folder, "in_a_group", unsafe_code=True)
    (folder / "group.yaml").write_text(yaml.safe_dump({"group": "programs", "task": ["write", "in_a_group"]}))
    assert load_error(["write", "program"], folder).startswith(
        "task program runs the code that the model writes, with your rights on this machine; --allow-code permits it"
    )
    assert load_error(["programs"], folder).startswith("task in_a_group runs the code")
    assert set(load_tasks(["program"], folder, allow_code=True)["tasks"]) == {"program"}


def test_a_metric_of_the_hub_is_run_only_when_allowed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import evaluate

    program = folder / "shouting" / "shouting.py"
    program.parent.mkdir()
    program.write_text(f"open({str(folder / 'ran')!r}, 'w')\nraise OSError('out of breath')\n")
    write_variant(folder, "loud", metric_list=[{"metric": "shouting", "aggregation": "mean", "higher_is_better": True}])
    monkeypatch.chdir(folder)  # where `evaluate.load` looks before it asks the hub
    before = evaluate.load
    assert load_error(["loud"], folder) == (
        "task loud does not load: metric shouting is a script on the hub, which runs with your rights; "
        "--allow-code permits it"
    )
    assert not (folder / "ran").exists()
    assert "metric shouting: out of breath" in load_error(["loud"], folder, allow_code=True)
    assert (folder / "ran").exists() and evaluate.load is before


def test_questions_stand_in_the_chat_template_and_every_answer_is_told(folder: Path, tmp_path: Path) -> None:
    model = ModelConfig(path=str(tmp_path / "model"), dtype="float32")
    write_llama(tmp_path / "model")
    plain, tokenizer = PlainModel(tmp_path / "model"), load_tokenizer(model)
    in_chat = [
        plain.writes(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
        )
        for question in QUESTIONS
    ]
    assert in_chat != [plain.writes(question) for question in QUESTIONS]
    rows = [
        {"question": q, "choices": ["2", "3"], "answer": 0, "text": t} for q, t in zip(QUESTIONS, in_chat, strict=True)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = load_tasks(["write", "pick"], folder, allow_code=False)
    told = SimpleNamespace(begun=[], num_answers=0)

    def advance() -> None:
        told.num_answers += 1

    progress = SimpleNamespace(begin=told.begun.append, advance=advance)
    results = evaluate_model(model, tasks, progress, limit=None, batch_size=2, chat=True, allow_code=False)
    assert results["results"]["write"]["exact_match,none"] == 1.0
    assert sorted(told.begun) == [3, 6] and told.num_answers == 9


def test_a_task_that_is_not_known_or_not_readable_is_told(folder: Path) -> None:
    assert load_error(["wriet"], folder) == "task wriet is unknown; did you mean write?"
    (folder / "bad.yaml").write_text("task: [bad")
    assert f"(not readable: {folder / 'bad.yaml'}: while parsing a flow sequence" in load_error(["bad"], folder)
    write_variant(folder, "typo", doc_to_txt="{{question}}")
    assert load_error(["typo"], folder).startswith("task typo does not load: TypeError: ")


def test_data_of_the_hub_needs_a_network_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    write_variant(folder, "far", dataset_path="nobody/nothing", dataset_kwargs=None)
    message = load_error(["far"], folder)
    assert (
        "Couldn't reach 'nobody/nothing' on the Hub" in message
        and "without network access it must be in the" in message
    )
