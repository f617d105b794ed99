"""What the engine's tests run on every rank."""

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from workers.config.model import ModelConfig
from workers.config.training import TrainingConfig
from workers.data.batches import Batch
from workers.model.chunked_loss import LOGITS_LIMIT, gradient_bytes
from workers.validation.held_out import HeldOutSample, draw_sample
from workers.validation.loss_statistics import ExampleLosses

NUM_DOMAINS = 3
VOCABULARY = 97
NUM_STEPS = 20
TRAINING: dict[str, Any] = {
    "max_steps": NUM_STEPS,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
}
LORA = {"type": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.1}


@dataclass(frozen=True)
class Case:
    """One training: what is built, loaded, done and saved."""

    model: Path
    training: Mapping[str, Any]
    dtype: str = "float32"
    last_step: int = NUM_STEPS
    first_step: int = 1
    load: Path | None = None
    save: Mapping[int, Path] = field(default_factory=dict)
    export: Mapping[int, Path] = field(default_factory=dict)
    measure_every: int = 0  # steps between two evaluations
    way: str | None = None  # how packed examples are kept apart, where it is not to be by their positions
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    revision: str | None = None
    targets_in_chunk: int | None = None  # whose losses are computed together; None: as many as the limit allows


@functools.cache
def tiny_model(tied: bool = False) -> Path:
    """A Llama with grouped queries; odd sizes, so that ZeRO-3 pads a partition on two ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=127,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        mlp_bias=True,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        pad_token_id=0,
    )
    folder = Path(tempfile.mkdtemp(prefix="raymix-tiny-"))
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def training_of(zero_stage: int, **changes: Any) -> dict[str, Any]:
    """The tests' training settings at one ZeRO stage."""
    return {**TRAINING, "deepspeed": {"zero_stage": zero_stage}, **changes}


