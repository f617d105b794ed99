"""A model's answers to the demo's prompts. Uses transformers only: a trained model does not need raymix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from orchestrator.views.format import printable

_MAX_NEW_TOKENS = 40


def generate_answers(folder: Path, prompts: Sequence[str]) -> list[str]:
    """Greedy answers of the model in `folder`, one for each prompt."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**asked, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        answers.append(tokenizer.decode(out[0, asked["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def answers_table(prompts: Sequence[tuple[str, str]], before: Sequence[str], after: Sequence[str]) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("domain", no_wrap=True)
    table.add_column("held-out prompt", overflow="fold")
    table.add_column("before", no_wrap=True, overflow="ellipsis", max_width=20)  # gibberish; its beginning is enough
    table.add_column("after", overflow="fold")
    for (domain, prompt), first, last in zip(prompts, before, after, strict=True):
        table.add_row(*(Text(printable(text)) for text in (domain, prompt, first, last)))
    return table
