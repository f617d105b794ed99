"""What `raymix compare` compares. No torch, no Ray."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from workers.nearest import meant
from workers.settings import Settings

if TYPE_CHECKING:
    from orchestrator.config.sweep import SweepConfig

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")]


class CompareConfig(Settings):
    """Variants of the run, by label."""

    variants: dict[Label, dict[str, Any]] = Field(default_factory=dict)
    """Label -> what the variant changes: keys of the configuration, nested or dotted. A section of another `type` (or
    `plan`) replaces the run's, any other mapping is merged into it."""
    target: str | None = None
    """Domain that is to be learned: also compare its gain, and what happens to all others. Default: mixing.target."""


def check_compare(config: "SweepConfig") -> None:
    """Refuse a target that is no domain.

    Raises:
        ValueError: with the key and what to change.
    """
    target = config.compare.target
    if target is not None and target not in config.domains:
        near, known = meant([target], config.domains), list(config.domains)
        raise ValueError(f"compare.target: {target!r} is not a domain of this run{near}; they are {known}")
