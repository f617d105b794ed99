"""Checks that a base model's files contain the model described by its config.json, without reading weights.

transformers' own loading, with each family's renaming and fusing, runs over tensors on the meta device made from the
files' headers. It takes as long as building the model, and no memory, for any size.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import str_to_torch_dtype
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from workers.config.model import ModelConfig
from workers.model.base_config import explain, read_model_type
from workers.model.model_files import StoredTensor, find_weight_files, read_headers, read_model_config, shard_names

_TORCH_DTYPES = {**str_to_torch_dtype, "C64": torch.complex64}
# The other parts of a model of which transformers takes only the text part.
_OTHER_PARTS = re.compile(r"^(model\.)?(vision|visual|vq|image|audio|speech|multi_modal|mm_)")
# Old files contain the causal mask and its value, which models now compute.
_MASK, _MASK_VALUE = re.compile(r"(\.bias|mask)$"), ".masked_bias"


@dataclass(frozen=True)
class BaseModel:
    """A base model as its files describe it."""

    shell: PreTrainedModel  # the model on the meta device: names and shapes, no weights
    doubled: dict[str, str]  # tied parameters that are in the files in addition to the one to which they are tied

    @property
    def num_embeddings(self) -> int:
        weight: Any = self.shell.get_input_embeddings().weight
        return int(weight.shape[0])


def read_base(config: ModelConfig, path: str, *, may_download: bool = False) -> BaseModel | None:
    """The model according to its files; None for a hub model whose weights are not in the local cache. ValueError if a
    file is missing, damaged or quantised, or the weights do not match the configuration."""
    described = read_model_type(config, path)
    files = _weight_files(config, path, may_download)
    if files is None:
        return None
    tensors = read_headers(files)
    where = str(files[0] if len(files) == 1 else files[0].parent)
    shell, loading = _load_on_meta(described, tensors, where)
    _compare(shell, loading, tensors, where, takes_a_part=type(shell.config) is not type(described))
    tied = shell.all_tied_weights_keys
    # On the meta device, transformers ties only parameters that are in the files once.
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
            config=built.config,  # of the text part alone, if the family has others
            state_dict=headers,
            device_map="meta",
            dtype=torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # reported below, instead of in a table
            output_loading_info=True,
        )
    except Exception as error:  # an inconsistent config.json can raise anything
        raise ValueError(
            f"model.path: {where}: these weights do not load into the model that config.json describes: "
            f"{_odd_one_out(tensors) or explain(error)}"
        ) from error
    return loaded


def _compare(
    shell: PreTrainedModel,
    loading: Mapping[str, Any],
    tensors: Mapping[str, StoredTensor],
    where: str,
    *,
    takes_a_part: bool,
) -> None:
    """ValueError unless the model and the files have the same weights."""
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise ValueError(
            f"model.path: {_file_of(name, tensors, where)}: {len(mismatched)} weights have different shapes than "
            f"config.json says, first {name}: {tuple(stored)} in the file, {tuple(wanted)} in the model; "
            "fix config.json, or use the one that belongs to these weights"
        )
    if missing := sorted(loading["missing_keys"]):
        # transformers would replace them with random values.
        raise ValueError(
            f"model.path: {where}: {len(missing)} weights are missing from the files, first {missing[0]}; "
            "complete the weights, or use the config.json that belongs to them"
        )
    unexpected = sorted(set(loading["unexpected_keys"]).difference(_computed(shell, tensors)))
    if takes_a_part:
        unexpected = [name for name in unexpected if not _OTHER_PARTS.match(name)]
    if unexpected:
        # transformers would train a smaller model without them.
        raise ValueError(
            f"model.path: {_file_of(unexpected[0], tensors, where)}: {len(unexpected)} weights have no place in the "
            f"model that config.json describes, first {unexpected[0]}; "
            "use the config.json that belongs to these weights, or save the model without them"
        )


def _computed(shell: PreTrainedModel, tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Names, also with the model's prefix, of stored tensors that the model computes."""
    for name, tensor in tensors.items():
        is_mask = len(tensor.shape) == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3]
        if (is_mask and _MASK.search(name)) or (tensor.shape == () and name.endswith(_MASK_VALUE)):
            yield from (name, f"{shell.base_model_prefix}.{name}")
    yield from (name for name, _ in shell.named_non_persistent_buffers())


def _odd_one_out(tensors: Mapping[str, StoredTensor]) -> str | None:
    """Why a model's experts cannot be stacked, which transformers reports as a table."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        groups[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)].append(name)
    of_experts = {pattern: names for pattern, names in groups.items() if pattern.count("*") > 1}
    for names in of_experts.values():
        usual, _ = Counter(tensors[name].shape for name in names).most_common(1)[0]
        for name in names:
            if tensors[name].shape != usual:
                return f"{name} has shape {tensors[name].shape}, the others of its kind {usual}"
    most = max(map(len, of_experts.values()), default=0)
    few = ((pattern, len(names)) for pattern, names in of_experts.items() if len(names) < most)
    return next((f"there are {n} tensors {pattern}, but {most} of other kinds" for pattern, n in few), None)


def _file_of(name: str, tensors: Mapping[str, StoredTensor], where: str) -> str:
    return str(tensors[name].file) if name in tensors else where
