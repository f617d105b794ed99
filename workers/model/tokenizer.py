"""Loading of the base model's tokenizer, without remote code, without output."""

from pathlib import Path
from typing import TYPE_CHECKING

from workers.config.model import ModelConfig
from workers.model.base_config import check_model_path, explain, read_model_type
from workers.model.tokenizer_files import explain_missing_package

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
