"""What `raymix check --json` prints: one CheckedPlan, or for a plan of stages a list of them."""

from orchestrator.runs.data_record import DomainCounts, Finding, Record


class CheckedDomain(DomainCounts):
    """A domain: its counts, and its part in the run."""

    share: float | None
    """Of the mixture at the start; null where it is only measured, or the shares are still to be detected."""
    epochs: float | None
    """Passes over its training rows, were that share to stay."""
    eval_rows_measured: int
    """Rows of its evaluation store that an evaluation measures."""


class MemoryNeed(Record):
    """What a rank will need, estimated."""

    num_parameters: int
    """Of the model."""
    num_trainable: int
    """Those of them that train."""
    peak_gib: float
    """At the moment that needs most."""
    moment: str
    """Which one that is."""
    parts_gib: dict[str, float]
    """What is held then."""


class IsolationPlan(Record):
    """How examples that share a row are kept apart."""

    way: str | None = None
    """positions, mask, lengths or separate; null where the run itself finds out."""
    difference_nats: float | None = None
    """How far packing moves the loss of an example at most, in nats a token."""
    message: str
    """The same as a sentence."""


class StagePlace(Record):
    """Which stage of a plan it is."""

    number: int
    """From 1."""
    count: int
    """Stages of the plan."""
    name: str
    """Its name."""
    starts_from: str | None
    """Name of the stage whose result it starts from; null for the base model."""
    folder: str
    """Folder of its run."""
    is_finished: bool
    """Whether it is trained already."""


class CheckedPlan(Record):
    """The plan of a run."""

    name: str
    """Of the run."""
    stage: StagePlace | None = None
    """Where it is a stage of a plan."""
    steps: int
    """Optimizer steps."""
    global_batch_size: int
    """Rows in a step, over all ranks."""
    micro_batch_size: int
    """Rows of a rank in a forward pass."""
    max_length: int
    """Tokens that a row holds at most."""
    tokens: int
    """Tokens to be trained on, about."""
    algorithm: str
    """Type of the mixing algorithm."""
    workers: int
    """Ranks."""
    zero_stage: int
    """ZeRO stage of the engine."""
    domains: dict[str, CheckedDomain]
    """Every domain."""
    memory: MemoryNeed
    """What a rank needs."""
    training_notes: list[str]
    """Sentences on what is trained: the matrices that have an adapter, the router loss."""
    isolation: IsolationPlan | None
    """null where every row holds a single example."""
    findings: list[Finding]
    """What a person should know; none of them is an error here, since an error leaves no plan."""


class RefusedPlan(Record):
    """What is printed instead where the run could not start; the exit code is then not 0."""

    findings: list[Finding]
    """At least one, of severity error."""
