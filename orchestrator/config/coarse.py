"""What `raymix coarse-search` looks for. No torch, no Ray."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from workers.nearest import meant
from workers.settings import Settings
from workers.strategies.cofitune.config import Module, ModuleSet

if TYPE_CHECKING:
    from orchestrator.config.sweep import SweepConfig

Modules = Annotated[list[Module | ModuleSet], Field(min_length=1)]


class CoarseSearchConfig(Settings):
    """CoFiTune's tree search for the layers and modules to train; see orchestrator/sweeps/coarse/tree.py."""

    speciality: Annotated[list[str], Field(min_length=1)]
    """Domains to learn, the only ones that are trained on; all others count as versatility."""
    versatility_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of Vers in Uni = Spec + weight * Vers."""
    num_seeds: Annotated[int, Field(ge=1)] = 2
    """Seeds that each node is trained with; scores are means over them."""
    beam_width: Annotated[int, Field(ge=1)] = 1
    """Ranges of layers kept after a step; each costs up to 4 further nodes in step 2 and 3 in step 3."""
    tie_margin: Annotated[float, Field(ge=0)] = 0.01
    """Ranges whose Uni is by at most this below the best one's are kept as well."""
    module_sets: Annotated[list[Modules], Field(min_length=1)] = Field(
        default=[["attention"], ["feed_forward"], ["up"], ["down"], ["attention", "feed_forward"]]
    )
    """Sets of modules that the last step compares."""
    scores: Literal["losses", "files"] = "losses"
    """`losses` scores nodes by the held-out losses of the domains. `files` keeps every model and reads what you
    measured on it from task_scores.json in its run's folder: {"speciality": 0.41, "versatility": 0.63}. If such
    files are missing, the search stops and names them; run the same command to resume."""


def check_coarse_search(config: "SweepConfig") -> None:
    """Refuse a search that cannot be scored.

    Raises:
        ValueError: with the key and what to change.
    """
    settings = config.coarse_search
    if settings is None:
        return
    trained = config.trained_domains
    if unknown := [name for name in settings.speciality if name not in trained]:
        near = meant(unknown, trained)
        raise ValueError(
            f"coarse_search.speciality: {unknown} are not trained domains of this run{near}; they are {trained}"
        )
    if settings.scores == "losses" and set(config.domains) == set(settings.speciality):
        raise ValueError(
            "coarse_search.speciality: no other domain is left to measure what is forgotten; add one, if only with "
            "`eval` files, or use `scores: files`"
        )
