"""The base model: safetensors only, remote code never run, nothing printed."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import HfDeepSpeedConfig
from transformers.integrations.deepspeed import deepspeed_config, unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging

from workers.config.model import ModelConfig
from workers.model.attention import resolve_attention
from workers.model.base_config import check_model_path, explain, model_class, read_model_type
from workers.model.base_folder import BaseModel, read_base


def check_model(
    config: ModelConfig, on_gpu: bool, checkpointing: bool = False, zero_stage: int = 0
) -> BaseModel | None:
    """What the files of the base model say of it, no weight read; None for a hub model that is not in the local cache.

    Args:
        config: of the model.
        on_gpu: whether it is to run on a GPU.
        checkpointing: whether its activations are to be recomputed.
        zero_stage: of the training.

    Raises:
        ValueError: it could not be loaded, or not with the attention kernel that is asked for.
    """
    path = check_model_path(config)
    described = read_model_type(config, path)
    family: Any = model_class(described)
    resolve_attention(config, family, on_gpu)
    if zero_stage == 3:
        check_partitions(described)
    if checkpointing and not family.supports_gradient_checkpointing:
        raise ValueError(
            f"training.activation_checkpointing: transformers has none for {family.__name__}; set it to false"
        )
    return read_base(config, path)


def check_partitions(config: PreTrainedConfig) -> None:
    """Refuse a family that ZeRO-3 cannot train."""
    if config.model_type == "rwkv":
        raise ValueError(
            "training.deepspeed.zero_stage: RWKV rescales its weights between training and evaluation, which the "
            "partitions of ZeRO-3 do not allow; use stage 0, 1 or 2"
        )


def load_model(config: ModelConfig) -> PreTrainedModel:
    """The causal language model in the configured precision; every weight comes from a safetensors file.

    As in plain transformers, weights that the configuration ties stay apart where the files hold different values for
    them; here the model's configuration then says so. Under ZeRO-3 a collective.

    Raises:
        ValueError: the files are not those of the model, or hold a weight that is NaN or infinite.
    """
    path = check_model_path(config)
    partitioning = deepspeed_config()  # of ZeRO-3, where DeepSpeed is to partition the model
    unset_hf_deepspeed_config()
    described = read_model_type(config, path)
    attention = resolve_attention(config, model_class(described), torch.cuda.is_available())
    base = read_base(config, path, may_download=True)
    doubled = base.doubled if base else {}
    if doubled:
        # Whether they differ shows when they are loaded; transformers would tie them under ZeRO-3 without a look.
        _set_tying(described, False)
    with _partitioned(partitioning):
        model = _load(config, path, described, attention)
    _refuse_non_finite(model, config.path)
    if doubled and _are_equal(model, doubled):
        _set_tying(model.config, True)
        model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
        model.tie_weights()
    # With the cache on, transformers does not see where packed examples begin, and they attend to each other.
    model.config.use_cache = False
    return model


def find_decoder(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a model that a forward pass goes through up to its last hidden states: the model without its head.

    What transformers calls the decoder of a family is sometimes the head or the model itself, and its base model
    sometimes a shell that is passed by.
    """
    embeddings: Any = model.get_input_embeddings()
    for part in (model.get_decoder(), model.base_model, getattr(model, "model", model)):
        if part is not model and any(module is embeddings for module in part.modules()):
            return part
    raise ValueError(f"{type(model).__name__}: transformers does not say which part gives the last hidden states")


@contextmanager
def _partitioned(settings: dict[str, Any] | None) -> Iterator[None]:
    """A model that is loaded in here is partitioned by ZeRO-3, if there are settings for it."""
    held = None if settings is None else HfDeepSpeedConfig(settings)  # transformers keeps a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del held


def _load(config: ModelConfig, path: str, described: PreTrainedConfig, attention: str) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        # With output_loading_info the result is a pair, which the library's annotation does not say.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=described,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # a person's files can go wrong in any line of transformers' reading of them
        raise ValueError(f"model {config.path} does not load: {explain(error)}") from error
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would train on with random values in their place.
        raise ValueError(
            f"model {config.path}: {len(missing)} weights are missing from the files, the first is {missing[0]}"
        )
    assert isinstance(model, PreTrainedModel)
    return model


def _set_tying(config: PreTrainedConfig, is_tied: bool) -> None:
    for part in (config, config.get_text_config()):
        part.tie_word_embeddings = is_tied


def _are_equal(model: PreTrainedModel, pairs: Mapping[str, str]) -> bool:
    """Whether both parameters of every pair hold the same values."""
    return all(_is_equal(model.get_parameter(one), model.get_parameter(other)) for one, other in pairs.items())


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not hasattr(one, "ds_id"):
        return torch.equal(one, other)
    import deepspeed

    with deepspeed.zero.GatheredParameters([one, other]):
        return torch.equal(one, other)


def _refuse_non_finite(model: PreTrainedModel, path: str) -> None:
    """ValueError, on all ranks alike, where a weight is NaN or infinite: one look at each, where it has been loaded."""
    stored = model.state_dict().keys()
    buffers = ((name, buffer) for name, buffer in model.named_buffers() if name in stored)
    bad = [*_non_finite(model.named_parameters()), *_non_finite(buffers)]
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        of_ranks: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(of_ranks, bad)
        bad = sorted({name for names in of_ranks for name in names})
    if bad:
        raise ValueError(
            f"model {path}: {len(bad)} of its weights hold NaN or infinity, the first is {bad[0]}; the base model is "
            "damaged, so copy or download it again, or use another"
        )


def _non_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    held = {name: _held(tensor) for name, tensor in tensors if tensor.is_floating_point()}
    # NaN is both the least and the greatest of what it stands among, and no copy is made.
    return [name for name, t in held.items() if t.numel() and not torch.isfinite(torch.stack(torch.aminmax(t))).all()]


def _held(tensor: Any) -> torch.Tensor:
    """What this rank holds of it: all, or under ZeRO-3 its part, without the padding, which is not initialised."""
    if not hasattr(tensor, "ds_tensor"):
        held = tensor.detach()
    elif tensor.ds_tensor.status.name != "AVAILABLE":  # offloaded to a disk
        held = torch.empty(0)
    else:
        part, rank = tensor.ds_tensor, dist.get_rank(tensor.ds_process_group)
        held = part.flatten()[: max(0, tensor.ds_numel - rank * part.ds_numel)]
    assert isinstance(held, torch.Tensor)
    return held
