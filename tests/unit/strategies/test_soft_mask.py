"""The soft mask on plain torch (what stage 0 in fp32 steps): rows, bins, and what both masks do under Adam."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.strategies.test_cofitune_config import build
from workers.engine.zero_state import stepped_tensors
from workers.strategies.cofitune import CoFiTuneConfig, apply
from workers.strategies.cofitune.architectures import trained_parameters
from workers.strategies.cofitune.importance import write_importance
from workers.strategies.cofitune.soft_mask import attach, row_importance

pytestmark = pytest.mark.usefixtures("one_rank")


def random_importance() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {kind: rng.random((4, units), dtype=np.float32) for kind, units in (("head", 4), ("up", 20), ("down", 16))}


def train(
    folder: Path, num_steps: int, model_type: str = "llama", **strategy: Any
) -> tuple[dict[str, torch.Tensor], dict[str, Any], Any]:
    """Relative change of each trained parameter by row, what was observed at the last step, and the mask."""
    write_importance(folder / "importance.safetensors", random_importance(), {})
    files = {"files": [str(folder / "importance.safetensors")]}
    config = CoFiTuneConfig.model_validate({"layers": [0.5, 1.0], "importance": files, **strategy})
    model = apply(build(model_type), config)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.AdamW(named.values(), lr=1e-3, weight_decay=0.0)
    engine: Any = SimpleNamespace(
        module=model,
        optimizer=optimizer,
        zero_stage=0,
        device=torch.device("cpu"),
        trainable_parameters=lambda: named,
    )
    engine.stepped_tensors = lambda: stepped_tensors(engine)
    mask = attach(engine, config)
    for step in range(num_steps):
        if mask is not None and step == num_steps - 1:
            mask.watch()
        ids = torch.arange(2 + step, 18 + step)[None]
        torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    change = {name: (p.detach() - before[name]).abs().mean(dim=1) for name, p in named.items()}
    return change, mask.observations() if mask is not None else {}, mask


def test_an_update_is_scaled_row_by_row(tmp_path: Path) -> None:
    masked, _, _ = train(tmp_path, 1, modules=["attention", "gate", "feed_forward"])
    free, _, none = train(tmp_path, 1, modules=["attention", "gate", "feed_forward"], mask="none")
    assert none is None
    head, up, down = random_importance().values()
    for layer in (2, 3):
        pairs = np.maximum(head[layer][::2], head[layer][1::2])  # two query heads share a key-value head
        expected = {
            "self_attn.q_proj": np.repeat(head[layer], 4),
            "self_attn.k_proj": np.repeat(pairs, 4),
            "self_attn.v_proj": np.repeat(pairs, 4),
            "mlp.gate_proj": up[layer],
            "mlp.up_proj": up[layer],
            "mlp.down_proj": down[layer],
        }
        for part, importance in expected.items():
            name = f"model.layers.{layer}.{part}.weight"
            np.testing.assert_allclose(masked[name] / free[name], 1 - importance, rtol=0.02, err_msg=name)


def test_under_adam_a_masked_gradient_moves_as_far_as_a_free_one(tmp_path: Path) -> None:
    seen = {mask: train(tmp_path, 3, mask=mask)[1]["mask"]["mean_update"] for mask in ("update", "gradient")}
    update, gradient = ([seen[mask][f"0.{b}"] for b in range(9)] for mask in ("update", "gradient"))
    assert update[8] < 0.3 * update[0]
    assert gradient[8] > 0.9 * gradient[0]


def test_only_watched_steps_are_observed_and_each_observation_begins_anew(tmp_path: Path) -> None:
    _, observed, mask = train(tmp_path, 2)
    assert set(observed["mask"]["mean_update"]) == {f"{b / 10:.1f}" for b in range(10)}
    assert set(mask.observations()["mask"]["mean_update"].values()) == {None}


def test_the_output_projection_has_no_importance(tmp_path: Path) -> None:
    model = build("llama")
    config = CoFiTuneConfig(layers=(0.75, 1), modules=["o"])
    (part,) = trained_parameters(model, config)
    assert np.isnan(row_importance(part, random_importance())).all()
    change, observed, _ = train(tmp_path, 1, modules=["o"])
    assert all((rows > 0).all() for rows in change.values())
    assert set(observed["mask"]["mean_update"].values()) == {None}


def test_a_shared_matrix_without_a_mask_is_hooked_and_has_nothing_to_observe(tmp_path: Path) -> None:
    change, observed, mask = train(tmp_path, 1, model_type="phi3", modules=["up"], mask="none")
    assert mask is not None
    assert observed == {}
    for rows in change.values():
        assert (rows[:20] == 0).all()
        assert (rows[20:] > 0).all()


def test_rows_of_shared_matrices_take_the_importance_of_their_own_module() -> None:
    importance = random_importance()
    for part in trained_parameters(build("phi3"), CoFiTuneConfig(layers=(0, 0.25), modules=["q", "v", "up"])):
        rows = row_importance(part, importance)
        if "up" in part.module_R:
            np.testing.assert_array_equal(rows, np.tile(importance["up"][0], 2))
            assert part.is_trained_R.tolist() == [False] * 20 + [True] * 20
        else:
            pairs = np.maximum(importance["head"][0][::2], importance["head"][0][1::2])
            expected = [np.repeat(importance["head"][0], 4), np.repeat(pairs, 4), np.repeat(pairs, 4)]
            np.testing.assert_array_equal(rows, np.concatenate(expected))
            assert part.is_trained_R.tolist() == [True] * 16 + [False] * 8 + [True] * 8
