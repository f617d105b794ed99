"""How much memory a rank will need, estimated before anything is loaded.

Model states follow the ZeRO paper's table (arXiv 1910.02054, figure 1), with fp32 masters and gradients as this engine
holds them; activations follow Korthikanti et al. (arXiv 2205.05198, section 4.1) for attention that keeps no scores.
"""

from dataclasses import dataclass

from orchestrator.config import RunConfig

GIB = 2**30
_ACTIVATION_BYTES = 34  # per token, hidden unit and layer, in 16 bits


@dataclass(frozen=True)
class MemoryEstimate:
    """Of one rank, in bytes."""

    num_parameters: int
    num_trainable: int
    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total_gib(self) -> float:
        """The sum, in GiB."""
        return (self.parameters + self.gradients + self.optimizer + self.activations + self.logits) / GIB


def estimate_memory(config: RunConfig) -> MemoryEstimate:
    """Estimate for the configured model, from its shapes alone: no weights are read."""
    from workers.model import load_shapes

    shapes = load_shapes(config.model, config.training)
    stage, ranks = config.training.deepspeed.zero_stage, config.cluster.num_workers
    width = 2 if config.model.dtype == "bfloat16" else 4
    masters = 4 if width == 2 else 0  # in fp32 the parameters are their own masters, but ZeRO partitions a copy
    if width == 4 and stage in (1, 2):
        masters = 4
    tokens = config.training.micro_batch_size * config.data.max_length
    layers_kept = 1 if config.training.activation_checkpointing else shapes.num_layers
    checkpoints = 2 * shapes.num_layers if config.training.activation_checkpointing else 0
    per_token = shapes.hidden_size * (_ACTIVATION_BYTES * layers_kept + checkpoints) * width / 2
    return MemoryEstimate(
        num_parameters=shapes.num_parameters,
        num_trainable=shapes.num_trainable,
        parameters=shapes.num_parameters * width / (ranks if stage == 3 else 1),
        gradients=shapes.num_trainable * width / (ranks if stage >= 2 else 1),
        optimizer=shapes.num_trainable * (8 + masters) / (ranks if stage >= 1 else 1),
        activations=tokens * per_token,
        logits=tokens * shapes.vocab_size * (width + 8),  # as computed, in float32, and their gradient
    )
