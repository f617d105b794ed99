"""A local language model as judge: how likely is each domain's name after the text?

    score_d = (1/|d|) sum over the tokens of d's name of log p(token | text, question, tokens before)
    p(d)    = softmax over the domains

The mean over tokens avoids a penalty for long names. A model's preference for certain names is a bias like any other:
the correction removes it, the plain average does not.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from orchestrator.cluster.pool import WorkerPool
from orchestrator.config.detection import LikelihoodJudgeConfig
from orchestrator.prepare.detection.judges.base import JudgeAnswer, JudgeContext

_TEXTS_PER_JOB = 16


class LikelihoodJudge:
    """Runs on the workers of the cluster, like the generation."""

    def __init__(self, config: LikelihoodJudgeConfig, context: JudgeContext) -> None:
        self._cluster = context.cluster
        model = config.model.with_absolute_paths()
        self._make = partial(LabelScorer, config.replaced(model=model), tuple(context.domains))

    def answers(self, texts: Sequence[str]) -> Iterator[tuple[int, JudgeAnswer]]:
        jobs = [list(texts[start : start + _TEXTS_PER_JOB]) for start in range(0, len(texts), _TEXTS_PER_JOB)]
        with WorkerPool(self._make, self._cluster) as pool:
            for number, scored in pool.map(jobs):
                for place, probabilities in enumerate(scored):
                    yield number * _TEXTS_PER_JOB + place, JudgeAnswer(tuple(probabilities))


class LabelScorer:
    """The judging model on one worker."""

    def __init__(self, config: LikelihoodJudgeConfig, domains: Sequence[str]) -> None:
        import torch

        from workers.model.loading import load_model
        from workers.model.tokenizer import load_tokenizer

        self._tokenizer = load_tokenizer(config.model)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = load_model(config.model).eval()
        self._model.to(self._device)
        self._max_text_tokens = config.max_text_tokens
        bos = self._tokenizer.bos_token_id
        self._start = [] if bos is None else [bos]
        self._question = self._encode(f"\n\nSubjects: {', '.join(domains)}\nThe subject of the text above is:")
        self._labels = [self._encode(f" {domain}") for domain in domains]
        length = max(map(len, self._labels))
        pad = self._tokenizer.pad_token_id
        self._labels_DL = torch.tensor([ids + [pad] * (length - len(ids)) for ids in self._labels], device=self._device)
        self._is_label_DL = torch.tensor(
            [[place < len(ids) for place in range(length)] for ids in self._labels], device=self._device
        )

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        return [self._judge(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        encoded: Any = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoded["input_ids"])

    def _judge(self, text: str) -> list[float]:
        """The text is read once, and its cache is used for all names, padded on the right, where no token attends."""
        import torch

        ids = [*self._start, *self._encode(f"Text: {text}")[: self._max_text_tokens], *self._question]
        with torch.inference_mode():
            read = self._model(torch.tensor([ids], device=self._device), use_cache=True)
            first_DV = read.logits[:, -1].expand(len(self._labels), -1)
            cache = read.past_key_values
            cache.batch_repeat_interleave(len(self._labels))
            named = self._model(self._labels_DL, past_key_values=cache, use_cache=True)
            logits_DLV = torch.cat([first_DV[:, None], named.logits[:, :-1]], dim=1).float()
            nats_DL = logits_DLV.log_softmax(dim=-1).gather(-1, self._labels_DL[..., None])[..., 0]
            scores_D = (nats_DL * self._is_label_DL).sum(dim=1) / self._is_label_DL.sum(dim=1)
            return scores_D.softmax(dim=0).tolist()
