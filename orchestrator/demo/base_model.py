"""The demo's base model: a Llama of half a million parameters that has read a little, and its tokenizer.

It is made on the spot in seconds, so the demo needs neither network nor GPU. It reads plain documents first, as every base
model has: pages about the towns, lists that repeat themselves, runs of numbers. So it knows some of the facts and how
to look back at a word, nothing of questions and answers, and it has never seen a sum.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

VOCABULARY_SIZE = 768
MAX_LENGTH = 128
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)

_NUM_READING_STEPS = 80
_NUM_DOCUMENT_ROWS = 16
_READING_RATE = 6e-3


def write_base_model(folder: Path, texts: Sequence[str], documents: Sequence[str], seed: int) -> None:
    """Train a tokenizer on `texts` and a model on `documents`, and save both as a Hugging Face folder."""
    transformers_logging.disable_progress_bar()
    tokenizer = _train_tokenizer([*texts, *documents])
    model = _build_model(tokenizer, seed)
    _read(model, tokenizer, documents, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; a digit is always a token of its own, or sums could not be worked out digit by digit."""
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
        # 1 / sqrt(hidden size): from the usual 0.02 so narrow a model spends all its steps on growing its weights.
        initializer_range=0.088,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _read(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: Sequence[str], seed: int) -> None:
    """Next-token prediction on the documents, end to end in one stream, cut into rows."""
    stream = [token for text in documents for token in [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]]
    rows_RL = torch.tensor(stream[: len(stream) // MAX_LENGTH * MAX_LENGTH]).view(-1, MAX_LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    rng = random.Random(seed)
    for step in range(_NUM_READING_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _READING_RATE * min((step + 1) / 8, 1 - step / _NUM_READING_STEPS)
        ids_BL = rows_RL[rng.sample(range(len(rows_RL)), _NUM_DOCUMENT_ROWS)]
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        loss_nats = functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())
        loss_nats.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
