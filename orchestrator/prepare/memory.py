"""How much memory a rank will need, estimated before anything is loaded.

The estimate covers tensors at the worst moment of a training step: the end of the forward pass, the end of the backward
pass, or the optimizer step. Weights, gradients and optimizer state are sharded as by ZeRO (arXiv 1910.02054), with the
copies and buffers that DeepSpeed makes of them. Activations are those of transformers' decoder layers with gated
neurons (Llama, Qwen, ...), counted like the layers in Korthikanti et al. (arXiv 2205.05198, section 4.1); only eager
attention keeps scores. Only trained parameters have gradients and optimizer state, and no activations are kept below
the lowest trained layer.

Not included: the memory of the process itself and of the device's runtime, and the allocator's fragmentation. What a
custom DeepSpeed file offloads from a GPU is counted separately, as memory of the host.
"""

from dataclasses import dataclass
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.prepare.model_shape import ModelShape
from workers.engine.deepspeed_config import build_deepspeed_config
from workers.strategies.cofitune import CoFiTuneConfig
from workers.strategies.lora.quantised import BYTES_PER_WEIGHT

GIB = 2**30
_FP32 = 4  # bytes
_ADAM_TEMPORARIES = 8  # bytes per parameter that torch's AdamW needs in a step on the CPU; on a GPU it is fused
# DeepSpeed's defaults, in parameters.
_ZERO_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "sub_group_size": 1_000_000_000,
    "stage3_max_reuse_distance": 1_000_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one rank, in bytes: for each moment of a step, what is allocated then, by name."""

    num_parameters: int
    num_trainable: int
    moments: dict[str, dict[str, float]]
    offloaded: float = 0.0
    """Bytes that a rank on a GPU keeps in host memory, or on disk, instead."""

    @property
    def moment(self) -> str:
        """The moment with the highest total."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> dict[str, float]:
        """What is allocated at that moment."""
        return self.moments[self.moment]

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def total_gib(self) -> float:
        return self.total / GIB


def estimate_memory(shape: ModelShape, config: RunConfig, loss_fraction: float = 1.0) -> MemoryEstimate:
    """Estimate for a model of this shape: no weights are read.

    Only `loss_fraction` of a sequence's tokens count for the loss; logits of the others are not kept, and those of many
    tokens never all at once.
    """
    rank = _Rank(shape, config)
    held, (in_forward, in_backward, in_step) = rank.held(), rank.gradients()
    kept = {"activations": rank.activations()} | rank.loss(loss_fraction)
    moments = {
        "forward pass": held | kept | {"gradients": in_forward},
        "backward pass": held | {"gradients": in_backward},
        "optimizer step": held | {"gradients": in_step},
    }
    return MemoryEstimate(shape.num_parameters, shape.num_trainable, moments, rank.offloaded())


