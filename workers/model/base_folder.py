"""Whether a base model's files hold the model that its config.json describes: told before any weight is read.

transformers' own loading, with the renaming and fusing of each family, runs over tensors on the meta device that are
made of the files' headers. It takes the time of building the model without memory, whatever the model's size.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from workers.config.model import ModelConfig
from workers.model.base_config import explain, read_model_type
from workers.model.model_files import (
    StoredTensor,
    find_weight_files,
    read_headers,
    read_model_config,
    shard_names,
)

_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Where transformers takes the text part out of a model of several parts, these are the others.
_OTHER_PARTS = re.compile(r"^(model\.)?(vision|visual|vq|image|audio|speech|multi_modal|mm_)")
# Old files hold the causal mask and its value, which every model now makes itself.
_MASK, _MASK_VALUE = re.compile(r"(\.bias|mask)$"), ".masked_bias"


@dataclass(frozen=True)
class BaseModel:
    """A base model as its files describe it."""

    shell: PreTrainedModel
    """The model on the meta device: names and shapes, no weights."""
    doubled: dict[str, str]
    """Of the parameters that the configuration ties, those that are in the files as well as what they are tied to."""

    @property
    def num_embeddings(self) -> int:
        """Token ids that the model takes: 0 up to this."""
        weight: Any = self.shell.get_input_embeddings().weight
        return int(weight.shape[0])


def read_base(config: ModelConfig, path: str, *, may_download: bool = False) -> BaseModel | None:
    """What the files say of the model; None for a hub model whose weights are not in the local cache.

    Args:
        config: of the model.
        path: its folder, or its name on the hub.
        may_download: whether weights of a hub model may be fetched.

    Raises:
        ValueError: a file is missing, damaged or quantised, or the weights are not those of the configuration.
    """
    described = read_model_type(config, path)
    files = _weight_files(config, path, may_download)
    if files is None:
        return None
    tensors = read_headers(files)
    where = str(files[0] if len(files) == 1 else files[0].parent)
    shell, loading = _load_on_meta(described, tensors, where)
    _compare(shell, loading, tensors, where, takes_a_part=type(shell.config) is not type(described))
    tied = shell.all_tied_weights_keys
    # On the meta device transformers ties only what is in the files once.
    doubled = {a: b for a, b in tied.items() if shell.get_parameter(a) is not shell.get_parameter(b)}
    return BaseModel(shell, doubled)


def _weight_files(config: ModelConfig, path: str, may_download: bool) -> list[Path] | None:
    folder = Path(path)
    if folder.is_dir():
        return find_weight_files(folder, read_model_config(folder))
    options: dict[str, Any] = {
        "revision": config.revision,
        "local_files_only": not may_download,
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    if whole := cached_file(path, "model.safetensors", **options):
        return [Path(whole)]
    index = cached_file(path, "model.safetensors.index.json", **options)
    if index is None:
        return None
    files = [cached_file(path, name, **options) for name in shard_names(Path(index))]
    return [Path(file) for file in files if file] if all(files) else None


def _load_on_meta(
    described: PreTrainedConfig, tensors: Mapping[str, StoredTensor], where: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            built: PreTrainedModel = AutoModelForCausalLM.from_config(described, attn_implementation="eager")
            headers = {name: torch.empty(t.shape, dtype=_TORCH_DTYPES[t.dtype]) for name, t in tensors.items()}
        loaded: Any = type(built).from_pretrained(
            None,
            config=built.config,  # of the text part alone, where the family has others
            state_dict=headers,
            device_map="meta",
            dtype=torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # told of below, instead of in a table
            output_loading_info=True,
        )
    except Exception as error:  # a config.json that contradicts itself or the weights can fail in any line of a model
        raise ValueError(
            f"model.path: {where}: these weights do not load into the model that config.json describes: "
            f"{_odd_one_out(tensors) or explain(error)}"
        ) from error
    model, loading = loaded
    return model, loading


def _compare(
    shell: PreTrainedModel,
    loading: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    where: str,
    *,
    takes_a_part: bool,
) -> None:
    """ValueError unless every weight of the model is in the files and every one of the files is in the model."""
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise ValueError(
            f"model.path: {_file_of(name, tensors, where)}: {len(mismatched)} weights have other shapes than "
            f"config.json says, first {name}: {tuple(stored)} in the file, {tuple(wanted)} in the model; "
            "fix config.json, or use the one that belongs to these weights"
        )
    if missing := sorted(loading["missing_keys"]):
        # transformers would train on with random values in their place.
        raise ValueError(
            f"model.path: {where}: {len(missing)} weights are missing from the files, the first is {missing[0]}; "
            "complete the weights, or use the config.json that belongs to them"
        )
    unexpected = sorted(set(loading["unexpected_keys"]).difference(_computed(shell, tensors)))
    if takes_a_part:
        unexpected = [name for name in unexpected if not _OTHER_PARTS.match(name)]
    if unexpected:
        # transformers would train the smaller model that is left without them.
        raise ValueError(
            f"model.path: {_file_of(unexpected[0], tensors, where)}: {len(unexpected)} weights have no place in the "
            f"model that config.json describes, first {unexpected[0]}; "
            "use the config.json that belongs to these weights, or save the model without them"
        )


def _computed(shell: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Names, also with the model's prefix, of what the files may hold though the model computes it."""
    for name, tensor in tensors.items():
        is_mask = len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3]
        if (is_mask and _MASK.search(name)) or (tensor.shape == () and name.endswith(_MASK_VALUE)):
            yield from (name, f"{shell.base_model_prefix}.{name}")
    yield from (name for name, _ in shell.named_non_persistent_buffers())


def _odd_one_out(tensors: Mapping[str, StoredTensor]) -> str | None:
    """What is wrong with a model's experts where they cannot be put together: transformers tells it in a table."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        groups[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)].append(name)
    of_experts = {pattern: names for pattern, names in groups.items() if pattern.count("*") > 1}
    for names in of_experts.values():
        usual, _ = Counter(tensors[name].shape for name in names).most_common(1)[0]
        for name in names:
            if tensors[name].shape != usual:
                return f"{name} is of shape {tensors[name].shape}, the others of its kind of {usual}"
    most = max(map(len, of_experts.values()), default=0)
    few = ((pattern, len(names)) for pattern, names in of_experts.items() if len(names) < most)
    return next((f"there are {n} tensors {pattern} but {most} of other kinds" for pattern, n in few), None)


def _file_of(name: str, tensors: Mapping[str, StoredTensor], where: str) -> str:
    """The file that holds a weight, where it has the model's own name there."""
    return str(tensors[name].file) if name in tensors else where
