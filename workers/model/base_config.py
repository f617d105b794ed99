"""A base model according to its config.json: its location, type and sizes. No weight is read.

transformers is imported inside functions: its configuration classes import torch, which a process that needs only one
of these functions (to tokenise, for example) should not have to load.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.config.model import ModelConfig
from workers.hub import reach_hub
from workers.model.model_files import read_model_config, refuse_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_OF_A_RUN = ("model", "best")  # folders of every run, whose names alone mean nothing


def check_model_path(config: ModelConfig) -> str:
    """`model.path` as transformers takes it, after checking that its folder or hub name can be read; ValueError if
    there is no such folder, or no such model on the hub."""
    folder = Path(config.path).expanduser()
    if folder.exists():
        read_model_config(folder)
        return str(folder)
    is_beside_others = "/" in config.path and folder.parent.is_dir()  # then it is unlikely to be a name on the hub
    if config.path.startswith((".", "/", "~")) or config.path.count("/") > 1 or is_beside_others:
        raise ValueError(f"model.path: no such folder: {config.path}")
    reach_model(config)
    return config.path


def reach_model(config: ModelConfig) -> str | None:
    try:
        return reach_hub("model", config.path, config.revision)
    except ValueError as error:
        raise ValueError(f"model.path: {error}") from error


def read_model_type(config: ModelConfig, path: str) -> "PreTrainedConfig":
    """The model's configuration in transformers; ValueError if transformers does not know the type, it needs remote
    code, or it is not a causal language model."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    folder = Path(path)
    content = read_model_config(folder) if folder.is_dir() else {}
    model_type = content.get("model_type")
    if model_type and model_type not in CONFIG_MAPPING:
        if "auto_map" in content:
            raise ValueError(
                f"model.path: {config.path} needs its own code ({folder / 'config.json'}: auto_map, model_type "
                f"{model_type!r}), and raymix never runs remote code; use a model that transformers itself supports"
            )
        raise ValueError(
            f"model.path: {folder / 'config.json'}: the installed transformers has no model_type {model_type!r}; "
            "fix the name, or install a version of transformers that knows it"
        )
    try:
        loaded: PreTrainedConfig = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except Exception as error:  # a faulty file can raise anything in transformers
        raise ValueError(f"model.path: {config.path}: its config.json does not load: {explain(error)}") from error
    _refuse_other_kinds(config.path, loaded)
    refuse_quantised(loaded.to_dict(), config.path)
    return loaded


def model_class(described: "PreTrainedConfig") -> "type[PreTrainedModel]":
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

    family: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(described)]
    assert issubclass(family, PreTrainedModel)
    return family


def load_text_config(config: ModelConfig) -> "PreTrainedConfig":
    """What the model's configuration file says of its text part."""
    return read_model_type(config, check_model_path(config)).get_text_config()


def explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs its own code, and raymix never runs remote code; use a model that transformers itself supports"
    return text if isinstance(error, OSError | ValueError | RuntimeError) and text else repr(error)


def _refuse_other_kinds(path: str, described: "PreTrainedConfig") -> None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind = described.model_type
    if getattr(described, "is_encoder_decoder", False):
        what = "an encoder-decoder"
    elif type(described) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        what = "of a type that cannot generate text in transformers"
    elif type(described) in MODEL_FOR_MASKED_LM_MAPPING and not (
        getattr(described, "is_decoder", False) or getattr(described, "causal", False)
    ):
        what = "an encoder, in which tokens see later tokens"
    else:
        return
    raise ValueError(
        f"model.path: {path} (model_type {kind!r}) is {what}, and raymix trains causal language models; "
        "use one of them (Llama, Qwen, Mistral, Gemma, ...)"
    )


def is_hub_name(path: str) -> bool:
    """Whether `model.path` names a model on the hub, not a folder on this machine."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def base_name(path: str) -> str:
    """The hub's name, or the name of the folder; `run-model` for the model of a run."""
    if is_hub_name(path):
        return path
    folder = Path(path).expanduser().resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name in _OF_A_RUN else folder.name
