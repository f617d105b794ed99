"""The detection itself: calibrate the judge, then write and judge texts in rounds until the shares converge."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from orchestrator.cluster.pool import WorkerPool
from orchestrator.config.run import RunConfig
from orchestrator.prepare.detection.domain_texts import (
    DomainTexts,
    Places,
    cut_openings,
    cut_windows,
    find_domain_texts,
)
from orchestrator.prepare.detection.generation import (
    GeneratedText,
    TextGenerator,
    continuation_jobs,
    free_jobs,
    generate,
)
from orchestrator.prepare.detection.judges import JudgeAnswer, JudgeContext, build_judge
from orchestrator.prepare.detection.judges.base import Calibration, Floats, Memory, parsed
from orchestrator.prepare.detection.quantification import (
    DetectedDistribution,
    ExampleText,
    Round,
    average,
    correct,
    estimate_all,
    hard_answers,
    smooth,
    trained_shares,
)
from workers.data.permutation import derive_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPENINGS_PER_TEXT = 2  # rows read per text, as some are too short for an opening
_EXAMPLES_PER_DOMAIN = 5
_EXAMPLE_CHARACTERS = 600
_NOTES_KEPT = 10


def known_distribution(config: RunConfig) -> DetectedDistribution | None:
    path = Places.of(config, _domain_texts(config)).result / "distribution.json"
    return DetectedDistribution.read(path) if path.exists() else None


def find_distribution(config: RunConfig, console: Console) -> DetectedDistribution:
    """The distribution of the configuration's model over its domains: detected, or read if it was detected before.

    Runs on the workers of the cluster if Ray is running, else in this process. ValueError if a domain has no suitable
    text, the model cannot write, or the judge named no domain at all; EndpointError if the endpoint rejected requests.
    """
    domains = _domain_texts(config)
    places = Places.of(config, domains)
    kept = places.result / "distribution.json"
    places.result.mkdir(parents=True, exist_ok=True)
    with FileLock(places.answers.with_suffix(".lock")):  # two processes may need the same distribution
        if not kept.exists():
            _Detection(config, domains, places, console).run().write(kept)
    return DetectedDistribution.read(kept)


def _domain_texts(config: RunConfig) -> dict[str, DomainTexts]:
    window = config.data.zstd_window_mib
    return {
        name: find_domain_texts(name, domain.with_absolute_paths(), window) for name, domain in config.domains.items()
    }


class _Detection:
    def __init__(self, config: RunConfig, domains: Mapping[str, DomainTexts], places: Places, console: Console) -> None:
        from workers.model.tokenizer import load_tokenizer

        self.config, self.settings = config, config.detection
        self.model = config.model.with_absolute_paths()
        self.domains, self.places, self.console = domains, places, console
        self.names = list(domains)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.model)
        context = JudgeContext(self.names, self._training_windows, config.cluster, config.seed)
        self.judge = Memory(build_judge(self.settings.judge, context), places.answers)
        opening_tokens = self.settings.calibration.opening_tokens
        self.pool = WorkerPool(
            partial(TextGenerator, self.model, self.settings.generation, opening_tokens), config.cluster
        )

    def run(self) -> DetectedDistribution:
        with self.pool:
            calibration = self._calibrate() if self.settings.calibration.texts_per_domain else None
            rounds: list[Round] = []
            while True:
                num_texts = min((len(rounds) + 1) * self.settings.texts_per_round, self.settings.max_texts)
                texts, answers = self._write_and_judge(num_texts)
                rounds.append(self._round(answers, calibration, rounds[-1] if rounds else None, num_texts))
                change = rounds[-1].change
                is_converged = change is not None and change < self.settings.tolerance
                if is_converged or num_texts == self.settings.max_texts:
                    break
        return self._conclude(texts, answers, calibration, rounds, is_converged)

    def _training_windows(self) -> dict[str, list[str]]:
        assert self.settings.judge.type == "classifier"
        calibration, generation = self.settings.calibration, self.settings.generation
        return {
            name: cut_windows(
                self.tokenizer,
                texts.read(False, self.settings.judge.max_rows, self.config.seed),
                calibration.opening_tokens,
                generation.max_new_tokens,
            )
            for name, texts in self.domains.items()
        }

    def _calibrate(self) -> Calibration:
        answers_CD: list[Floats] = []
        labels: list[int] = []
        continuations = {name: self._continue_openings(name) for name in self.names}
        for label, (name, texts) in enumerate(continuations.items()):
            answers, _ = parsed(self._ask(f"judging continuations of {name}", texts))
            if not len(answers):
                raise ValueError(f"domain {name!r}: the judge named no domain for any continuation of its openings")
            answers_CD.append(answers)
            labels += [label] * len(answers)
        return Calibration(np.concatenate(answers_CD), np.array(labels))

    def _continue_openings(self, name: str) -> list[GeneratedText]:
        calibration = self.settings.calibration
        held_out = self.domains[name].read(True, _OPENINGS_PER_TEXT * calibration.texts_per_domain, self.config.seed)
        openings = cut_openings(self.tokenizer, held_out, calibration.opening_tokens)
        if not openings:
            raise ValueError(
                f"domain {name!r}: none of {len(held_out)} held-out texts has the {calibration.opening_tokens} tokens "
                "of an opening; lower detection.calibration.opening_tokens"
            )
        jobs = continuation_jobs(openings, name, self.settings.generation, calibration, self.config.seed)
        with _bar(self.console, f"continuing openings of {name}", calibration.texts_per_domain) as advance:
            batches = generate(jobs, self.places.continuations[name], self.pool, advance)
        return [text for batch in batches for text in batch]

    def _write_and_judge(self, num_texts: int) -> tuple[list[GeneratedText], list[JudgeAnswer]]:
        jobs = free_jobs(self.settings.generation, self.config.seed, num_texts)
        with _bar(self.console, "writing texts", sum(job.num_texts for job in jobs)) as advance:
            batches = generate(jobs, self.places.texts, self.pool, advance)
        texts = [text for batch in batches for text in batch][:num_texts]
        return texts, self._ask("judging texts", texts)

    def _ask(self, what: str, texts: Sequence[GeneratedText]) -> list[JudgeAnswer]:
        if self.settings.judge.type == "likelihood":
            self.pool.release()  # a judging model needs the resources of the writing model
        with _bar(self.console, what, len(texts)) as advance:
            return self.judge.ask([text.judged for text in texts], partial(advance, 1))

    def _round(
        self, answers: Sequence[JudgeAnswer], calibration: Calibration | None, before: Round | None, num_texts: int
    ) -> Round:
        answers_ND, _ = parsed(answers)
        if not len(answers_ND):
            note = _notes(answers)
            raise ValueError(f"the judge named no domain for any of {len(answers)} texts; it answered: {note[0][0]}")
        shares = dict(zip(self.names, self._estimate(answers_ND, calibration).tolist(), strict=True))
        change = None if before is None else max(abs(shares[name] - before.shares[name]) for name in self.names)
        moved = "" if change is None else f", largest change of a share {change:.4f}"
        self.console.print(f"round {-(-num_texts // self.settings.texts_per_round)}: {num_texts:,} texts{moved}")
        return Round(num_texts=num_texts, shares=shares, change=change)

    def _estimate(self, answers_ND: Floats, calibration: Calibration | None) -> Floats:
        if self.settings.estimate == "corrected":
            assert calibration is not None  # checked with the configuration
            return correct(answers_ND, calibration)
        return average(answers_ND if self.settings.estimate == "average" else hard_answers(answers_ND))

    def _conclude(
        self,
        texts: Sequence[GeneratedText],
        answers: Sequence[JudgeAnswer],
        calibration: Calibration | None,
        rounds: list[Round],
        is_converged: bool,
    ) -> DetectedDistribution:
        answers_ND, kept_N = parsed(answers)
        seed = int(derive_key(self.config.seed, "bootstrap"))
        labels_C = np.empty(0, dtype=np.int64) if calibration is None else calibration.labels_C
        num_texts_D = np.bincount(labels_C, minlength=len(self.names))
        estimates = estimate_all(
            self.names, answers_ND, calibration, self.settings.num_bootstrap, self.settings.confidence, seed
        )
        chosen = estimates[self.settings.estimate]
        smoothed_D = smooth(np.array(list(chosen.shares.values())), len(answers_ND), self.settings.smoothing)
        return DetectedDistribution(
            shares=trained_shares(smoothed_D, self.names, self.config.trained_domains),
            standard_errors=chosen.standard_errors,
            intervals=chosen.intervals,
            confidence=self.settings.confidence,
            estimate=self.settings.estimate,
            estimates=estimates,
            rounds=rounds,
            is_converged=is_converged,
            num_texts=len(texts),
            num_unparsed=len(texts) - len(kept_N),
            unparsed_notes=dict(_notes(answers)),
            num_calibration_texts=dict(zip(self.names, num_texts_D.tolist(), strict=True)),
            responses=_mean_responses(calibration, self.names),
            examples=_examples([texts[index] for index in kept_N], answers_ND, self.names),
            model=self.config.model.path,
            domains=self.names,
            seed=self.config.seed,
            judge=self._describe_judge(),
            generation=self.settings.generation.model_dump(),
        )

    def _describe_judge(self) -> dict[str, object]:
        description = self.settings.judge.model_dump(mode="json")
        if self.settings.judge.type == "endpoint":
            sent, answered = self.judge.num_tokens
            prices = self.settings.judge
            dollars = sent * prices.usd_per_million_input_tokens + answered * prices.usd_per_million_output_tokens
            description |= {"num_input_tokens": sent, "num_output_tokens": answered, "cost_usd": dollars / 1e6}
        return description


@contextmanager
def _bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that disappears when its part is done; shows nothing outside a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=30), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield partial(progress.advance, progress.add_task(what, total=total))


def _notes(answers: Sequence[JudgeAnswer]) -> list[tuple[str, int]]:
    return Counter(answer.note for answer in answers if answer.probabilities is None).most_common(_NOTES_KEPT)


def _mean_responses(calibration: Calibration | None, names: list[str]) -> dict[str, dict[str, float]]:
    if calibration is None:
        return {}
    means = [calibration.answers_CD[calibration.labels_C == label].mean(axis=0) for label in range(len(names))]
    return {name: dict(zip(names, mean.tolist(), strict=True)) for name, mean in zip(names, means, strict=True)}


def _examples(texts: Sequence[GeneratedText], answers_ND: Floats, names: list[str]) -> dict[str, list[ExampleText]]:
    """The first texts of each domain, not those with the highest probability."""
    chosen_N = answers_ND.argmax(axis=1)
    return {
        name: [
            ExampleText(text=texts[index].whole[:_EXAMPLE_CHARACTERS], probability=float(answers_ND[index, label]))
            for index in np.flatnonzero(chosen_N == label)[:_EXAMPLES_PER_DOMAIN]
        ]
        for label, name in enumerate(names)
    }
