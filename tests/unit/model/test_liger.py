"""liger-kernel's kernels in a model: which parts get them, that only they do, and that wrong losses are refused.

The kernels themselves run on GPUs only. Where the package is installed, its layers are given the same formulas in plain
torch, so that everything around the kernels is real.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.tiny_families import build
from tests.unit.model.test_isolation import forward_of, packed_row
from workers.model.kernel_choice import prove_liger
from workers.model.liger import apply_liger, check_liger


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.model.liger.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^model\.liger: .* is not installed; pip install 'raymix\[liger\]'"):
        check_liger("llama", on_gpu=True)
    monkeypatch.setattr("workers.model.liger.find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"^model\.liger: its kernels need a GPU \(cluster\.gpus_per_worker\)"):
        check_liger("llama", on_gpu=False)
    monkeypatch.setattr("workers.model.liger._appliers", lambda: {"llama": None})
    check_liger("llama", on_gpu=True)
    with pytest.raises(ValueError, match=r"^model\.liger: .* no kernels for the model_type 'opt'; set it to false"):
        check_liger("opt", on_gpu=True)


@pytest.fixture
def in_plain_torch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formulas of the kernels for Llama; the list has a line for each call."""
    pytest.importorskip("liger_kernel", reason="liger-kernel brings 1 GB of triton, so it is not installed everywhere")
    from liger_kernel.transformers import monkey_patch

    calls: list[str] = []

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        calls.append("norm")
        return self.weight * F.rms_norm(hidden, hidden.shape[-1:], eps=self.variance_epsilon)

    def feed_forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        calls.append("feed_forward")
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))

    monkeypatch.setattr(monkey_patch.LigerRMSNorm, "forward", norm)
    monkeypatch.setattr(monkey_patch.LigerSwiGLUMLP, "forward", feed_forward)
    return calls


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
def test_only_the_given_model_changes(family: str, in_plain_torch: list[str]) -> None:
    model, ids = build(family), torch.arange(3, 40)[None]
    apply_liger(model)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        num_layers = model.config.num_hidden_layers
        assert in_plain_torch.count("feed_forward") == num_layers
        assert in_plain_torch.count("norm") >= 2 * num_layers + 1
        in_plain_torch.clear()
        # Built afterwards, as an export's verification does.
        plain = build(family)(input_ids=ids, use_cache=False).logits
    assert not in_plain_torch
    assert torch.allclose(logits, plain, atol=1e-4)


def test_kernels_that_keep_every_loss_are_used(in_plain_torch: list[str]) -> None:
    model = build("llama")
    prove_liger(forward_of(model), packed_row())
    assert in_plain_torch


def test_kernels_that_change_losses_are_refused(in_plain_torch: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from liger_kernel.transformers import monkey_patch

    monkeypatch.setattr(monkey_patch.LigerRMSNorm, "forward", lambda self, hidden: self.weight * hidden)
    with pytest.raises(ValueError, match=r"^model\.liger: .* not right for this model: an example's loss differs by"):
        prove_liger(forward_of(build("llama")), packed_row())


def test_kernels_that_cannot_run_here_are_refused() -> None:
    pytest.importorskip("liger_kernel", reason="liger-kernel brings 1 GB of triton, so it is not installed everywhere")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"^model\.liger: .* not right for this model: it fails \("):
        prove_liger(forward_of(build("llama")), packed_row())
