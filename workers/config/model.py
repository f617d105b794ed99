"""The base model."""

from pathlib import Path
from typing import Literal, Self

from workers.settings import LocalPath, Settings, StoragePathOrName


class ModelConfig(Settings):
    """The base model."""

    path: StoragePathOrName
    """Folder, hub name or URI of a causal language model with safetensors weights. Remote code is never run."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the forward and backward pass; the optimizer keeps float32 master weights."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation in transformers. `auto` uses sdpa if the model's family has it, otherwise eager;
    `flash_attention_2` needs a GPU and a package and is never chosen automatically."""
    chat_template: LocalPath | None = None
    """Jinja file to use instead of the tokenizer's chat template."""

    def with_absolute_paths(self) -> Self:
        path = Path(self.path).expanduser()
        template = self.chat_template and self.chat_template.resolve()
        return self.replaced(path=str(path.resolve()) if path.exists() else self.path, chat_template=template)
