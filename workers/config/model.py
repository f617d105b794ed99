"""The base model."""

from pathlib import Path
from typing import Literal, Self

from workers.settings import LocalPath, LocalPathOrName, Settings


class ModelConfig(Settings):
    """The base model."""

    path: LocalPathOrName
    """Local folder or hub name of a causal language model with safetensors weights. Remote code is never run."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision of the forward and backward pass; the optimizer keeps float32 masters."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of transformers. `auto` takes sdpa where the model's family has it, else eager;
    `flash_attention_2` needs a GPU and a package, so it is never taken without being asked for."""
    chat_template: LocalPath | None = None
    """Jinja file to use instead of the tokenizer's own chat template."""

    def with_absolute_paths(self) -> Self:
        """The same model, named so that a process in another folder finds it; hub names stay as they are."""
        path = Path(self.path).expanduser()
        template = self.chat_template and self.chat_template.resolve()
        return self.replaced(path=str(path.resolve()) if path.exists() else self.path, chat_template=template)