class _Rank:
    """What a rank of the configured training has to allocate for a model of this shape, in bytes."""

    def __init__(self, shape: ModelShape, config: RunConfig) -> None:
        self.shape, self.config, training = shape, config, config.training
        self.stage, self.num_ranks = training.deepspeed.zero_stage, config.cluster.min_workers
        self.width = 2 if config.model.dtype == "bfloat16" else _FP32
        self.on_gpu = config.cluster.gpus_per_worker > 0
        self.num_slices = training.sequence_parallel
        self.num_tokens = training.micro_batch_size * config.data.max_length / self.num_slices
        self.has_more_passes = training.global_batch_size > training.micro_batch_size * config.num_data_ranks
        given = build_deepspeed_config(training, config.model, self.num_ranks, shape.hidden_size)["zero_optimization"]
        self.zero = {name: int(given.get(name, size)) for name, size in _ZERO_DEFAULTS.items()}
        # On the CPU all of it is the same memory.
        self.offloads_optimizer = self.on_gpu and _is_offloaded(given, "offload_optimizer")
        self.offloads_weights = self.on_gpu and self.stage == 3 and _is_offloaded(given, "offload_param")
        stepped = shape.num_trainable / (self.num_ranks if self.stage else 1)
        # Parameters that a rank updates at a time.
        self.num_stepped = min(stepped, self.zero["sub_group_size"] / self.num_ranks) if self.stage == 3 else stepped

    def held(self) -> dict[str, float]:
        """What is allocated all the time: weights, and the optimizer's master weights and moments."""
        stage, width, shape = self.stage, self.width, self.shape
        num_held = 0 if self.offloads_weights else shape.num_parameters - shape.num_quantised
        weights = num_held * width / (self.num_ranks if stage == 3 else 1)
        # One quantised matrix at a time is there as it is computed with.
        weights += shape.num_quantised * BYTES_PER_WEIGHT + shape.largest_quantised * width
        if stage == 3:
            # Gathered weights are kept for the backward pass if it needs them again soon.
            live = self.zero["stage3_max_reuse_distance"] / 2 + self.zero["stage3_prefetch_bucket_size"]
            weights += min(shape.num_parameters, live) * width
        masters = 0 if width == _FP32 and stage in (0, 3) else _FP32  # there the parameters themselves are updated
        strategy = self.config.training.strategy
        masked = isinstance(strategy, CoFiTuneConfig) and strategy.mask != "none"
        mask = 13 if masked else 0  # bytes for the factors and their bins, and the weights before and after masking
        optimizer = shape.num_trainable * (2 * _FP32 + masters + mask) / (self.num_ranks if stage >= 1 else 1)
        return {"weights": weights, "optimizer": 0.0 if self.offloads_optimizer else optimizer}

    def offloaded(self) -> float:
        """What a DeepSpeed file moves off the GPU: a rank's part of the weights; or of masters, moments, a float32
        gradient, and a copy of the weights from which the GPU's are renewed."""
        share = self.shape.num_trainable / (self.num_ranks if self.stage else 1)
        of_optimizer = share * (4 * _FP32 + self.width) if self.offloads_optimizer else 0.0
        of_weights = self.shape.num_parameters * self.width / self.num_ranks if self.offloads_weights else 0.0
        return of_optimizer + of_weights

    def gradients(self) -> tuple[float, float, float]:
        """Bytes at the end of the forward pass, at the end of the backward pass, and in the optimizer step.

        Stages 1 to 3 reduce gradients in a bucket and keep a rank's share of the result. Stage 1 starts when all
        gradients exist, stage 2 whenever the bucket is full; stage 3 sorts a full bucket by rank, in a copy of it. On a
        GPU the whole bucket is allocated, on the CPU only the filled part. The step copies the share into one float32
        tensor.
        """
        width = self.width
        if self.offloads_optimizer and self.stage >= 2:
            return self._offloaded_gradients()
        if width < _FP32 and self.config.training.deepspeed.gradient_dtype == "float32":
            return self._wide_gradients()
        every = self.shape.num_trainable * width
        share = every / (self.num_ranks if self.stage else 1)
        filled = min(self.zero["reduce_bucket_size"], self.shape.num_trainable) * width
        bucket = self.zero["reduce_bucket_size"] * width if self.on_gpu else filled
        carried = share if self.has_more_passes else 0  # from pass to pass
        copies = self.num_stepped * (width + (_FP32 if width < _FP32 else 0))
        adam = self.num_stepped * (_FP32 + (0 if self.on_gpu else _ADAM_TEMPORARIES))
        match self.stage:
            case 0:
                return carried, every + filled, every + (adam if width < _FP32 else 0)
            case 1:
                return carried + (bucket if self.on_gpu else 0), every + carried + bucket, max(share + copies, adam)
            case 2:
                return carried + (bucket if self.on_gpu else 0), share + carried + bucket, max(share + copies, adam)
            case _:  # share and bucket are taken once and kept
                return share + bucket, share + bucket + filled, share + bucket + max(copies, adam)

    def _wide_gradients(self) -> tuple[float, float, float]:
        """The same if bfloat16 gradients are summed in float32.

        Stages 0 and 1 keep all of them in float32 from the start, and reduce a copy. Stage 2 copies the bucket in both
        precisions to reduce it, and a rank's share is summed where it stays until the step; at stage 3 the bucket
        itself is float32. The step uses the sums in place, except for a contiguous copy at stage 3.
        """
        num_filled = min(self.zero["reduce_bucket_size"], self.shape.num_trainable)
        num_in_bucket = self.zero["reduce_bucket_size"] if self.on_gpu else num_filled
        every = self.shape.num_trainable * _FP32
        share = every / self.num_ranks
        adam = 0 if self.on_gpu else self.num_stepped * _ADAM_TEMPORARIES
        match self.stage:
            case 0:
                return every if self.has_more_passes else 0, every + num_filled * _FP32, every + adam
            case 1:
                return every, every + num_filled * _FP32, every + adam
            case 2:
                bucket, copies = num_in_bucket * self.width, num_filled * (self.width + _FP32)
                in_forward = (share if self.has_more_passes else 0) + (bucket if self.on_gpu else 0)
                return in_forward, share + bucket + copies, share + adam
            case _:
                kept = share + num_in_bucket * _FP32
                return kept, kept + num_filled * _FP32, kept + self.num_stepped * _FP32 + adam

    def _offloaded_gradients(self) -> tuple[float, float, float]:
        """The same if they leave the GPU as they are reduced: only buckets are there. Stage 3 keeps its own."""
        sums = self.config.training.deepspeed.gradient_dtype
        width = _FP32 if self.stage == 3 and sums == "float32" else self.width
        bucket = self.zero["reduce_bucket_size"] * width
        copies = min(self.zero["reduce_bucket_size"], self.shape.num_trainable) * _FP32
        return bucket, bucket + copies, bucket if self.stage == 3 else 0.0

    def loss(self, loss_fraction: float) -> dict[str, float]:
        """Bytes of the logits: of all loss tokens, or of a chunk of them where that takes less with its gradients."""
        from workers.model.chunked_loss import LOGIT_BYTES, LOGITS_LIMIT

        # All loss tokens of a sequence may be in one slice of it.
        in_slice = min(loss_fraction * self.num_slices, 1.0)
        whole = self.num_tokens * in_slice * self.shape.vocab_size * LOGIT_BYTES
        gradients = self.shape.num_trained_after_decoder * (_FP32 + (self.width if self.width < _FP32 else 0))
        if whole <= LOGITS_LIMIT + gradients:
            return {"logits": whole}
        return {"logits": float(LOGITS_LIMIT)} | ({"gradient of the head": float(gradients)} if gradients else {})

    def activations(self) -> float:
        """Bytes that the forward pass keeps for the backward pass, without the logits."""
        width, shape, data = self.width, self.shape, self.config.data
        norm = (_FP32 + 2 * width) * shape.hidden_size  # its input in float32, normalised, and scaled
        # Queries, keys, values and results of every head, or of a part of the heads for all slices, and the results as
        # they were exchanged; a mask of packed sequences, whole on every rank, or scores in float32 and as used
        attention = width * (4 if self.num_slices == 1 else 5) * shape.attention_size
        if data.packing and shape.attention == "sdpa":
            attention += width * data.max_length * self.num_slices
        elif shape.attention == "eager":
            attention += shape.num_heads * data.max_length * (_FP32 + (width if width < _FP32 else 0))
        neurons = width * 4 * shape.intermediate_size  # gate, activated, up, and their product
        layer, layers = 2 * norm + attention + neurons, shape.num_layers_back
        if self.config.training.activation_checkpointing:
            return self.num_tokens * (layers * width * shape.hidden_size + layer + norm)
        return self.num_tokens * (layers * layer + norm)


def _is_offloaded(zero_optimization: dict[str, Any], section: str) -> bool:
    return (zero_optimization.get(section) or {}).get("device", "none") != "none"
