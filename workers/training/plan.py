"""The plan of one run as plain data, sent from the driver to every rank."""

from typing import Annotated, Literal

from pydantic import Field

from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.config.training import EvaluationConfig, TrainingConfig
from workers.data.parts import next_position
from workers.data.preparing import DomainPlan
from workers.data.schedule import DomainRows, Schedule
from workers.data.store import TokenStore
from workers.settings import Settings, StoragePath
from workers.storage.mirror import fetch_folder


class StoreFolders(Settings):
    """Folders of a domain's token stores."""

    train: StoragePath | None
    """None for a domain that is only measured."""
    eval: StoragePath
    stream: "StreamedRows | None" = Field(default=None, exclude_if=lambda stream: stream is None)
    """How its further parts are made; None if the training store is all of the domain."""


class StreamedRows(Settings):
    """A streamed domain, of which the training store is the first part."""

    plan: DomainPlan
    data: DataConfig


class StartPoint(Settings):
    """Where another run ended, for a run that starts from there."""

    model: ModelConfig
    """The model of its trained parameters: the base model, or one exported by a run with another strategy."""
    checkpoint: StoragePath | None = None
    """A checkpoint of the same parameters, for their float32 masters; None: the model's weights."""
    keeps_optimizer: bool = False
    """Also load AdamW's moments from the checkpoint."""


class TrainingPlan(Settings):
    """A run as its workers see it."""

    run_id: str
    """The controller refuses feedback of another run."""
    folder: StoragePath
    """The run's folder, on a file system or object storage that all ranks share."""
    seed: int
    num_steps: Annotated[int, Field(ge=1)]
    unit: Literal["examples", "tokens"]
    """What a share is a share of."""
    domains: dict[str, StoreFolders]
    """Token stores of each domain, in the order of every array by domain."""
    model: ModelConfig
    """The base model; its tokenizer is used wherever the weights come from."""
    start: StartPoint | None = None
    """Where the weights come from, if not from the base model."""
    training: TrainingConfig
    evaluation: EvaluationConfig
    log_samples: bool
    """Write samples.jsonl."""
    signals: list[str] = Field(default_factory=list)
    """Signals measured at every evaluation, in addition to the losses."""
    export: bool = True
    """Write `model/` and evaluation.json at the end; not needed for a run that is only measured."""

    def open_stores(self) -> tuple[dict[str, TokenStore], dict[str, TokenStore]]:
        """The training stores and the evaluation stores, by domain; fetched if this node has no copy of them yet."""
        for folders in self.domains.values():
            fetch_folder(folders.eval.parent)
        train = {name: TokenStore.open(folders.train) for name, folders in self.domains.items() if folders.train}
        return train, {name: TokenStore.open(folders.eval) for name, folders in self.domains.items()}

    def build_schedule(self, stores: dict[str, TokenStore]) -> Schedule:
        rows = [
            DomainRows(name, s.num_rows, units_per_row(s, self.unit), next_position(s.manifest) is None)
            for name, s in stores.items()
        ]
        rows_per_step = self.training.global_batch_size
        return Schedule(self.seed, rows, rows_per_step, rows_per_step if self.training.batches == "one_domain" else 1)


def units_per_row(store: TokenStore, unit: str) -> float:
    return (store.num_examples if unit == "examples" else store.num_tokens) / store.num_rows
