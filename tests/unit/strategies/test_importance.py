"""Importance: the gates' gradients are those of finite differences, and what becomes of them is in [0, 1)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.data.stores import MAX_LENGTH, make_store
from tests.unit.strategies.test_cofitune_config import build
from workers.model.importance import GatedModel, _batches, _set_attention_dropout, accumulate_scores
from workers.strategies.cofitune.architectures import ARCHITECTURES, decoder_layers, submodule
from workers.strategies.cofitune.importance import (
    KINDS,
    Scores,
    by_rank,
    by_zscore,
    merge_importance,
    normalise_scores,
    read_importance,
    read_scores,
    write_importance,
    write_scores,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On such small tensors threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def exact(model_type: str) -> Any:
    """A model that computes in float64 throughout: RMS norms of transformers go through float32."""
    model = build(model_type)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, torch.nn.RMSNorm(child.weight.shape, eps=1e-6))
    return model.double()


def inputs(seed: int = 0) -> Inputs:
    """Two rows of seven tokens, the second with two of padding."""
    ids = torch.randint(2, 50, (2, 7), generator=torch.Generator().manual_seed(seed))
    used = torch.ones(2, 7, dtype=torch.bool)
    used[1, 5:] = False
    return ids, torch.arange(7).expand(2, 7), used


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "phi3", "opt", "gpt2", "gpt_neox"])
def test_gradients_of_the_gates_are_those_of_finite_differences(model_type: str) -> None:
    gated = GatedModel(exact(model_type), dropout=0.1)
    batch = inputs()
    gates = [gate for kind in KINDS for gate in gated.gates[kind]]
    gradients = torch.autograd.grad(gated.divergence(*batch, seed=3), gates)
    with torch.no_grad():
        for gate, gradient in zip(gates, gradients, strict=True):
            for unit in (0, len(gate) // 2, len(gate) - 1):
                sides = []
                for change in (1e-4, -1e-4):
                    gate[unit] += change
                    sides.append(float(gated.divergence(*batch, seed=3)))
                    gate[unit] -= change
                difference = (sides[0] - sides[1]) / 2e-4
                assert difference == pytest.approx(float(gradient[unit]), rel=1e-3, abs=1e-8)


def test_a_gate_of_a_head_scales_that_head_alone() -> None:
    """With its gate at 0 a head is gone, as if its values were zero."""
    model = build("llama", num_key_value_heads=4).double()
    gated = GatedModel(model, dropout=0.0)
    ids = inputs()[0]
    with torch.no_grad():
        gated.gates["head"][1][2] = 0.0
        gone = model(input_ids=ids, use_cache=False).logits
        gated.gates["head"][1][2] = 1.0
        whole = model(input_ids=ids, use_cache=False).logits
        model.model.layers[1].self_attn.v_proj.weight[8:12] = 0.0
        expected = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(gone, expected, atol=1e-12)
    assert not torch.allclose(gone, whole, atol=1e-6)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_without_dropout_nothing_is_important(model_type: str) -> None:
    """Also proves that no other dropout of the model is on: its configuration has 0.1 of every kind."""
    model = build(model_type)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    scores = accumulate_scores(GatedModel(model, dropout=0.0), [inputs()], seed=0)
    for how in ("zscore", "rank"):
        importance = normalise_scores(scores.signed if how == "zscore" else scores.absolute, how)
        assert all((importance[kind] == 0).all() for kind in KINDS), how


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_unit_of_every_architecture_is_scored(model_type: str) -> None:
    scores = accumulate_scores(GatedModel(build(model_type), dropout=0.1), [inputs(), inputs(1)], seed=0)
    assert scores.num_tokens == 24
    for kind, units in (("head", 4), ("up", 20), ("down", 16)):
        assert scores.signed[kind].shape == (4, units)
        assert (scores.absolute[kind] > 0).mean() > 0.9
    for on_attention, on_feed_forward in ((0.1, 0.0), (0.0, 0.1)):  # each makes a difference by itself
        model, architecture = exact(model_type), ARCHITECTURES[model_type]
        gated = GatedModel(model, on_feed_forward)
        for layer in decoder_layers(model, architecture):
            _set_attention_dropout(submodule(layer, architecture.attention), architecture, on_attention)
        assert float(gated.divergence(*inputs(), seed=0).detach()) > 0


def test_batches_count_alike_and_add_up() -> None:
    """Twice the same batch scores twice as much: gradients begin at 0 for each."""
    gated = GatedModel(build("llama"), dropout=0.1)
    (seed_1, seed_2) = (int(np.random.SeedSequence([7, n]).generate_state(1)[0]) for n in (0, 1))
    alone = []
    for seed in (seed_1, seed_2):
        gates = [gate for kind in KINDS for gate in gated.gates[kind]]
        alone.append(torch.autograd.grad(gated.divergence(*inputs(), seed), gates)[0].double().numpy())
    scores = accumulate_scores(gated, [inputs(), inputs()], seed=7)
    np.testing.assert_allclose(scores.signed_sum["head"][0], alone[0] + alone[1], rtol=1e-6)
    np.testing.assert_allclose(scores.absolute_sum["head"][0], np.abs(alone[0]) + np.abs(alone[1]), rtol=1e-6)


def test_padding_changes_nothing() -> None:
    gated = GatedModel(build("llama"), dropout=0.0)
    ids, positions, used = inputs()
    other = torch.where(used, ids, 3)
    seen = [gated._logits(given, positions)[used] for given in (ids, other)]
    assert torch.equal(*seen)
    assert accumulate_scores(gated, [(ids, positions, used)], 0).num_tokens == 12


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_packed_examples_are_measured_as_if_each_had_a_row_of_its_own(model_type: str) -> None:
    model = build(model_type).double()
    # OPT's own mask does not look at positions.
    gated = GatedModel(model, 0.0, "mask" if model_type == "opt" else "positions")
    ids = inputs()[0][:1]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    with torch.no_grad():
        packed = gated._logits(ids, positions)
        alone = [model(input_ids=part).logits for part in (ids[:, :3], ids[:, 3:])]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=0, atol=1e-5)
    assert not torch.allclose(packed[:, 3:], model(input_ids=ids).logits[:, 3:], atol=1e-3)


def test_rows_are_drawn_by_the_seed_from_the_whole_store() -> None:
    store = make_store(0, 40)
    drawn = [
        [sorted(int(ids[row][0]) for ids, _, _ in _batches(store, 8, 1, seed, torch.device("cpu")) for row in [0])]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(drawn[0][0]) >= 8
    batches = list(_batches(store, 100, 3, 0, torch.device("cpu")))
    assert sum(int(used.sum()) for _, _, used in batches) == store.num_tokens
    assert max(ids.shape[1] for ids, _, _ in batches) <= MAX_LENGTH


def test_zscore_is_the_papers() -> None:
    importance = by_zscore(np.array([[1.0, 2.0, 3.0, 6.0]]))  # mean 3, std (n - 1) sqrt(14 / 3)
    expected = np.abs(np.tanh(np.array([-2.0, -1.0, 0.0, 3.0]) / np.sqrt(14 / 3)))
    np.testing.assert_allclose(importance[0], expected, rtol=1e-6)


def test_importance_is_from_0_to_below_1() -> None:
    rng = np.random.default_rng(0)
    signed = rng.normal(size=(3, 11_000))
    signed[0, 0] = 1e6  # more than 100 standard deviations away: tanh rounds to 1
    for importance in (by_zscore(signed), by_rank(np.abs(signed))):
        assert importance.dtype == np.float32
        assert importance.min() >= 0
        assert importance.max() < 1
    gaussian = by_zscore(signed[1:])
    assert gaussian.mean() == pytest.approx(0.56, abs=0.01)
    assert (gaussian > 0.9).mean() == pytest.approx(0.14, abs=0.01)
    assert (gaussian < 0.1).mean() == pytest.approx(0.08, abs=0.01)


def test_zscore_would_protect_the_least_important_of_absolute_scores_and_rank_does_not() -> None:
    scores = np.random.default_rng(0).lognormal(size=(1, 5000))
    least, most = scores.argmin(), scores.argmax()
    assert by_zscore(scores)[0, least] > 0.5
    assert by_rank(scores)[0, least] == 0
    assert by_rank(scores)[0, most] == pytest.approx(1, abs=1e-3)
    assert by_rank(np.array([[4.0, 1.0, 4.0, 2.0]])).tolist() == [[0.5, 0.0, 0.5, 0.25]]


def test_one_unit_a_layer_and_equal_scores_are_free() -> None:
    for scores in (np.array([[3.0], [1.0]]), np.full((2, 5), 0.7)):
        assert (by_zscore(scores) == 0).all()
        assert (by_rank(scores) == 0).all()


def test_files_merge_by_maximum_and_faults_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sets = [{kind: rng.random((2, 3), dtype=np.float32) for kind in KINDS} for _ in range(2)]
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path, importance in zip(paths, sets, strict=True):
        write_importance(path, importance, {"num_rows": 5})
    merged = read_importance(paths)
    for kind in KINDS:
        np.testing.assert_array_equal(merged[kind], np.maximum(sets[0][kind], sets[1][kind]))
    with pytest.raises(ValueError, match=r"(2, 3) in one and (2, 4)".replace("(", r"\(").replace(")", r"\)")):
        merge_importance([sets[0], {kind: np.zeros((2, 4), dtype=np.float32) for kind in KINDS}])
    (tmp_path / "other").write_text("no tensors")
    with pytest.raises(ValueError, match="other cannot be read"):
        read_importance([tmp_path / "other"])
    write_importance(paths[0], {kind: np.full((2, 3), 1.5, dtype=np.float32) for kind in KINDS}, {})
    with pytest.raises(ValueError, match=r"'head' has values outside \[0, 1\]"):
        read_importance(paths)


def test_scores_are_kept_and_pool_over_domains(tmp_path: Path) -> None:
    first = Scores({kind: np.ones((1, 2)) for kind in KINDS}, {kind: np.ones((1, 2)) for kind in KINDS}, 10)
    second = Scores({kind: np.full((1, 2), -3.0) for kind in KINDS}, {k: np.full((1, 2), 3.0) for k in KINDS}, 30)
    write_scores(tmp_path / "scores", first)
    pooled = Scores.pooled([read_scores(tmp_path / "scores"), second])
    assert pooled.num_tokens == 40
    assert pooled.signed["up"].tolist() == [[-0.05, -0.05]]
    assert pooled.absolute["up"].tolist() == [[0.1, 0.1]]
