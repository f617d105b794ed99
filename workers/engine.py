"""The only engine: DeepSpeed ZeRO 0 to 3, on GPU (NCCL) and CPU (gloo) alike.

`torch.distributed` is initialised by the caller; rank and world size come from it. A step is one `forward_backward`
on this rank's slice of the global batch, then one `step`. Shapes: B rows, L tokens, K positions whose next token
counts, N loss tokens, V vocabulary, D domains.
"""

import gc
import inspect
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedModel

from workers.config import ModelConfig, TrainingConfig
from workers.deepspeed_config import build_deepspeed_config
from workers.model import load_hidden_size, load_model
from workers.strategies import STRATEGIES, Attachment

if TYPE_CHECKING:
    from workers.data.batches import Batch


class Engine:
    """A model that is trained and measured; the same calls on every rank.

    Args:
        deepspeed_engine: what `deepspeed.initialize` returned.
        seed: of dropout, which is a function of (seed, step, rank): resuming needs no random state.
    """

    def __init__(self, deepspeed_engine: Any, model_config: ModelConfig, training: TrainingConfig, seed: int) -> None:
        self.deepspeed = deepspeed_engine
        self.module = deepspeed_engine.module
        self.optimizer = deepspeed_engine.optimizer
        self.device = torch.device(deepspeed_engine.device)
        self.zero_stage = int(deepspeed_engine.zero_optimization_stage())
        self.model_config = model_config
        self.training = training
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._seed = seed
        attach = getattr(STRATEGIES[training.strategy.type], "attach", None)
        self.attachment: Attachment | None = attach(self, training.strategy) if attach else None
        self._keeps_logits = "logits_to_keep" in inspect.signature(base_model(self.module).forward).parameters

    @classmethod
    def build(cls, model_config: ModelConfig, training: TrainingConfig, seed: int = 0) -> Self:
        """Load the model, apply the training strategy, and hand both to DeepSpeed; a collective."""
        deepspeed = _import_deepspeed()
        hidden_size = load_hidden_size(model_config)
        config = build_deepspeed_config(training, model_config, dist.get_world_size(), hidden_size)
        torch.manual_seed(seed)  # new parameters (adapters) start alike on every rank and in every attempt
        model = _load_trainable(model_config, training, config)
        on_gpu = torch.cuda.is_available()
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, training.weight_decay),
            lr=0.0,  # every step sets its own
            betas=training.betas,
            eps=training.epsilon,
            fused=on_gpu,
        )
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        _forget_initial_steps(engine.optimizer)
        return cls(engine, model_config, training, seed)

    def forward_backward(self, batch: "Batch", num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Accumulate the gradient of this rank's rows; their loss sums (nats) and loss tokens per domain."""
        torch.manual_seed(int(np.random.SeedSequence([self._seed, batch.step, self.rank]).generate_state(1)[0]))
        # DeepSpeed divides by the world size; one denominator for the whole step makes the loss a mean over tokens.
        scale = self.world_size / batch.global_loss_tokens

        def backward(nats_N: torch.Tensor) -> None:
            self.deepspeed.backward(nats_N.sum() * scale, scale_wrt_gas=False)

        self.module.train()
        return self._sum_by_domain(batch, num_domains, backward)

    @torch.no_grad()
    def forward(self, batch: "Batch", num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sums (nats) and loss tokens per domain of this rank's rows, without gradients or dropout."""
        self.module.eval()
        return self._sum_by_domain(batch, num_domains, lambda nats_N: None)

    @torch.no_grad()
    def forward_tokens(self, batch: "Batch") -> tuple[torch.Tensor, torch.Tensor]:
        """Nats of each loss token, (N,) in float32, row by row, and the last hidden states, (B, L, hidden size).

        One forward pass of all rows of the batch, which is to be a micro batch, without gradients or dropout. The
        hidden states are those after the final norm, of every token, padding included.
        """
        self.module.eval()
        hidden: list[torch.Tensor] = []
        decoder = base_model(self.module).base_model  # the model without its head
        watch = decoder.register_forward_hook(lambda module, given, output: hidden.append(output.last_hidden_state))
        try:
            row_N, column_N = np.nonzero(batch.loss_mask_BL[:, 1:])
            nats_N = self._compute_nats(batch, slice(None), row_N, column_N, batch.input_ids_BL.shape[1])
        finally:
            watch.remove()
        return nats_N, hidden[0]

    def step(self, learning_rate: float) -> float | None:
        """Update the weights; the norm of the global gradient before clipping (None: fp32 at stage 0)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Name -> parameter, of those that move."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def destroy(self) -> None:
        """Free what DeepSpeed holds, so that another engine can be built in this process."""
        self.deepspeed.destroy()
        del self.deepspeed, self.module, self.optimizer, self.attachment
        gc.collect()

    def _sum_by_domain(self, batch: "Batch", num_domains: int, consume: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum_D = torch.zeros(num_domains, dtype=torch.float64, device=self.device)
        num_tokens_D = np.zeros(num_domains, dtype=np.int64)
        for rows in _micro_batches(len(batch.domain_B), self.training.micro_batch_size):
            row_N, column_N = np.nonzero(batch.loss_mask_BL[rows, 1:])  # the column that predicts the target
            domain_N = batch.domain_B[rows][row_N]
            # Causal attention: what comes after the last prediction that counts changes no loss.
            nats_N = self._compute_nats(batch, rows, row_N, column_N, int(column_N.max(initial=0)) + 1)
            consume(nats_N)
            loss_sum_D.index_add_(0, self._to_device(domain_N), nats_N.detach().double())
            num_tokens_D += np.bincount(domain_N, minlength=num_domains)
        return loss_sum_D, self._to_device(num_tokens_D)

    def _compute_nats(
        self, batch: "Batch", rows: slice, row_N: np.ndarray, column_N: np.ndarray, length: int
    ) -> torch.Tensor:
        keep_K = np.unique(column_N) if self._keeps_logits and len(column_N) else np.arange(length)
        # Where every position counts, choosing them all would only copy, and scatter once more in the backward pass.
        kept = {"logits_to_keep": self._to_device(keep_K)} if len(keep_K) < length else {}
        # No attention mask and no cache: transformers then tells packed examples apart by their positions.
        logits_BKV = self.deepspeed(
            input_ids=self._to_device(batch.input_ids_BL[rows, :length]),
            position_ids=self._to_device(batch.position_ids_BL[rows, :length]),
            use_cache=False,
            **kept,
        ).logits
        index_N = self._to_device(row_N * len(keep_K) + np.searchsorted(keep_K, column_N))
        target_N = self._to_device(batch.input_ids_BL[rows][row_N, column_N + 1])
        logits_NV = logits_BKV.flatten(0, 1)
        if len(row_N) < len(logits_NV):  # else every position counts, and choosing them all would only copy
            logits_NV = logits_NV.index_select(0, index_N)
        return F.cross_entropy(logits_NV.float(), target_N, reduction="none")

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self.device)


def base_model(module: Any) -> PreTrainedModel:
    """The transformers model itself, without peft around it."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _micro_batches(num_rows: int, micro_batch_size: int) -> Iterator[slice]:
    for start in range(0, num_rows, micro_batch_size):
        yield slice(start, start + micro_batch_size)


def _import_deepspeed() -> Any:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    # Its shared-memory collectives want a compiler, take a minute to build, and are slower than none to start.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It adopts the process group; without this a ZeRO-3 model that is loaded before the first engine sees one rank.
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    return deepspeed


def _load_trainable(model_config: ModelConfig, training: TrainingConfig, config: dict[str, Any]) -> torch.nn.Module:
    if config["zero_optimization"]["stage"] == 3:
        from transformers.integrations import HfDeepSpeedConfig
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        partitioning = HfDeepSpeedConfig(config)  # while it lives, every model that is loaded is partitioned
        try:
            model = load_model(model_config)
        finally:
            unset_hf_deepspeed_config()
            del partitioning
    else:
        model = load_model(model_config)
    if training.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return STRATEGIES[training.strategy.type].apply(model, training.strategy)


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay, vectors (norms, biases) do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    # Under ZeRO-3 a partitioned parameter's own shape is empty; DeepSpeed keeps the true one aside.
    matrices = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) >= 2]
    vectors = [p for p in trainable if len(getattr(p, "ds_shape", p.shape)) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _forget_initial_steps(optimizer: Any) -> None:
    # DeepSpeed's bf16 optimizer of stage 0 steps once with zero gradients when it is made; Adam would count that step.
    for state in getattr(optimizer, "optimizer", optimizer).state.values():
        if "step" in state:
            state["step"].zero_()
