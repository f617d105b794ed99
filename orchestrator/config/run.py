"""The configuration of one training: the workers' parts composed with mixing and cluster."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.detection import DetectionConfig
from orchestrator.config.stages import StartConfig
from orchestrator.config.tracking import AnyTrackerConfig, check_tracking
from orchestrator.mixing import AnyMixingConfig
from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
from workers.config.training import EvaluationConfig, TrainingConfig
from workers.nearest import meant
from workers.settings import Seed, Settings, StoragePath
from workers.strategies.cofitune import CoFiTuneConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class ReferenceConfig(Settings):
    """How reference losses are computed: by fine-tuning on each domain alone and keeping the best held-out loss."""

    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps for each domain; default: those of the run itself, divided by the number of domains."""
    num_workers: Annotated[int, Field(ge=1)] = 1
    """Workers of each of these trainings; as many trainings run in parallel as the cluster has room for."""


class RunConfig(Settings):
    """One training."""

    name: Name
    """Name of the run, and of its folder in output_dir."""
    output_dir: StoragePath = Path("runs")
    """Folder of all runs, or its URI on object storage (s3://bucket/runs); with several nodes a folder must be on a
    shared file system."""
    seed: Seed = 0
    """Seed of all random choices."""
    model: ModelConfig
    """The base model."""
    domains: Annotated[dict[Name, DomainConfig], Field(min_length=1)]
    """The domains, by name."""
    data: DataConfig = DataConfig()
    """How rows become token stores."""
    mixing: AnyMixingConfig
    """The mixing algorithm."""
    training: TrainingConfig
    """The optimizer steps."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """The evaluation that the mixing algorithm learns from."""
    reference: ReferenceConfig = ReferenceConfig()
    """How reference losses are computed, for algorithms that need them."""
    detection: DetectionConfig = DetectionConfig()
    """How the base model's knowledge distribution is detected, for `raymix detect` and for `detected` shares."""
    cluster: ClusterConfig = ClusterConfig()
    """Where the run's workers are."""
    start: StartConfig | None = None
    """A finished run to start from; default: the base model."""
    tracking: Annotated[list[AnyTrackerConfig], AfterValidator(check_tracking)] = Field(default_factory=list)
    """Trackers that also record the run: tensorboard, mlflow, wandb, by name or with settings."""

    @property
    def folder(self) -> Path:
        return self.output_dir / self.name

    @property
    def trained_domains(self) -> list[str]:
        """The domains with training data; the others are only measured."""
        return [name for name, domain in self.domains.items() if domain.is_trained]

    @property
    def group_sizes(self) -> list[int]:
        """The sizes that the worker group can have, smallest first."""
        return self.cluster.group_sizes(self.training)

    @property
    def num_data_ranks(self) -> int:
        """Parts of a step in the smallest group: its workers, or those that share their sequences as one."""
        return self.cluster.min_workers // self.training.sequence_parallel

    @property
    def cache_dir(self) -> Path:
        """Folder of the token stores."""
        return self.data.cache_dir or self.output_dir / "token-stores"

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        rows, ranks, micro = self.training.global_batch_size, self.cluster.min_workers, self.training.micro_batch_size
        key = "cluster.num_workers" if self.cluster.num_workers == ranks else "cluster.num_workers.min"
        slices = self.training.sequence_parallel
        sizes = {key: ranks}
        if self.mixing.needs.references == "computed":
            sizes["reference.num_workers"] = self.reference.num_workers
        for name, size in sizes.items():
            if size % slices:
                raise ValueError(
                    f"{name}: {size} is not a multiple of training.sequence_parallel {slices}, the number of workers "
                    f"that share a sequence; use for example {-(-size // slices) * slices}"
                )
        in_pass = self.num_data_ranks * micro
        if rows % in_pass:
            of_slices = f" / training.sequence_parallel {slices}" if slices > 1 else ""
            raise ValueError(
                f"training.global_batch_size: {rows} is not divisible by {key} {ranks}{of_slices} x "
                f"training.micro_batch_size {micro} = {in_pass}; use for example {max(rows // in_pass, 1) * in_pass}"
            )
        return self

    @model_validator(mode="after")
    def _names_are_domains(self) -> Self:
        names = self.trained_domains
        if not names:
            raise ValueError("domains: no domain has training data; add `train` to at least one")
        self.mixing.check_domains(names)
        best, known = self.evaluation.best, list(self.domains)
        if best is not None and best not in ("mean", "worst", *known):
            near = meant([best], ["mean", "worst", *known])
            raise ValueError(f"evaluation.best: {best!r} is not mean, worst, or one of {known}{near}")
        return self

    @model_validator(mode="after")
    def _nothing_needs_the_size_of_a_stream(self) -> Self:
        streamed = [name for name in self.trained_domains if self.domains[name].streaming]
        if not streamed:
            return self
        why = f"domains.{streamed[0]} is streamed (streaming: true), so the number of its rows is not known in advance"
        if self.training.epochs is not None:
            raise ValueError(f"training.epochs: {why}; give training.max_steps or training.max_tokens instead")
        if by_size := self.mixing.by_size:
            raise ValueError(
                f"mixing.{by_size} takes shares from the sizes of the domains, but {why}; give the shares "
                "(mixing.type fixed with `shares`, or `initial` by domain), or uniform ones"
            )
        if self.mixing.needs.distribution == "detected":
            raise ValueError(
                f"mixing: shares are to be detected, for which all texts of the domains are read, but {why}; give them "
                "by domain, or a file that `raymix detect` wrote for the domains without streaming"
            )
        return self

    @model_validator(mode="after")
    def _importance_is_of_trained_domains(self) -> Self:
        if isinstance(strategy := self.training.strategy, CoFiTuneConfig):
            unknown = [name for name in strategy.importance.domains or [] if name not in self.trained_domains]
            if unknown:
                raise ValueError(
                    f"training.strategy.importance.domains: not trained on: {', '.join(unknown)}; "
                    f"choose from {', '.join(self.trained_domains)}"
                )
        return self
