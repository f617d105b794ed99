"""What the plan warns of, what it is refused for, and what programs are told of both."""

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from orchestrator.check.driver import check, context_warning, end_of_turn_warning
from orchestrator.check.record import CheckedPlan, RefusedPlan
from orchestrator.cli.main import app
from orchestrator.config.load import load_config
from tests.runs import DOMAINS, ROOT, write_run
from workers.config.model import ModelConfig


def check_json(file: Path, *overrides: str) -> tuple[Any, int]:
    """What `raymix check --json` puts on stdout, and its exit code."""
    options = [part for override in overrides for part in ("--set", override)]
    done = CliRunner().invoke(app, ["check", str(file), "--json", *options])
    return json.loads(done.stdout), done.exit_code


def print_plan(file: Path, *overrides: str) -> str:
    console = Console(record=True, width=200)
    check(load_config(file, list(overrides)), console)
    return console.export_text()


def test_a_broken_base_is_told_before_its_rows_are_prepared(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"^model\.path: {weights} has .* truncated"):
        print_plan(file)
    assert not (tmp_path / "runs").exists()


def test_a_kernel_that_does_not_work_is_told(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    assert "30 steps" in print_plan(file, "model.attention=eager")
    with pytest.raises(ValueError, match=r"^model\.attention: flash_attention_2 .* use sdpa or eager"):
        print_plan(file, "model.attention=flash_attention_2")


@pytest.mark.parametrize(
    ("rows", "token", "words"),
    [
        (320, {}, ""),
        (259, {"additional_special_tokens": ["<never>"]}, ""),
        (259, {"pad_token": "<late>"}, r"0 to 258, but the padding of every row has 259 \(<late>\)"),
        (200, {}, r"0 to 199, but domain 'add' has 201 \(.\), 223 \(.\); the tokenizer has 259 tokens"),
    ],
    ids=["padded", "unused", "padding", "texts"],
)
def test_ids_beyond_the_embedding_are_told_where_they_occur(
    tmp_path: Path, rows: int, token: dict[str, str], words: str
) -> None:
    file = write_run(tmp_path)
    base = tmp_path / "base"
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows)
    model.save_pretrained(base)
    assert json.loads((base / "config.json").read_text())["vocab_size"] == rows
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens(token)
    tokenizer.save_pretrained(base)
    if not words:
        assert "30 steps" in print_plan(file)
        return
    with pytest.raises(ValueError, match=words):
        print_plan(file)


def test_rows_longer_than_the_model_can_read_are_warned_of() -> None:
    (finding,) = context_warning(1024, 512)
    assert "1,024 tokens in a sequence" in finding.message and "made for 512" in finding.message
    assert context_warning(512, 512) == [] and context_warning(8192, None) == []


@pytest.mark.parametrize(
    ("template", "num_loss_tokens", "is_warned"),
    [
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", 40, True),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}", 40, False),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", 98, False),  # documents alone
    ],
)
def test_answers_without_an_end_are_told(
    template: str, num_loss_tokens: int, is_warned: bool, tokenizer_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "template.jinja").write_text(template + "{% if add_generation_prompt %}assistant: {% endif %}")
    model = ModelConfig(path=str(tokenizer_folder), chat_template=tmp_path / "template.jinja")
    store = SimpleNamespace(num_tokens=100, num_examples=2, num_loss_tokens=num_loss_tokens)
    stores: Any = {"law": SimpleNamespace(train=store), "only measured": SimpleNamespace(train=None)}
    config: Any = SimpleNamespace(model=model, cache_dir=tmp_path)
    lines = [finding.message for finding in end_of_turn_warning(config, stores)]
    assert len(lines) == is_warned
    if is_warned:
        assert "puts no end token after an answer" in lines[0] and "(domains law)" in lines[0]


