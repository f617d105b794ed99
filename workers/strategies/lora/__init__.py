"""LoRA: low-rank adapters are trained, the base model stays frozen (Hu et al. 2021, arXiv 2106.09685); uses peft.

config.py     the settings, and the matrices that they name; a name that matches nothing is an error
matrices.py   the matrices of a model that can have an adapter, and those that have one
quantised.py  the frozen matrices in 4 bits
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workers.strategies.lora.config import LoraStrategyConfig, find_targets
from workers.strategies.lora.quantised import quantise

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

__all__ = ["LoraStrategyConfig", "apply", "config_class"]

config_class = LoraStrategyConfig
# peft imports it wherever it is installed, and it then complains that optional parts are missing.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def apply(model: "PreTrainedModel", config: LoraStrategyConfig) -> "PeftModel":
    """The model wrapped by peft, with only its adapters and `modules_to_save` trainable; ValueError if a name matches
    nothing, or peft has no such adapter for a matrix."""
    from peft import LoraConfig, get_peft_model

    targets = find_targets(model, config)
    if config.use_qlora:
        quantise(model, config.modules_to_save)
    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only divides by it
        lora_dropout=config.dropout,
        target_modules=sorted(target.module for target in targets if not target.is_parameter),
        target_parameters=sorted(target.name for target in targets if target.is_parameter) or None,
        modules_to_save=list(config.modules_to_save) or None,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        rank_pattern=dict(config.rank_pattern),
        alpha_pattern=dict(config.alpha_pattern),
        # GPT-2 and similar models keep matrices transposed; peft would set this itself, with a warning for each.
        fan_in_fan_out=bool(targets) and all(target.is_transposed for target in targets),
    )
    with _partitions_known_to_peft(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from peft's calls to transformers
        # Adapters keep the model's precision: ZeRO has one for all, and the optimizer keeps fp32 masters anyway.
        return get_peft_model(model, adapters, autocast_adapter_dtype=False)


@contextmanager
def _partitions_known_to_peft(model: "PreTrainedModel") -> Iterator[None]:
    """Under ZeRO-3, DoRA starts from norms of the base weights; peft gathers them only if transformers says so."""
    from transformers.integrations import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    if not any(hasattr(p, "ds_id") for p in model.parameters()):
        yield
        return
    held = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # transformers keeps a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del held
