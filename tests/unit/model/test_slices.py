"""Sequences in slices: what a rank gets of a pass, and which models' configurations say that they cannot be cut."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmarks.tiny_families import build
from workers.model.forward_pass import ForwardPass
from workers.model.slices import Slices, check_slices

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}


def of_pass(length: int) -> ForwardPass:
    """Two rows, the second of two examples; every second token is a target, known by its place."""
    places_SL = np.arange(2 * length).reshape(2, length)
    positions_SL = np.stack([np.arange(length), np.r_[np.arange(3), np.arange(length - 3)]])
    sequence_N, column_N = np.nonzero(places_SL % 2 == 1)
    domain_N = np.arange(len(column_N))
    return ForwardPass(places_SL + 100, positions_SL, sequence_N, column_N, column_N, domain_N, places_SL)


@pytest.mark.parametrize("length", [1, 6, 7, 8])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_column_and_target_is_in_one_slice(size: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "new_subgroups", lambda size: (None, []))
    whole, parts = of_pass(max(length, 4)), []
    for index in range(size):
        monkeypatch.setattr(dist, "get_rank", lambda group, index=index: index)
        parts.append(Slices(size).cut(whole))
    length = whole.input_ids_SL.shape[1]
    assert len({part.input_ids_SL.shape for part in parts}) == 1
    for name in ("input_ids_SL", "position_ids_SL", "origin_SL"):
        joined = np.concatenate([getattr(part, name) for part in parts], axis=1)
        np.testing.assert_array_equal(joined[:, :length], getattr(whole, name))
    added = np.concatenate([part.position_ids_SL for part in parts], axis=1)
    assert (np.diff(added[:, length - 1 :], axis=1) == 1).all()  # no new example begins
    for part in parts:
        np.testing.assert_array_equal(part.whole_position_ids_SM, added)
    # Wherever it is, a target follows the same token.
    found = {int(d): int(t) for part in parts for d, t in zip(part.domain_N, part.target_origin_N, strict=True)}
    assert found == dict(enumerate(whole.target_origin_N.tolist()))
    assert sum(len(part.target_N) for part in parts) == len(whole.target_N)


def test_a_module_keeps_its_own_number_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which DeepSpeed sets to that of a rank's heads, where it repeats key-value heads."""
    monkeypatch.setattr(dist, "new_subgroups", lambda size: (None, []))
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    module = torch.nn.Module()
    module.num_key_value_groups = 4  # type: ignore[assignment]

    def exchange(module: Any, *given: Any) -> str:
        module.num_key_value_groups = 2
        return "result"

    slices, heads = Slices(2), torch.zeros(1, 4, 3, 8)
    monkeypatch.setattr(slices, "_build_exchange", lambda *shape: exchange)
    assert slices.attend(print, module, heads, heads[:, :1]) == "result"
    assert module.num_key_value_groups == 4


@pytest.mark.parametrize(
    ("family", "changes", "slices", "told"),
    [
        ("qwen3", {}, 3, "qwen3 has 4 attention heads, which must be a multiple of it, and 2 key-value"),
        (
            "qwen3",
            {"num_attention_heads": 6, "num_key_value_heads": 3},
            2,
            "6 attention heads, .* and 3 key-value",
        ),
        ("mamba2", {}, 2, "mamba2 has 0 attention heads"),
        ("qwen3_next", {}, 2, "qwen3_next has layers that are not attention over all tokens: linear_attention"),
        ("lfm2", {}, 2, "lfm2 has layers that are not attention over all tokens: conv"),
        ("llama", {"rope_parameters": DYNAMIC}, 2, "rope_type dynamic"),
        ("mixtral", {}, 2, "router loss of mixtral .* set training.router_loss to false"),
    ],
)
def test_what_cannot_be_cut_is_refused(family: str, changes: dict[str, Any], slices: int, told: str) -> None:
    config = build(family).config
    config.update(changes)
    with pytest.raises(ValueError, match=rf"^training\.sequence_parallel: {slices}.*{told}"):
        check_slices(config, slices, router_loss=True)
    check_slices(config, 1, router_loss=True)


@pytest.mark.parametrize(("family", "slices"), [("qwen3", 4), ("gemma3_text", 2), ("mixtral", 2), ("gpt2", 4)])
def test_others_are_left_to_the_measurement(family: str, slices: int) -> None:
    check_slices(build(family).config, slices, router_loss=False)