def test_the_table_has_a_column_for_what_there_is_and_a_line_for_each_reason(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    train = tmp_path / "law-train.jsonl"
    rows = train.read_text().splitlines()
    (tmp_path / "law-eval.jsonl").write_text("\n".join(rows[:6]) + "\n")
    train.write_text("\n".join([*rows, *rows[:50], "torn", json.dumps({"text": "x"})]) + "\n")
    plan = print_plan(file, "data.max_bad_fraction=0.1", "data.max_length=128")
    header = next(line for line in plan.splitlines() if line.startswith("domain"))
    assert header.split() == [
        "domain",
        "share",
        "examples",
        "sequences",
        "tokens",
        "bad",
        "repeats",
        "leaks",
        "eval",
        "epochs",
    ]
    of_law = [line for line in plan.splitlines() if line.startswith("law: ")]
    assert re.match(
        r"law: 2 of \d+ rows cannot be used: (not JSON|missing field) \(1\), .*law-train.jsonl:281: ", of_law[0]
    )
    assert "rows repeat another" in of_law[1] and re.search(r"\d of \d held-out prompts are in the training", of_law[2])


def test_columns_that_are_zero_everywhere_are_left_out(tmp_path: Path) -> None:
    file = write_run(tmp_path, domains={"law": {"train": str(tmp_path / "one.jsonl"), "eval_fraction": 0.5}})
    rows = [{"prompt": f"q {number}", "completion": "a"} for number in range(40)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = print_plan(file, "mixing={type: uniform}", "training.global_batch_size=4")
    header = next(line for line in plan.splitlines() if line.startswith("domain"))
    assert header.split() == ["domain", "share", "examples", "sequences", "tokens", "eval", "epochs"]
    assert not [line for line in plan.splitlines() if line.startswith("law: ")]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_figure_of_the_table_is_cut_off(tmp_path: Path, is_terminal: bool) -> None:
    console = Console(record=True, width=30, force_terminal=is_terminal, file=io.StringIO())
    check(load_config(write_run(tmp_path), []), console)
    text = console.export_text()
    lines = text[text.index("domain share") :].replace("too long", "too-long").splitlines()  # past the progress
    header, *rows = [line.split() for line in lines if re.match(r"(domain|add|copy|law) ", line)]
    assert header[0] == "domain" and header[-1] == "epochs" and "\u2026" not in "".join(lines)
    assert [len(row) for row in rows] == [len(header)] * 3


def test_programs_are_told_the_plan_all_counts_and_the_findings(tmp_path: Path) -> None:
    file = write_run(tmp_path, mixing__initial={"add": 0.5, "copy": 0.25, "law": 0.25})
    found, code = check_json(file, "data.max_length=90")
    plan = CheckedPlan.model_validate(found)
    assert code == 0 and plan.steps == 30 and plan.stage is None
    assert (plan.algorithm, plan.workers, plan.zero_stage, plan.max_length) == ("versatune", 2, 2, 90)
    assert list(plan.domains) == list(DOMAINS) and {d.share for d in plan.domains.values()} == {0.5, 0.25}
    assert sum(memory for memory in plan.memory.parts_gib.values()) == pytest.approx(plan.memory.peak_gib)
    assert plan.isolation is not None and plan.isolation.way == "positions"
    for number, (name, domain) in enumerate(plan.domains.items()):
        assert domain.train_files.num_rows == 150 + 40 * number and domain.eval_files.num_rows == 24
        assert domain.train is not None
        assert domain.train.num_examples + domain.train_files.num_too_long_lost == domain.train_files.num_rows
        said = [finding for finding in plan.findings if finding.where == f"domains.{name}"]
        assert ("too_long" in [finding.kind for finding in said]) == (domain.report.num_too_long > 0)
        assert not any(finding.message.startswith(name) for finding in said)
    assert any(domain.report.num_too_long for domain in plan.domains.values())
    rows = sum(d.epochs * d.train.num_rows for d in plan.domains.values() if d.epochs and d.train)
    assert rows == pytest.approx(30 * 8)


@pytest.mark.parametrize(("most", "sizes", "heading"), [(4, [1, 2, 4], "1, 2 or 4 x ZeRO-2"), (3, [1], "1 x ZeRO-2")])
def test_the_sizes_of_an_elastic_group_are_told(tmp_path: Path, most: int, sizes: list[int], heading: str) -> None:
    rows = {4: 8, 3: 2}[most]
    file = write_run(tmp_path, cluster__num_workers={"min": 1, "max": most}, training__global_batch_size=rows)
    found, _ = check_json(file)
    assert (found["group_sizes"], found["workers"]) == (sizes, sizes[-1])
    text = " ".join(print_plan(file).split())
    assert f", versatune, {heading}" in text and ("rank of the smallest group" in text) == (most == 4)
    told = "of 1 to 3 workers, only 1 can share training.global_batch_size 2 in passes of training.micro_batch_size 2"
    assert (told in text) == (most == 3)


def test_slices_are_told(tmp_path: Path) -> None:
    file = write_run(tmp_path, training__sequence_parallel=2)
    assert "x 8 sequences of at most 64 tokens in 2 slices, versatune, 2 x ZeRO-2" in " ".join(print_plan(file).split())
    found, _ = check_json(file)
    assert found["sequence_parallel"] == 2


def test_programs_are_told_every_stage(tmp_path: Path) -> None:
    stages = [{"name": "first", "domains": ["add", "law"]}, {"name": "second", "domains": ["copy"]}]
    found, code = check_json(write_run(tmp_path, stages=stages, mixing={"type": "uniform"}))
    first, second = [CheckedPlan.model_validate(plan) for plan in found]
    assert code == 0 and first.stage is not None and second.stage is not None
    assert (first.stage.name, first.stage.starts_from, second.stage.starts_from) == ("first", None, "first")
    assert (second.stage.number, second.stage.count, second.stage.is_finished) == (2, 2, False)
    assert [name for name, domain in second.domains.items() if domain.train] == ["copy"]


@pytest.mark.parametrize(
    ("override", "code", "where", "words"),
    [
        ("training.max_stepps=3", 2, "training.max_stepps", "unknown key"),
        ("domains.law.train=nowhere.jsonl", 2, "domains.law.train", "no such file"),
        ("data.max_length=9", 1, "domains.add", "no training examples"),
        ("training.sequence_parallel=3", 2, "cluster.num_workers", "use for example 3"),
        ("model.attention=flash_attention_2", 1, "model.attention", "use sdpa or eager"),
    ],
)
def test_programs_are_told_why_a_run_is_refused(
    tmp_path: Path, override: str, code: int, where: str, words: str
) -> None:
    found, exit_code = check_json(write_run(tmp_path), override)
    assert exit_code == code
    (finding, *_) = RefusedPlan.model_validate(found).findings
    assert (finding.severity, finding.where) == ("error", where) and words in finding.message


def test_a_file_that_is_no_configuration_is_told_to_programs(tmp_path: Path) -> None:
    for content in (None, "", "name: [", "- a"):
        file = tmp_path / "config.yaml"
        if content is not None:
            file.write_text(content)
        found, code = check_json(file)
        assert code == 2 and [finding["where"] for finding in found["findings"]] == [""]


def test_the_page_explains_every_field_that_programs_get() -> None:
    page = (ROOT / "docs" / "checking.md").read_text(encoding="utf-8")
    definitions = CheckedPlan.model_json_schema()["$defs"].values()
    models: list[type[BaseModel]] = [CheckedPlan, RefusedPlan]
    names = {name for model in models for name in model.model_fields}
    names |= {name for definition in definitions for name in definition["properties"]}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
