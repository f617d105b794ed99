"""`make gpu`: what it says without a GPU, its table, its exit code, and the operations that it counts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_model import QWEN_HALF_BILLION, SMALL, Sizes, example_lengths, model_flops, packed_batch
from benchmarks.gpu_parts import Row


def test_without_a_gpu_it_says_so_and_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == (
        f"skipped: torch {torch.__version__} finds no GPU here (torch.cuda.is_available() is False); "
        "nothing was measured\n"
    )


@pytest.mark.parametrize(("is_right", "said", "code"), [(True, "yes", 0), (False, "NO", 1), (None, "-", 0)])
def test_a_line_that_is_not_as_expected_fails_the_run(
    is_right: bool | None, said: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    rows = [Row("speed", "12 tokens/s"), Row("losses", "0.0100 nats", "<= 0.05 nats", is_right)]
    monkeypatch.setattr(gpu, "why_not_here", lambda: None)
    monkeypatch.setattr(gpu, "run_all", lambda folder, given: rows)
    assert gpu.main(["--json", str(tmp_path / "table.json")]) == code
    head, speed, losses = capsys.readouterr().out.splitlines()
    assert head.split() == ["measured", "expected", "as", "expected"]
    assert speed.split() == ["speed", "12", "tokens/s", "-"]
    assert losses.split() == ["losses", "0.0100", "nats", "<=", "0.05", "nats", said]
    assert losses.index("<=") == head.index("expected")
    assert [Row(**row) for row in json.loads((tmp_path / "table.json").read_text())] == rows


def test_a_part_that_crashes_or_takes_too_long_is_a_line_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "gpu.py"
    script.write_text(
        "import json, sys, time\n"
        "part = sys.argv[sys.argv.index('--part') + 1]\n"
        "if part == 'kernels': sys.exit(3)\n"
        "if part == 'run': time.sleep(60)\n"
        "print('chatter')\n"
        "print(json.dumps([{'what': part, 'measured': '1', 'expected': '1', 'is_right': True}]))\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setattr(gpu, "LIMIT_SECONDS", 8)
    rows = gpu.run_all(tmp_path / "work", [])
    assert [(row.what, row.is_right) for row in rows] == [
        ("losses", True),
        ("kernels", False),
        ("qlora", True),
        ("training", True),
        ("run", False),
    ]
    assert "exit code 3" in rows[1].measured and "not done after" in rows[4].measured


def test_operations_are_those_that_torch_counts_where_attention_is_whole() -> None:
    """torch counts every pair of tokens; needed are those of a token with the tokens up to itself."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes, length = Sizes(64, 176, 3, 8, 2, 500, length=48, mean_example=48, rows=(1,), steps=1), 48
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=500,
        attn_implementation="eager",
    )
    model, ids = Qwen2ForCausalLM(config), torch.zeros(1, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    pairs = length**2 - length * (length + 1) / 2
    of_other_pairs = 3 * 4 * 3 * 64 * pairs
    # The counter includes the products of the rotary frequencies with positions: a few thousandths.
    assert counter.get_total_flops() == pytest.approx(model_flops(sizes, [length]) + of_other_pairs, rel=0.005)


def test_rows_are_full_and_examples_are_kept_apart_in_them() -> None:
    sizes = QWEN_HALF_BILLION
    for seed in range(20):
        lengths = example_lengths(sizes, seed)
        assert sum(lengths) == sizes.length and min(lengths) >= 4
    assert sum(len(example_lengths(sizes, seed)) for seed in range(200)) / 200 == pytest.approx(4096 / 500, rel=0.2)
    batch = packed_batch(SMALL, step=1, num_rows=3)
    starts = (batch.position_ids_BL == 0).sum(axis=1).tolist()
    assert starts == [len(example_lengths(SMALL, 3 + row)) for row in range(3)]
    assert (batch.loss_mask_BL == (batch.position_ids_BL > 0)).all()
    assert batch.global_loss_tokens == batch.loss_mask_BL.sum()
    assert batch.input_ids_BL.min() > 0 and batch.input_ids_BL.max() < SMALL.vocabulary
