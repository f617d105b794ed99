"""Where an exported model stops: at the token that training taught as the end of a turn.

A base model often has a different end token than its chat template. Unchanged, the trained model would write the
template's and continue.
"""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from workers.data.end_of_turn import renders_alike


def stop_at(end_id: int, folder: Path) -> None:
    """Put the token first among the end tokens in both configurations of an exported folder.

    The files are edited, not the objects: transformers refuses to save a generation configuration whose
    sampling settings contradict each other, as some published ones do.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation_file = folder / "generation_config.json"
    generation = json.loads(generation_file.read_text(encoding="utf-8")) if generation_file.exists() else {}
    former = _ids(generation.get("eos_token_id", config.get("eos_token_id")))
    ids = [end_id, *(i for i in former if i != end_id)]
    generation["eos_token_id"] = ids
    config["eos_token_id"] = ids if len(ids) > 1 else end_id
    for file, content in ((generation_file, generation), (folder / "config.json", config)):
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, end_id: int | None, folder: Path) -> None:
    """Write the tokenizer with the end of a turn as its end token, unless that changes what its template writes."""
    former = tokenizer.eos_token
    if end_id is not None and end_id != tokenizer.eos_token_id:
        token = str(tokenizer.convert_ids_to_tokens(end_id))
        if renders_alike(tokenizer, token):
            tokenizer.eos_token = token
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.eos_token = former


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
