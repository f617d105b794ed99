"""The base model and its tokenizer: safetensors only, remote code never run, nothing printed."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from workers.config import ModelConfig

_PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with a chat template (the configured file, its own, or the built-in one) and a pad token."""
    path = _check_model_path(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {config.path}: its tokenizer does not load: {_explain(error)}") from error
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
    return tokenizer


def load_model(config: ModelConfig) -> PreTrainedModel:
    """The causal language model in the configured precision; every weight comes from a safetensors file."""
    path = _check_model_path(config)
    _check_weights(path)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        # With output_loading_info the result is a pair, which the library's annotation does not say.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"model {config.path} does not load: {_explain(error)}") from error
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers would train on with random values in their place.
        raise ValueError(f"model {config.path}: {len(missing)} weights are in no file, first {missing[0]}")
    # With the cache on, transformers does not see where packed examples begin, and they attend to each other.
    model.config.use_cache = False
    return model


def load_hidden_size(config: ModelConfig) -> int:
    """Width of the model's residual stream, from its configuration file alone."""
    path = _check_model_path(config)
    try:
        model_config = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"model {config.path} does not load: {_explain(error)}") from error
    return model_config.get_text_config().hidden_size


def _check_model_path(config: ModelConfig) -> str:
    folder = Path(config.path).expanduser()
    if not folder.exists():
        if config.path.startswith((".", "/", "~")) or config.path.count("/") > 1:
            raise ValueError(f"model.path: no such folder: {config.path}")
        return config.path
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(f"model.path: {config.path} holds no config.json, so it is not a Hugging Face model folder")
    try:
        content = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model.path: {config_file} is not JSON: {error}") from error
    if "auto_map" in content and content.get("model_type") not in CONFIG_MAPPING:
        raise ValueError(
            f"model.path: {config.path} needs its own code ({config_file}: auto_map, model_type "
            f"{content.get('model_type')!r}), and raymix never runs remote code; "
            "use a model that transformers itself supports"
        )
    return str(folder)


def _check_weights(path: str) -> None:
    folder = Path(path)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in _PICKLED_WEIGHTS for file in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"model.path: {path} has its weights as pickle only ({pickles[0]}), which can run code when it is read; "
            "convert it: model.save_pretrained(folder) of a recent transformers writes safetensors"
        )
    raise ValueError(f"model.path: {path} holds no *.safetensors file")


def _explain(error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text:
        return "it needs its own code, and raymix never runs remote code; use a model that transformers itself supports"
    return text
