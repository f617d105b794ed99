"""The files of a model folder, checked by names, sizes and headers; no tensor is read, for any size.

A safetensors file is 8 bytes with the header's length, the header (JSON: name -> dtype, shape, offsets), the tensors.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth")
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_NEEDED = "raymix needs model.safetensors, or model.safetensors.index.json with the files that it names"


class StoredTensor(NamedTuple):
    file: Path
    dtype: str  # as safetensors writes it: F32, BF16, ...
    shape: tuple[int, ...]


def read_model_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; ValueError if it is missing, or not that of a whole model with unquantised weights."""
    file = folder / "config.json"
    refuse_adapter(folder)
    if not file.is_file():
        raise ValueError(f"model.path: {folder} has no config.json, so it is not a Hugging Face model folder")
    content = read_json(file)
    if not content.get("model_type"):
        raise ValueError(f"model.path: {file} has no model_type, so the type of model is unknown; add it")
    refuse_quantised(content, file)
    return content


def refuse_adapter(folder: Path) -> None:
    """ValueError if the folder is an adapter: transformers would train its base with the adapter merged."""
    file = folder / "adapter_config.json"
    if file.is_file():
        base = read_json(file).get("base_model_name_or_path")
        raise ValueError(
            f"model.path: {folder} is an adapter ({file.name}), not a complete model; "
            f"give its base model ({base}), or merge the adapter into it and give the merged model"
        )


def refuse_quantised(content: dict[str, Any], file: Path | str) -> None:
    """ValueError if a model's configuration says that its weights are quantised."""
    for part in (content, content.get("text_config")):
        if not isinstance(part, dict):
            continue
        for key in ("quantization_config", "compression_config"):
            settings = part.get(key)
            if settings:
                method = settings.get("quant_method", "no method given") if isinstance(settings, dict) else settings
                raise ValueError(
                    f"model.path: {file}: {key} says that the weights are quantised ({method}), and raymix trains all "
                    "bits of a weight; use the original, unquantised model, or dequantise and save them first"
                )


def find_weight_files(folder: Path, content: dict[str, Any]) -> list[Path]:
    """The existing safetensors files that transformers reads for a folder with this config.json; ValueError if there
    are none, or one named by the index is missing."""
    given = content.get("transformers_weights")
    names = [given] if given else [_WEIGHTS, _INDEX]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"model.path: {folder} {_what_it_holds(folder)}")
    if not found.name.endswith(".index.json"):
        return [found]
    files = [folder / name for name in shard_names(found)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"model.path: {len(missing)} of the {len(files)} files that {found} names are missing, first {missing[0]}; "
            "copy or download them again"
        )
    return files


def shard_names(index: Path) -> list[str]:
    """Names of the files in an index."""
    content = read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ValueError(f"model.path: {index} has no weight_map of file names; copy or download it again")
    if not isinstance(content.get("metadata"), dict):
        raise ValueError(f'model.path: {index} has no metadata, which transformers needs; add "metadata": {{}}')
    return sorted(set(places.values()))


def read_headers(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of the files, by name; ValueError if a file is truncated, quantised or not a safetensors file."""
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name == "__metadata__":
                continue
            tensor = StoredTensor(file, entry["dtype"], tuple(entry["shape"]))
            if tensor.dtype.startswith(("F8", "F6", "F4")):
                raise ValueError(
                    f"model.path: {file}: {name} is quantised ({tensor.dtype}), and raymix trains all bits of a "
                    "weight; use the model from which it was made, or dequantise and save it first"
                )
            tensors[name] = tensor
    return tensors


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model.path: {file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"model.path: {file} is not a JSON object but a {type(content).__name__}")
    return content


def _what_it_holds(folder: Path) -> str:
    """The rest of a sentence about a folder without weights."""
    if others := sorted(file.name for file in folder.glob("*.safetensors")):
        return f"has its weights under a name that transformers does not expect ({others[0]}); {_NEEDED}"
    if pickles := sorted(file.name for pattern in _PICKLED for file in folder.glob(pattern)):
        return (
            f"has its weights only as a pickle ({pickles[0]}), which can run code when it is read; "
            "convert it: model.save_pretrained(folder) of a recent transformers writes safetensors"
        )
    if ggufs := sorted(file.name for file in folder.glob("*.gguf")):
        return f"has its weights only as GGUF ({ggufs[0]}), for inference; use the model from which it was made"
    if below := sorted(folder.glob("*/*.safetensors")):
        return f"has no *.safetensors file itself, but {below[0].parent.name}/ does; give that folder or move them up"
    return "has no *.safetensors file"


def _read_header(file: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    size = file.stat().st_size
    with file.open("rb") as content:
        start = content.read(_LENGTH_BYTES)
        if start == b"version ":
            raise ValueError(
                f"model.path: {file} is a Git LFS pointer to the weights ({size} bytes), not the weights; "
                "run git lfs pull in its folder"
            )
        header_end = _LENGTH_BYTES + int.from_bytes(start, "little")
        if len(start) == _LENGTH_BYTES and header_end > _MAX_HEADER_BYTES:
            raise ValueError(f"model.path: {file} is not a safetensors file: its first bytes are {start!r}")
        if len(start) < _LENGTH_BYTES or size < header_end:
            raise ValueError(
                f"model.path: {file} is truncated in its header, after {size:,} bytes; copy or download it again"
            )
        try:
            header = json.loads(content.read(header_end - _LENGTH_BYTES))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = header_end + max(ends, default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"model.path: {file} has a damaged header ({error}); copy or download the file again"
            ) from error
    if size != expected:
        raise ValueError(
            f"model.path: {file} has {size:,} bytes but its header describes {expected:,}, so it is "
            f"{'truncated' if size < expected else 'too long'}; copy or download it again"
        )
    try:  # the format's check that tensors fill the file, with the number of bytes that each shape needs
        with safe_open(file, framework="numpy"):
            return header
    except SafetensorError as error:
        raise ValueError(f"model.path: {file} has a damaged header ({error}); copy or download it again") from error
