"""The base model."""

from pathlib import Path
from typing import Literal, Self

from workers.settings import LocalPath, NewSwitch, Settings, StoragePathOrName

Attention = Literal["auto", "flash_attention_3", "flash_attention_2", "flex_attention", "sdpa", "eager"]


class ModelConfig(Settings):
    """The base model."""

    path: StoragePathOrName
    """Folder, hub name or URI of a causal language model with safetensors weights. Remote code is never run."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the forward and backward pass; the optimizer keeps float32 master weights."""
    attention: Attention = "auto"
    """Attention implementation in transformers. `auto` uses the first of this list that the model's family, the GPU and
    the installed packages have, and with which the model's losses are measured to be right before the first step."""
    liger: NewSwitch = False
    """Compute norms and feed-forward layers with the fused kernels of liger-kernel, where it has them for the model's
    family: less memory for activations, and faster. Needs a GPU."""
    chat_template: LocalPath | None = None
    """Jinja file to use instead of the tokenizer's chat template."""

    def with_absolute_paths(self) -> Self:
        path = Path(self.path).expanduser()
        template = self.chat_template and self.chat_template.resolve()
        return self.replaced(path=str(path.resolve()) if path.exists() else self.path, chat_template=template)
