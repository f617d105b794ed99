"""What one training needs to know, in plain data: it travels from the driver to every rank."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from workers.config.model import ModelConfig
from workers.config.training import EvaluationConfig, TrainingConfig
from workers.data.schedule import DomainRows, Schedule
from workers.data.store import TokenStore
from workers.settings import Settings


class StoreFolders(Settings):
    """Where a domain's token stores lie."""

    train: Path | None
    """Store of the training rows; None for a domain that is only measured."""
    eval: Path
    """Store of the evaluation rows."""


class StartPoint(Settings):
    """Where another run ended, for a run that goes on from there."""

    model: ModelConfig
    """What its trained parameters belong to: the base model, or a model that a run with another strategy exported."""
    checkpoint: Path | None = None
    """A checkpoint of these very parameters, whose float32 masters are taken; None: the model's own weights."""
    keeps_optimizer: bool = False
    """Also take AdamW's moments from the checkpoint."""


class TrainingPlan(Settings):
    """A run as its workers see it."""

    run_id: str
    """Identity of the run; the controller refuses feedback of another."""
    folder: Path
    """The run's folder, on a file system that all ranks share."""
    seed: int
    """Seed of everything random."""
    num_steps: Annotated[int, Field(ge=1)]
    """Optimizer steps in all."""
    unit: Literal["examples", "tokens"]
    """What a share is a share of."""
    domains: dict[str, StoreFolders]
    """Token stores of each domain; the order of the domains is the order of every array by domain."""
    model: ModelConfig
    """The base model; its tokenizer stays, wherever the weights come from."""
    start: StartPoint | None = None
    """Where the weights come from, when not from the base model."""
    training: TrainingConfig
    """The optimizer steps."""
    evaluation: EvaluationConfig
    """The evaluation that feeds the controller."""
    log_samples: bool
    """Write samples.jsonl."""
    signals: list[str] = Field(default_factory=list)
    """Signals that are measured at every evaluation, beside the losses."""
    export: bool = True
    """Write `model/` and evaluation.json at the end; a training that is only measured does without."""

    def open_stores(self) -> tuple[dict[str, TokenStore], dict[str, TokenStore]]:
        """Training store of each trained domain, and evaluation store of every domain."""
        train = {name: TokenStore.open(folders.train) for name, folders in self.domains.items() if folders.train}
        return train, {name: TokenStore.open(folders.eval) for name, folders in self.domains.items()}

    def build_schedule(self, stores: dict[str, TokenStore]) -> Schedule:
        """The schedule over the training stores."""
        rows = [DomainRows(name, s.num_rows, units_per_row(s, self.unit)) for name, s in stores.items()]
        rows_per_step = self.training.global_batch_size
        return Schedule(self.seed, rows, rows_per_step, rows_per_step if self.training.batches == "one_domain" else 1)


def units_per_row(store: TokenStore, unit: str) -> float:
    """Mean examples, or tokens, in a row of a store."""
    return (store.num_examples if unit == "examples" else store.num_tokens) / store.num_rows
