"""What determines the memory that a model needs, under its training strategy: read without loading any weight."""

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.config.run import RunConfig
from workers.strategies import STRATEGIES
from workers.strategies.lora.matrices import find_reach
from workers.strategies.lora.quantised import quantised_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelShape:
    """The properties of a model that determine its memory, under its training strategy."""

    num_parameters: int
    num_trainable: int
    num_quantised: int
    """Parameters that QLoRA stores in 4 bits."""
    largest_quantised: int
    """Of these, in one matrix."""
    num_layers_back: int
    """Decoder layers that the backward pass goes through."""
    hidden_size: int
    intermediate_size: int
    attention_size: int
    """Number of heads times their width."""
    num_heads: int
    attention: str
    """The kernel."""
    vocab_size: int
    num_trained_after_decoder: int
    """Parameters: the head's, if it is trained."""
    num_positions: int | None
    """Tokens per sequence that the model supports; None if its configuration does not say."""
    notes: tuple[str, ...] = ()
    """Lines about what is trained: the matrices with an adapter, the router loss."""


def read_shape(config: RunConfig) -> ModelShape:
    """Of the configured model under its training strategy, built on the meta device: shapes without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from workers.engine.router_loss import describe_router_loss
    from workers.model.attention import attention_kernels
    from workers.model.base_config import model_class

    described = AutoConfig.from_pretrained(config.model.path, revision=config.model.revision)
    strategy = config.training.strategy
    with torch.device("meta"):
        model = STRATEGIES[strategy.type].apply(AutoModelForCausalLM.from_config(described), strategy)
    text: Any = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 0  # state space models have none
    neurons = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    notes = list(find_reach(model).lines()) if strategy.type == "lora" else []
    quantised = [layer.in_features * layer.out_features for _, layer in quantised_layers(model)]
    if quantised:
        notes.append(f"stored in 4 bits: {len(quantised):,} matrices with {sum(quantised):,} parameters")
    if config.training.router_loss and (line := describe_router_loss(model)):
        notes.append(line)
    return ModelShape(
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_quantised=sum(quantised),
        largest_quantised=max(quantised, default=0),
        num_layers_back=_num_layers_back(model, text.num_hidden_layers),
        hidden_size=text.hidden_size,
        intermediate_size=max(neurons) if isinstance(neurons, list | tuple) else neurons,
        attention_size=heads * (getattr(text, "head_dim", None) or text.hidden_size // heads) if heads else 0,
        num_heads=heads,
        attention=attention_kernels(
            config.model, model_class(described), described, config.cluster.gpus_per_worker > 0
        )[0],
        vocab_size=text.vocab_size,
        num_trained_after_decoder=_num_trained_after_decoder(model),
        num_positions=getattr(text, "max_position_embeddings", None),
        notes=tuple(notes),
    )


def _num_trained_after_decoder(model: Any) -> int:
    from workers.model.tail import parameters_after_decoder

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with suppress(ValueError):  # without a known decoder the losses are never computed in chunks
        return sum(p.numel() for p in parameters_after_decoder(base) if p.requires_grad)
    return 0


def _num_layers_back(model: "PreTrainedModel", num_layers: int) -> int:
    """Decoder layers that the backward pass goes through, from the last down to the lowest trained one."""
    import torch

    layers = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == num_layers]
    in_layers = {id(p) for stack in layers for p in stack.parameters()}
    if not layers or any(p.requires_grad and id(p) not in in_layers for p in model.parameters()):
        return num_layers
    trained = [i for i, layer in enumerate(layers[0]) if any(p.requires_grad for p in layer.parameters())]
    return num_layers - min(trained, default=num_layers)