def global_batch(step: int, rank: int = 0, world_size: int = 1) -> Batch:
    """A rank's slice of a step's 8 rows: packed rows of unequal length; loss tokens differ between ranks and rows."""
    rng = np.random.default_rng([7, step])
    num_rows, length = 8, 40
    input_ids_BL = np.zeros((num_rows, length), dtype=np.int32)
    position_ids_BL = np.zeros((num_rows, length), dtype=np.uint16)
    loss_mask_BL = np.zeros((num_rows, length), dtype=np.bool_)
    for row in range(num_rows):
        start = 0
        for size in rng.integers(3, 14 if row < 5 else 8, size=3 if row else 1):
            end = start + size
            input_ids_BL[row, start:end] = rng.integers(1, VOCABULARY, size=size)
            position_ids_BL[row, start:end] = np.arange(size)
            loss_mask_BL[row, start + 1 : end] = rng.random(size - 1) < (0.9 if row < 4 else 0.3)
            start = end
    loss_mask_BL[3] = False  # a row without any loss token
    rows = slice(rank * num_rows // world_size, (rank + 1) * num_rows // world_size)
    return Batch(
        step=step,
        weights_version=0,
        input_ids_BL=input_ids_BL[rows],
        position_ids_BL=position_ids_BL[rows],
        loss_mask_BL=loss_mask_BL[rows],
        domain_B=(np.arange(num_rows, dtype=np.int64) % NUM_DOMAINS)[rows],
        row_B=np.arange(num_rows, dtype=np.int64)[rows],
        global_loss_tokens=int(loss_mask_BL.sum()),
        global_tokens=0,
        global_rows_D=np.zeros(NUM_DOMAINS, dtype=np.int64),
        domain_rows_seen_D=np.zeros(NUM_DOMAINS, dtype=np.int64),
    )


def first_examples(batch: Batch) -> Batch:
    """The same rows, of which only the first example counts: nothing stands before it that it could see."""
    is_first = np.cumsum(batch.position_ids_BL.astype(int) == 0, axis=1) == 1
    return replace(batch, loss_mask_BL=batch.loss_mask_BL & is_first)


def learning_rate(step: int) -> float:
    """Not constant, so that a resumed run has to use the step's own."""
    return 1e-3 * (1.0 - step / 100)


def build_engine(case: Case) -> Any:
    """The engine of a case."""
    from workers.engine.engine import Engine
    from workers.model import chunked_loss

    size = case.targets_in_chunk
    chunked_loss.LOGITS_LIMIT = size * chunked_loss.CHUNK_LOGIT_BYTES * VOCABULARY if size else LOGITS_LIMIT
    # So small a model's logits take less memory than the gradient of its head.
    chunked_loss.gradient_bytes = (lambda parameters: 0) if size else gradient_bytes
    model = ModelConfig(path=str(case.model), dtype=case.dtype, attention=case.attention, revision=case.revision)
    engine = Engine.build(model, TrainingConfig.model_validate(dict(case.training)), seed=3)
    engine.packed.way = case.way or engine.packed.way  # type: ignore[assignment]
    return engine


def save(engine: Any, folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write a checkpoint and wait for it."""
    from workers.engine.checkpoint_writer import CheckpointWriter

    writer = CheckpointWriter(engine, folder, keep)
    writer.begin(step, state)
    writer.settle(wait=True)


def whole_state(engine: Any) -> dict[str, list[torch.Tensor]]:
    """Master and both moments of each trainable parameter as DeepSpeed itself gathers them; a collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    from workers.engine.zero_state import replicated_masters

    moments, parameters = ("exp_avg", "exp_avg_sq"), engine.trainable_parameters()
    if engine.zero_stage == 0:  # it gathers nothing there: each rank has all
        inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        masters = replicated_masters(engine.optimizer, 0)
        kept = {name: masters.get(id(p), p) for name, p in parameters.items()}
        whole = {name: [p.data, *(inner.state[p][key] for key in moments)] for name, p in kept.items()}
    else:
        if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
            # Stages 1 and 2 link optimizer state only after the first group's step: the second group's is not found.
            engine.optimizer._hp_optimizer_states_linked = False
            engine.optimizer._lazy_init_hp_params_optimizer_state()
        whole = {
            name: [safe_get_full_fp32_param(p), *(safe_get_full_optimizer_state(p, key) for key in moments)]
            for name, p in parameters.items()
        }
    return {name: [tensor.detach().cpu().clone() for tensor in tensors] for name, tensors in whole.items()}


def train(case: Case) -> dict[str, Any]:
    """Train a case: per step the global loss per domain (nats per token) and the gradient norm; at last the masters."""
    from workers.engine import checkpoint
    from workers.engine.zero_state import TrainedState
    from workers.export import export_model, held_out_examples

    engine = build_engine(case)
    state = checkpoint.load(engine, case.load) if case.load else None
    losses, norms = [], []
    for step in range(case.first_step, case.last_step + 1):
        batch = global_batch(step, engine.data_rank, engine.num_data_ranks)
        if case.measure_every and step % case.measure_every == 0:
            engine.forward(batch, NUM_DOMAINS)
        losses.append(reduced_loss(*engine.forward_backward(batch, NUM_DOMAINS)))
        norms.append(engine.step(learning_rate(step)))
        if step in case.save:
            save(engine, case.save[step], step, {"step": step, "note": "caller's own"}, keep=2)
        if step in case.export:
            export_model(engine, tokenizer(), case.export[step], held_out_examples([global_batch(99)]), end_id=None)
    masters = whole_state(engine)
    weights = reduced_loss(*engine.forward(global_batch(99, engine.data_rank, engine.num_data_ranks), NUM_DOMAINS))
    alone = first_examples(global_batch(99, engine.data_rank, engine.num_data_ranks))
    weights_alone = reduced_loss(*engine.forward(alone, NUM_DOMAINS))
    adam_step = TrainedState(engine).adam_step()
    engine.destroy()
    return {
        "losses": losses,
        "norms": norms,
        "masters": masters,
        "adam_step": adam_step,
        "final": weights,
        "final_alone": weights_alone,
        "state": state,
    }


def nats_of_examples(case: Case, is_training: bool) -> list[list[float]]:
    """Loss of each example of each row of a packed batch, through the engine."""
    engine = build_engine(case)
    batch = global_batch(1)
    nats: list[list[float]] = [[] for _ in range(8)]
    for number in range(3):
        in_example = np.cumsum(batch.position_ids_BL.astype(int) == 0, axis=1) == number + 1
        alone = replace(
            batch,
            loss_mask_BL=batch.loss_mask_BL & in_example,
            domain_B=np.arange(8, dtype=np.int64),
        )
        loss_sum_D, _ = (engine.forward_backward if is_training else engine.forward)(alone, 8)
        for row in range(8):
            nats[row].append(float(loss_sum_D[row]))
    engine.destroy()
    return nats


def losses_with_and_without_logits_to_keep(case: Case) -> tuple[list[float], list[float], float]:
    """Loss sums with the head on the loss positions only, then on all, and the largest difference of a gradient."""
    engine = build_engine(case)
    assert engine.packed.keeps_logits
    results, gradients = [], []
    for keeps_logits in (True, False):
        engine.packed.keeps_logits = keeps_logits
        results.append(engine.forward_backward(global_batch(1), NUM_DOMAINS)[0].tolist())
        gradients.append([p.grad.clone() for p in engine.module.parameters()])
        engine.deepspeed.zero_grad()
    difference = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))
    engine.destroy()
    return results[0], results[1], difference


