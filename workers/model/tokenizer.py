"""The base model's tokenizer, loaded without remote code and without output; or why it does not load, in one line; and
whether the model has an embedding for every token id in the data.

transformers makes a fast tokenizer from any supported file. Without the package for it, it tries the next method and
reports only the last failure: for a SentencePiece model, that tiktoken is missing.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workers.config.model import ModelConfig
from workers.model.base_config import check_model_path, explain, read_model_type

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workers.data.store import TokenStore

_FAST = "tokenizer.json"
_MODELS = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.model", "sentencepiece.bpe.model")
_VOCABULARIES = ("vocab.json", "vocab.txt", "merges.txt", "*.tiktoken")
# Packages that read a type of file: (name to import, name to install).
_SENTENCEPIECE = (("sentencepiece", "sentencepiece"), ("google.protobuf", "protobuf"))
_TIKTOKEN = (("tiktoken", "tiktoken"),)
_TEKKEN = (("mistral_common", "mistral-common"),)
_NAMED_PACKAGE = (
    re.compile(r"requires the ([\w-]+) library"),
    re.compile(r"`([\w-]+)` is required"),
    re.compile(r"need to install ([\w-]+) to use"),
    re.compile(r"No module named '([\w-]+)"),
)
_ONCE = "or save the tokenizer with AutoTokenizer where that is installed, which writes tokenizer.json"
_HEAD_BYTES = 4096
_BLOCK_TOKENS = 2**24
_MAX_IDS_NAMED = 3


def load_tokenizer(config: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer, with a chat template (the configured file, its own, or the built-in one) and a pad token."""
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    path = check_model_path(config)
    read_model_type(config, path)  # its errors would otherwise be blamed on the tokenizer
    transformers_logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except Exception as error:  # a faulty file can raise anything in transformers
        if reason := explain_missing_package(_folder_of(config, path), error):
            raise ValueError(f"model.path: {config.path}: {reason}") from error
        where = f"model.path: {config.path}"
        if Path(path).is_dir() and not (Path(path) / "tokenizer.json").is_file():
            where += " has no tokenizer.json (copy the model's there)"
        raise ValueError(f"{where}: its tokenizer does not load: {explain(error)}") from error
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():
        reason = explain_missing_package(_folder_of(config, path), None)
        reason = reason or "its tokenizer is empty; copy the model's tokenizer.json there"
        raise ValueError(f"model.path: {config.path}: {reason}")
    _complete(tokenizer, config)
    return tokenizer


