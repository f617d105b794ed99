"""The model for DeepSpeed: loaded as its ZeRO stage needs it, with the training strategy applied."""

import re
from contextlib import suppress
from typing import Any

import torch
from transformers import PreTrainedModel

from workers.config.model import ModelConfig
from workers.config.training import TrainingConfig
from workers.model.base_config import read_model_type
from workers.model.chunked_loss import attach_chunked_loss
from workers.model.loading import check_partitions, load_model, partitioned
from workers.model.tail import parameters_after_decoder
from workers.strategies import STRATEGIES

# Classes of transformers: MixtralExperts, DbrxExpertGLU, JetMoeParallelExperts.
_EXPERTS = re.compile("Expert")


def load_trainable(model_config: ModelConfig, training: TrainingConfig, config: dict[str, Any]) -> torch.nn.Module:
    """Load the model and apply the strategy; `config` is DeepSpeed's. At ZeRO-3 a collective."""
    is_partitioned = config["zero_optimization"]["stage"] == 3
    model = _load_partitioned(model_config, config) if is_partitioned else load_model(model_config)
    if training.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainable = STRATEGIES[training.strategy.type].apply(model, training.strategy)
    if is_partitioned:
        _gather_experts_together(trainable)
        _gather_head_for_loss(model)
    return trainable


def _load_partitioned(model_config: ModelConfig, config: dict[str, Any]) -> PreTrainedModel:
    """The model, partitioned by ZeRO-3 while loading, if its family allows that, so that no rank holds it whole."""
    check_partitions(read_model_type(model_config, model_config.path))
    with suppress(ValueError), partitioned(config):
        return load_model(model_config)
    # Some families compute initial values from the shapes of weights, which partitions do not have (xLSTM), or miss an
    # existing key (DeepSeek V4). DeepSpeed partitions a whole model too; any other error is raised here.
    return load_model(model_config)


def _gather_experts_together(model: torch.nn.Module) -> None:
    """Make DeepSpeed gather the experts of a layer as one unit.

    Which experts a rank calls depends on its tokens, but DeepSpeed treats every call of a module as a collective: ranks
    whose tokens go to different experts would wait for each other forever.
    """
    from deepspeed.utils import set_z3_leaf_module

    for module in model.modules():
        if _EXPERTS.search(type(module).__name__):
            set_z3_leaf_module(module, True)


def _gather_head_for_loss(model: PreTrainedModel) -> None:
    """Make DeepSpeed gather the head once for all chunks of a pass's losses, whose number differs between ranks."""
    import deepspeed

    with suppress(ValueError):  # without a known decoder there are no chunks
        loss = attach_chunked_loss(model)
        for parameter in parameters_after_decoder(model):
            deepspeed.zero.register_external_parameter(loss, parameter)
