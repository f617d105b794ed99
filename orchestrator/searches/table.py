"""The table of searches, and what is derived from it: the union of their settings, and how one is built."""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import Field

from orchestrator.searches.base import Search, SearchConfig, SearchedRun
from orchestrator.searches.population import Population
from orchestrator.searches.regmix import RegMix
from orchestrator.searches.sampled import Sampled
from workers.plugins import class_fault, with_plugins

_OWN: dict[str, type[Search[Any]]] = {
    "random": Sampled,
    "optuna": Sampled,
    "pbt": Population,
    "regmix": RegMix,
}

SEARCHES = with_plugins("raymix.searches", _OWN, class_fault(Search, SearchConfig))

if TYPE_CHECKING:
    AnySearchConfig: TypeAlias = SearchConfig
else:
    AnySearchConfig = Annotated[
        Union[tuple(dict.fromkeys(search.config_class for search in SEARCHES.values()))],  # noqa: UP007
        Field(discriminator="type"),
    ]


def build_search(config: SearchConfig, run: SearchedRun) -> Search[Any]:
    """The search that `config` names, for this run."""
    return SEARCHES[config.type](config, run)