def _complete(tokenizer: "PreTrainedTokenizerBase", config: ModelConfig) -> None:
    """Add the configured chat template, or the missing chat template and pad token."""
    if config.chat_template is not None:
        if not config.chat_template.is_file():
            raise ValueError(f"model.chat_template: no such file: {config.chat_template}")
        tokenizer.chat_template = config.chat_template.read_text(encoding="utf-8")
    elif tokenizer.chat_template is None:
        from workers.data.templates import BUILT_IN_CHAT_TEMPLATE

        tokenizer.chat_template = BUILT_IN_CHAT_TEMPLATE
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(f"model {config.path}: its tokenizer has neither a pad token nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token


def _folder_of(config: ModelConfig, path: str) -> Path | None:
    """The model's folder; for a hub model, the folder in the local cache."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json", revision=config.revision)
    return Path(found).parent if isinstance(found, str) else None


def explain_missing_package(folder: Path | None, error: Exception | None) -> str | None:
    """What a tokenizer needs, or what is wrong with its file, by the model's folder and the error; None if unknown."""
    if folder is not None and (what := next(_of_files(folder), None)):
        return what
    text = " ".join(str(error).split()) if error else ""
    if named := next((found[1] for pattern in _NAMED_PACKAGE if (found := pattern.search(text))), None):
        package = named.lower()
        return f"its tokenizer needs the package {package}, which is not installed; run `pip install {package}`"
    return None


def _of_files(folder: Path) -> Iterator[str]:
    if (folder / _FAST).is_file():
        try:
            json.loads((folder / _FAST).read_bytes())
        except ValueError as error:
            yield f"{_FAST} is not JSON ({error}); copy or download it again"
        return
    for name in _MODELS:
        if (folder / name).is_file():
            yield from _of_model(folder / name)
    if (folder / "tekken.json").is_file():
        yield from _missing("tekken.json is a tokenizer of mistral-common", _TEKKEN)
    others = [*_MODELS, *_VOCABULARIES, "tekken.json"]
    if not any(next(folder.glob(name), None) for name in others):
        yield "it has no tokenizer.json and no other tokenizer; copy the model's there"


def _of_model(file: Path) -> Iterator[str]:
    """A file that may be SentencePiece's or tiktoken's, whatever its name."""
    with file.open("rb") as content:
        head = content.read(_HEAD_BYTES)
    if head.startswith(b"version https://git-lfs"):
        yield f"{file.name} is a Git LFS pointer to the tokenizer; run git lfs pull in its folder"
    elif _is_sentencepiece(head):
        yield from _missing(f"{file.name} is a SentencePiece model and there is no {_FAST}", _SENTENCEPIECE)
    elif _is_tiktoken(head):
        yield from _missing(f"{file.name} is a tiktoken vocabulary and there is no {_FAST}", _TIKTOKEN)
    else:
        yield (
            f"{file.name} is neither a SentencePiece model nor a tiktoken vocabulary (it has "
            f"{file.stat().st_size:,} bytes and begins with {head[:12]!r}); copy or download it again"
        )


def _missing(what: str, packages: tuple[tuple[str, str], ...]) -> Iterator[str]:
    missing = [package for module, package in packages if not _is_there(module)]
    if missing:
        named = " and ".join(missing)
        yield (
            f"{what}: reading it needs the package{'s' if len(missing) > 1 else ''} {named}, not installed here; run "
            f"`pip install {' '.join(missing)}`, {_ONCE}"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def _is_sentencepiece(head: bytes) -> bool:
    """A protobuf message that begins with a piece: field 1, whose first field (1) is the piece's text."""
    return len(head) > 3 and head[0] == 0x0A and head[2] == 0x0A and 2 + head[3] <= head[1] < 0x80


def _is_tiktoken(head: bytes) -> bool:
    """Lines with a base64 token and its rank."""
    line, newline, _ = head.partition(b"\n")
    token, _, rank = line.partition(b" ")
    try:
        return bool(newline and base64.b64decode(token, validate=True) and rank.strip().isdigit())
    except ValueError:
        return False


def check_token_ids(
    stores: Mapping[str, Sequence["TokenStore"]], tokenizer: "PreTrainedTokenizerBase", num_embeddings: int
) -> None:
    """Refuse ids beyond the embedding: ValueError if a store contains an id of at least `num_embeddings`, or the pad
    token has one. The stores are read only if the tokenizer has such ids."""
    largest = max(tokenizer.get_vocab().values())
    if largest < num_embeddings:
        return
    pad_id = tokenizer.pad_token_id
    if isinstance(pad_id, int) and pad_id >= num_embeddings:
        raise ValueError(_beyond("the padding of every row", np.array([pad_id]), tokenizer, num_embeddings))
    for name, of_domain in stores.items():
        beyond = np.unique(np.concatenate([_ids_from(store, num_embeddings) for store in of_domain]))
        if len(beyond):
            raise ValueError(_beyond(f"domain {name!r}", beyond, tokenizer, num_embeddings))


def _ids_from(store: "TokenStore", first: int) -> NDArray[np.int32]:
    rows = max(1, _BLOCK_TOKENS // store.max_length)
    blocks = (store.input_ids[start : start + rows] for start in range(0, store.num_rows, rows))
    found = [np.unique(block[block >= first]) for block in blocks]
    return np.unique(np.concatenate([np.empty(0, dtype=np.int32), *found]))


def _beyond(where: str, ids: NDArray[np.int32], tokenizer: "PreTrainedTokenizerBase", num_embeddings: int) -> str:
    named = ", ".join(f"{i} ({tokenizer.convert_ids_to_tokens(i)})" for i in ids[:_MAX_IDS_NAMED].tolist())
    more = f" and {len(ids) - _MAX_IDS_NAMED} more" if len(ids) > _MAX_IDS_NAMED else ""
    return (
        f"model.path: the model has embeddings for the token ids 0 to {num_embeddings - 1:,}, but {where} has "
        f"{named}{more}; the tokenizer has {len(tokenizer):,} tokens, so use the one that belongs to the model, or "
        "enlarge the model with model.resize_token_embeddings(len(tokenizer)) and save it"
    )
