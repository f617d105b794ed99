"""How much memory a rank will need, estimated before anything is loaded.

Only what trains has gradients and optimizer state, and no activations are kept below the lowest layer that trains.
Model states follow the ZeRO paper's table (arXiv 1910.02054, figure 1), with fp32 masters and gradients as this engine
holds them; activations follow Korthikanti et al. (arXiv 2205.05198, section 4.1) for attention that keeps no scores.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.config import RunConfig
from workers.strategies import STRATEGIES
from workers.strategies.cofitune import CoFiTuneConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    model = _build_without_weights(config)
    text = model.config.get_text_config()
    num_parameters = sum(p.numel() for p in model.parameters())
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stage, ranks = config.training.deepspeed.zero_stage, config.cluster.num_workers
    width = 2 if config.model.dtype == "bfloat16" else 4
    masters = 0 if width == 4 and stage == 0 else 4  # plain fp32 training steps the parameters themselves
    tokens = config.training.micro_batch_size * config.data.max_length
    layers_kept, inputs_kept = _num_layers_back(model, text.num_hidden_layers), 0
    if config.training.activation_checkpointing:
        layers_kept, inputs_kept = 1, 2 * layers_kept
    strategy = config.training.strategy
    masked = isinstance(strategy, CoFiTuneConfig) and strategy.mask != "none"
    mask = 13 if masked else 0  # the factors and their bins; the weights before, and as the mask makes them
    per_token = text.hidden_size * (_ACTIVATION_BYTES * layers_kept + inputs_kept) * width / 2
    return MemoryEstimate(
        num_parameters=num_parameters,
        num_trainable=num_trainable,
        parameters=num_parameters * width / (ranks if stage == 3 else 1),
        gradients=num_trainable * width / (ranks if stage >= 2 else 1),
        optimizer=num_trainable * (8 + masters + mask) / (ranks if stage >= 1 else 1),
        activations=tokens * per_token,
        logits=tokens * text.vocab_size * (width + 8),  # as computed, in float32, and their gradient
    )


def _num_layers_back(model: "PreTrainedModel", num_layers: int) -> int:
    """Decoder layers that the backward pass goes through, from the last down to the lowest with anything to train."""
    import torch

    layers = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == num_layers]
    in_layers = {id(p) for stack in layers for p in stack.parameters()}
    if not layers or any(p.requires_grad and id(p) not in in_layers for p in model.parameters()):
        return num_layers
    trained = [i for i, layer in enumerate(layers[0]) if any(p.requires_grad for p in layer.parameters())]
    return num_layers - min(trained, default=num_layers)


def _build_without_weights(config: RunConfig) -> "PreTrainedModel":
    """The model under its training strategy, on the meta device: shapes, no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = config.model
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(settings.path, revision=settings.revision))
        return STRATEGIES[config.training.strategy.type].apply(model, config.training.strategy)
