"""Task files over local rows, and their scores by a plain computation with transformers: what the harness must say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_NEW_TOKENS = 6
_METRIC = {"aggregation": "mean", "higher_is_better": True}


class PlainModel:
    """A model folder, one example at a time."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def choice(self, question: str, choices: list[str]) -> int:
        """The choice that is likeliest after the question and a space."""
        return int(np.argmax([self._log_likelihood(question, f" {choice}") for choice in choices]))

    def writes(self, question: str) -> str:
        """What it writes after the question, up to the end of the line."""
        ids = self.tokenizer(question, return_tensors="pt")["input_ids"]
        for _ in range(NUM_NEW_TOKENS):
            with torch.no_grad():
                newest = self.model(ids).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, newest], dim=1)
        written = self.tokenizer.decode(ids[0])[len(question) :]
        return written.split("\n")[0].split(self.tokenizer.eos_token)[0]

    def _log_likelihood(self, question: str, answer: str) -> float:
        ids = self.tokenizer(question + answer, return_tensors="pt")["input_ids"]
        num_question = len(self.tokenizer(question)["input_ids"])
        with torch.no_grad():
            log_probabilities = self.model(ids).logits[0].log_softmax(-1)
        targets = ids[0, num_question:]
        return float(log_probabilities[num_question - 1 : -1].gather(1, targets[:, None]).sum())


def write_tasks(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Two tasks over the same rows: `pick` one of `choices`, and `write` the `text`."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    pick = {
        "task": "pick",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", **_METRIC}],
    }
    write = {
        "task": "write",
        "output_type": "generate_until",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": NUM_NEW_TOKENS, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **_METRIC}],
    }
    for task in (pick, write):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(data | task))
