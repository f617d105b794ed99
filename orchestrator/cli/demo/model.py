"""The demo's base model, a Llama with half a million random parameters, and its tokenizer; and what a model answers.

They are generated in seconds, so the demo needs neither network nor GPU. The model is not pretrained: one pretrained on
word lists and texts about the towns learned the domains more slowly, because it first had to unlearn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from orchestrator.views.format import printable

VOCABULARY_SIZE = 768
MAX_LENGTH = 128
_MAX_NEW_TOKENS = 40
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def write_base_model(folder: Path, texts: Sequence[str], seed: int) -> None:
    """Train a tokenizer on `texts`, build a model for it, and save both as a Hugging Face folder."""
    transformers_logging.disable_progress_bar()
    tokenizer = _train_tokenizer(texts)
    _build_model(tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which every digit is a separate token, so that sums can be worked out digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<bos>", "<eos>", "<pad>", "<system>", "<user>", "<assistant>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
    )


def _build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=336,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2 * MAX_LENGTH,
        tie_word_embeddings=True,
        # 1 / sqrt(hidden size): with the usual 0.02, a model this narrow spends all its steps growing its weights.
        initializer_range=0.088,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def generate_answers(folder: Path, prompts: Sequence[str]) -> list[str]:
    """Greedy answers of the model in `folder`, one for each prompt: a trained model does not need raymix."""
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
