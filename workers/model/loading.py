"""Loading of the base model: only from safetensors, without remote code, without output."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import deepspeed_config, unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from workers.config.model import ModelConfig
from workers.config.training import TrainingConfig
from workers.model.attention import attention_kernels, plain_kernel
from workers.model.base_config import check_model_path, explain, model_class, read_model_type
from workers.model.base_folder import BaseModel, read_base
from workers.model.liger import check_liger
from workers.model.slices import check_slices


def check_model(config: ModelConfig, on_gpu: bool, training: TrainingConfig | None = None) -> BaseModel | None:
    """The base model according to its files, without reading weights; None for a hub model outside the local cache.
    ValueError if it could not be loaded, with the requested attention kernel, or trained in the requested way."""
    path = check_model_path(config)
    described = read_model_type(config, path)
    family: Any = model_class(described)
    attention_kernels(config, family, described, on_gpu)
    if config.liger:
        check_liger(described.model_type, on_gpu)
    if training is not None:
        _check_training(training, described, family)
    return read_base(config, path)


def _check_training(training: TrainingConfig, described: PreTrainedConfig, family: Any) -> None:
    if training.deepspeed.zero_stage == 3:
        check_partitions(described)
    check_slices(described, training.sequence_parallel, training.router_loss)
    if training.activation_checkpointing and not family.supports_gradient_checkpointing:
        raise ValueError(
            f"training.activation_checkpointing: {family.__name__} does not support it in transformers; set it to false"
        )


def check_partitions(config: PreTrainedConfig) -> None:
    """Refuse a family that ZeRO-3 cannot train."""
    if config.model_type == "rwkv":
        raise ValueError(
            "training.deepspeed.zero_stage: RWKV rescales its weights between training and evaluation, which the "
            "partitions of ZeRO-3 do not allow; use stage 0, 1 or 2"
        )


def load_model(config: ModelConfig) -> PreTrainedModel:
    """The causal language model in the configured precision; every weight comes from a safetensors file. It has the
    attention kernel that works on any device: training sets a faster one.

    As in plain transformers, tied weights stay separate if the files have different values for them; the model's
    configuration then says so. A collective under ZeRO-3.

    Raises:
        ValueError: the files do not match the model, or contain a weight that is NaN or infinite.
    """
    path = check_model_path(config)
    partitioning = deepspeed_config()  # of ZeRO-3, if DeepSpeed is to partition the model
    unset_hf_deepspeed_config()
    described = read_model_type(config, path)
    base = read_base(config, path, may_download=True)
    doubled = base.doubled if base else {}
    if doubled:
        # Whether they differ is known once loaded; under ZeRO-3, transformers would tie them unchecked.
        _set_tying(described, False)
    with partitioned(partitioning):
        model = _load(config, path, described)
    _refuse_non_finite(model, config.path)
    if doubled and all(_is_equal(model.get_parameter(a), model.get_parameter(b)) for a, b in doubled.items()):
        _set_tying(model.config, True)
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        model.tie_weights()
    # With the cache on, transformers ignores where packed examples begin, and they attend to each other.
    model.config.use_cache = False
    return model


def find_decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a model that computes the last hidden states: the model without its head.

    What transformers calls a family's decoder is sometimes the head or the model itself, and its base model sometimes
    an unused shell.
    """
    embeddings: Any = model.get_input_embeddings()
    for part in (model.get_decoder(), model.base_model, getattr(model, "model", model)):
        if part is not model and any(module is embeddings for module in part.modules()):
            return part
    raise ValueError(f"{type(model).__name__}: transformers does not say which part computes the last hidden states")


@contextmanager
def partitioned(settings: dict[str, Any] | None) -> Iterator[None]:
    """Make ZeRO-3 partition models loaded in this context, if there are settings for it."""
    held = None if settings is None else HfDeepSpeedConfig(settings)  # transformers keeps a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del held


def _load(config: ModelConfig, path: str, described: PreTrainedConfig) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        # With output_loading_info the result is a pair, contrary to the library's annotation.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=described,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            attn_implementation=plain_kernel(config, model_class(described)),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # faulty files can raise anything in transformers
        raise ValueError(f"model {config.path} does not load: {explain(error)}") from error
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would replace them with random values.
        raise ValueError(f"model {config.path}: {len(missing)} weights are missing from the files, first {missing[0]}")
    assert isinstance(model, PreTrainedModel)
    return model


def _set_tying(config: PreTrainedConfig, is_tied: bool) -> None:
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = is_tied


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not hasattr(one, "ds_id"):
        return torch.equal(one, other)
    import deepspeed

    with deepspeed.zero.GatheredParameters([one, other]):
        return torch.equal(one, other)


def _refuse_non_finite(model: PreTrainedModel, path: str) -> None:
    """Raise ValueError on all ranks if a weight is NaN or infinite; each is checked where it was loaded."""
    stored = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
    bad = [*_non_finite(model.named_parameters()), *_non_finite(buffers)]
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        of_ranks: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(of_ranks, bad)
        bad = sorted({name for names in of_ranks for name in names})
    if bad:
        raise ValueError(
            f"model {path}: {len(bad)} of its weights contain NaN or infinity, first {bad[0]}; the base model is "
            "damaged, so copy or download it again, or use another"
        )


def _non_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    held = {name: _held(tensor) for name, tensor in tensors if tensor.is_floating_point()}
    # NaN is both the minimum and the maximum of any tensor with it; this makes no copy.
    return [name for name, t in held.items() if t.numel() and not torch.isfinite(torch.stack(torch.aminmax(t))).all()]


def _held(tensor: Any) -> torch.Tensor:
    """This rank's part: all of it, or under ZeRO-3 its partition without the uninitialised padding."""
    if not hasattr(tensor, "ds_tensor"):
        held = tensor.detach()
    elif tensor.ds_tensor.status.name != "AVAILABLE":  # offloaded to disk
        held = torch.empty(0)
    else:
        part, rank = tensor.ds_tensor, dist.get_rank(tensor.ds_process_group)
        held = part.flatten()[: max(0, tensor.ds_numel - rank * part.ds_numel)]
    assert isinstance(held, torch.Tensor)
    return held
