"""The trained model as a Hugging Face folder for `from_pretrained`; complete and verified, or absent.

writing.py        the folder: gather, merge adapters, write, verify, commit; it stops where training taught it to
verification.py   plain transformers reads the folder: every key, every tensor, and the engine's held-out loss
"""

from workers.export.verification import ExportError, held_out_examples
from workers.export.writing import KeptModel, export_kept, export_model, verification_loss

__all__ = ["ExportError", "KeptModel", "export_kept", "export_model", "held_out_examples", "verification_loss"]
