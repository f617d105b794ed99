"""The trained model as a Hugging Face folder for `from_pretrained`; complete and verified, or absent.

writing.py        the folder: gather, write, verify, commit; it stops where training taught to stop
adapters.py       LoRA: `adapter/` alone, and the adapters merged into a fresh base model
verification.py   plain transformers reads the folder: every key, every tensor, and the engine's held-out loss
"""

from workers.export.verification import ExportError, held_out_examples
from workers.export.writing import export_model

__all__ = ["ExportError", "export_model", "held_out_examples"]