def losses_and_hidden_states(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token of four rows, as signals read them."""
    engine = build_engine(case)
    nats_N, hidden_BLH = engine.forward_tokens(first_rows(global_batch(1), 4))
    engine.destroy()
    return nats_N, hidden_BLH


def first_rows(batch: Batch, count: int) -> Batch:
    """The batch without the other rows."""
    arrays = ("input_ids_BL", "position_ids_BL", "loss_mask_BL", "domain_B", "row_B")
    return replace(batch, **{name: getattr(batch, name)[:count] for name in arrays})


def largest_logits(case: Case) -> tuple[int, list[float], list[float]]:
    """Of a step and an evaluation: the most targets whose logits were in memory at once, and the loss sums."""
    from torch.utils._python_dispatch import TorchDispatchMode

    rows = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if "log_softmax" in str(function):
                rows.append(result.numel() // VOCABULARY)
            return result

    engine = build_engine(case)
    batch = global_batch(1, engine.data_rank, engine.num_data_ranks)
    with Watch():
        trained = engine.forward_backward(batch, NUM_DOMAINS)[0].tolist()
        measured = engine.forward(batch, NUM_DOMAINS)[0].tolist()
    engine.destroy()
    return max(rows), trained, measured


def router_losses(case: Case) -> tuple[list[float], float, dict[str, torch.Tensor]]:
    """Of one step at stage 0: loss sums, the router loss, and all gradients."""
    engine = build_engine(case)
    loss_sum_D, _ = engine.forward_backward(global_batch(1), NUM_DOMAINS)
    gradients = {name: p.grad.clone() for name, p in engine.module.named_parameters() if p.grad is not None}
    router_loss = engine.router_loss_sum
    engine.destroy()
    return loss_sum_D.tolist(), router_loss, gradients


def dropout_losses(case: Case) -> list[list[float]]:
    """Loss sums of step 1, of step 1 again, and of the same rows as step 2."""
    engine = build_engine(case)
    with torch.no_grad():
        for name, p in engine.trainable_parameters().items():
            if "lora_B" in name:  # zero at first, which would hide the dropout
                p.fill_(0.1)
    batch = global_batch(1)
    losses = [engine.forward_backward(b, NUM_DOMAINS)[0].tolist() for b in (batch, batch, replace(batch, step=2))]
    engine.destroy()
    return losses


def engine_settings(case: Case) -> dict[str, Any]:
    """The stage that the engine runs, and what DeepSpeed itself was told."""
    engine = build_engine(case)
    settings = {"zero_stage": engine.zero_stage, "config": dict(engine.deepspeed.config)}
    engine.destroy()
    return settings


@dataclass(frozen=True)
class ArrayStore:
    """The part of a token store that an evaluation reads."""

    input_ids: np.ndarray
    position_ids: np.ndarray
    loss_mask: np.ndarray
    row_lengths: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_lengths)

    @property
    def max_length(self) -> int:
        return self.input_ids.shape[1]

    @property
    def num_examples(self) -> int:
        is_used_RL = np.arange(self.max_length) < self.row_lengths[:, None]
        return int(((self.position_ids == 0) & is_used_RL).sum())


def evaluation_stores() -> dict[str, ArrayStore]:
    """Three domains of 8, 5 and 1 rows, of different widths."""
    stores = {}
    for name, step, rows, width in (("long", 11, 8, 40), ("short", 12, 5, 48), ("single", 13, 1, 40)):
        batch = global_batch(step)
        pad = ((0, 0), (0, width - 40))
        arrays = [np.pad(a, pad)[:rows] for a in (batch.input_ids_BL, batch.position_ids_BL, batch.loss_mask_BL)]
        stores[name] = ArrayStore(*arrays, row_lengths=np.maximum((arrays[0] != 0).sum(axis=1), 1))
    return stores


def measure(
    case: Case, max_rows: int | Literal["all"]
) -> tuple[dict[str, ExampleLosses], dict[str, HeldOutSample], int]:
    """One evaluation of a sample of the evaluation stores, and the number of forward passes of this rank."""
    from workers.validation.loss_meter import build_evaluation_batches, evaluate

    engine = build_engine(case)
    stores: Any = evaluation_stores()
    samples = {name: draw_sample(store, max_rows) for name, store in stores.items()}
    batches = build_evaluation_batches(stores, samples, 2, engine.data_rank, engine.num_data_ranks)
    losses = evaluate(engine, batches, samples)
    engine.destroy()
    return losses, samples, len(batches)


def reduced_loss(loss_sum_D: torch.Tensor, num_tokens_D: torch.Tensor) -> list[float]:
    """Mean loss of each domain over all ranks."""
    torch.distributed.all_reduce(loss_sum_D)
    torch.distributed.all_reduce(num_tokens_D)
    return (loss_sum_D / num_tokens_D).tolist()


@functools.cache
def tokenizer() -> Any:
    """A word tokenizer as large as the tiny model's vocabulary, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return wrapped


def error_of_training(case: Case) -> str:
    """The error that this rank raises."""
    try:
        train(case)
    except (ValueError, RuntimeError, OSError) as error:
        return str(error)
    return "no error"
