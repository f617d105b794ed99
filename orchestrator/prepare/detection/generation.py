"""Texts written by a model, from an empty prompt or from openings of known domain.

A free text starts from BOS alone (EOS if the tokenizer has no BOS) and is cut at the first BOS or EOS that the model
writes, so it is one document. Its first `opening_tokens` tokens are kept separately as its opening: a continuation
follows an opening from the data, and both are judged only by what follows, so that they have the same form.

Deterministic in (seed, kind of text, number of the batch), on the same kind of machine. Every finished batch is one
file, written durably; existing batches are not written again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.pool import WorkerPool
from orchestrator.config.detection import CalibrationConfig, GenerationConfig
from workers.config.model import ModelConfig
from workers.data.permutation import derive_key
from workers.durable import write_durably

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """One text; `text` is what is judged."""

    opening: str
    text: str
    num_tokens: int
    is_ended: bool

    @property
    def whole(self) -> str:
        return self.opening + self.text

    @property
    def judged(self) -> str:
        """What follows the opening, or the opening if the document ends with it."""
        return self.text if self.text.strip() else self.opening


@dataclass(frozen=True, slots=True)
class GenerationJob:
    """One batch: `openings` of equal length to continue, or, without any, `num_texts` free texts."""

    key: str
    seed: int
    num_texts: int
    openings: tuple[tuple[int, ...], ...] = ()


class TextGenerator:
    """A model that writes batches of texts."""

    def __init__(self, model: ModelConfig, generation: GenerationConfig, opening_tokens: int) -> None:
        import torch
        from transformers import GenerationConfig as Sampling

        from workers.model.loading import load_model
        from workers.model.tokenizer import load_tokenizer

        self._opening_tokens = opening_tokens
        self._tokenizer = load_tokenizer(model)
        self._start, self._stops = document_borders(self._tokenizer)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # Generating token by token, a CPU is about three times slower in bfloat16 than in float32.
        dtype = model.dtype if self._device == "cuda" else "float32"
        self._model: Any = load_model(model.replaced(dtype=dtype)).eval()
        self._model.to(self._device)
        # Otherwise transformers takes what a call leaves open, such as top_k, from the model's generation_config.json.
        self._model.generation_config = Sampling()
        self._settings = generation
        self._num_new = generation.max_new_tokens
        room = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if room is not None and 1 + opening_tokens + self._num_new > room:
            raise ValueError(
                f"detection.generation.max_new_tokens: {self._num_new} with calibration.opening_tokens "
                f"{opening_tokens} is more than the {room} positions of {model.path}; "
                f"use at most {room - 1 - opening_tokens}"
            )

    def __call__(self, job: GenerationJob) -> list[GeneratedText]:
        import torch
        from transformers import GenerationConfig as Sampling

        opening = self._opening_tokens
        prompts = [[self._start, *ids] for ids in job.openings] or [[self._start]] * job.num_texts
        input_ids_BL = torch.tensor(prompts, device=self._device)
        sampling = Sampling(
            do_sample=True,
            temperature=self._settings.temperature,
            top_p=self._settings.top_p,
            top_k=self._settings.top_k,
            repetition_penalty=self._settings.repetition_penalty,
            max_new_tokens=self._num_new if job.openings else self._num_new + opening,
            eos_token_id=self._stops,
            pad_token_id=self._tokenizer.pad_token_id,
            use_cache=True,
        )
        torch.manual_seed(int(derive_key(job.seed, "generation", job.key)) >> 1)
        with torch.inference_mode():
            output_BL = self._model.generate(
                input_ids_BL, attention_mask=torch.ones_like(input_ids_BL), generation_config=sampling
            )
        return [self._text(ids[1:], len(job.openings) and opening) for ids in output_BL.tolist()]

    def _text(self, ids: list[int], num_given: int) -> GeneratedText:
        """The document at the beginning of a row of ids, of which the first `num_given` were given."""
        stops = set(self._stops)
        end = next((place for place in range(num_given, len(ids)) if ids[place] in stops), len(ids))
        border = min(self._opening_tokens, end)
        opening, text = (
            str(self._tokenizer.decode(part, skip_special_tokens=True)) for part in (ids[:border], ids[border:end])
        )
        return GeneratedText(opening, text, end - num_given, end < len(ids))


def document_borders(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, list[int]]:
    """The token that a document starts from, and those that end it."""
    borders = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
    if not borders:
        raise ValueError("the tokenizer has neither BOS nor EOS: there is no empty prompt to start from")
    return borders[0], sorted(set(borders))


def generate(
    jobs: Sequence[GenerationJob],
    folder: Path,
    pool: WorkerPool[GenerationJob, list[GeneratedText]],
    on_batch: Callable[[int], None] = lambda num_texts: None,
) -> list[list[GeneratedText]]:
    """The texts of every job, in order; batches that already exist in `folder` are read."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{job.key}.jsonl" for job in jobs]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    on_batch(sum(job.num_texts for job, path in zip(jobs, paths, strict=True) if path.exists()))
    for place, texts in pool.map([jobs[index] for index in missing]):
        lines = [json.dumps(asdict(text), ensure_ascii=False) for text in texts]
        write_durably(paths[missing[place]], "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
        on_batch(len(texts))
    return [[GeneratedText(**json.loads(line)) for line in path.read_bytes().splitlines()] for path in paths]


def free_jobs(generation: GenerationConfig, seed: int, num_texts: int) -> list[GenerationJob]:
    """Full batches for at least `num_texts` free texts; a larger number adds batches without changing these."""
    size = generation.batch_size
    return [GenerationJob(f"free-{number:06d}", seed, size) for number in range(-(-num_texts // size))]


def continuation_jobs(
    openings: Sequence[Ids], domain: str, generation: GenerationConfig, calibration: CalibrationConfig, seed: int
) -> list[GenerationJob]:
    """Batches that continue openings of one domain, which are used in turn if there are too few."""
    count, size = calibration.texts_per_domain, generation.batch_size
    chosen = [tuple(openings[number % len(openings)]) for number in range(count)]
    batches = [chosen[start : start + size] for start in range(0, count, size)]
    return [
        GenerationJob(f"continuation-{domain}-{number:06d}", seed, len(batch), tuple(batch))
        for number, batch in enumerate(batches)
    ]
