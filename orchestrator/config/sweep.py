"""A whole configuration file: a run, and the sections of the verbs that train many runs.

Every verb reads the whole file, so that a fault in any section is reported; `raymix run` then trains its plan.
"""

from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, model_validator

from orchestrator.config.plan import PlanConfig
from orchestrator.config.sections import CoarseSearchConfig, CompareConfig, StudyConfig
from orchestrator.searches import AnySearchConfig, Search, SearchedRun, build_search
from workers.bounded import read_model
from workers.nearest import meant, refuse_unknown


class SweepConfig(PlanConfig):
    """A complete configuration."""

    model_config = ConfigDict(title="RunConfig")

    study: StudyConfig | None = None
    """What `raymix study` compares; other verbs ignore it."""
    compare: CompareConfig = CompareConfig()
    """The variants of `raymix compare`; other verbs ignore them."""
    coarse_search: CoarseSearchConfig | None = None
    """What `raymix coarse-search` looks for; other verbs ignore it."""
    search: AnySearchConfig | None = None
    """What `raymix tune` searches; other verbs ignore it."""

    @property
    def plan(self) -> PlanConfig:
        """The run without the sections of other verbs."""
        own = self.model_fields_set & PlanConfig.model_fields.keys()
        return PlanConfig.model_validate({name: getattr(self, name) for name in own})

    @property
    def target(self) -> str | None:
        """The target domain of the comparison, or of the run's algorithm."""
        return self.compare.target or self.mixing.needs.target

    def build_search(self) -> Search[Any]:
        """The search that `search` configures, for this run; ValueError without such a section."""
        if self.search is None:
            raise ValueError("there is nothing to tune: add a `search` section; examples/search.yaml has one")
        return build_search(self.search, self._searched)

    @property
    def _searched(self) -> SearchedRun:
        return SearchedRun(
            domains=list(self.domains),
            trained_domains=self.trained_domains,
            seed=self.seed,
            target=self.target,
            max_steps=self.training.max_steps,
            schedule=self.training.schedule,
        )

    @model_validator(mode="after")
    def _study_fits(self) -> Self:
        if (study := self.study) is not None:
            refuse_unknown("study.specialised", study.specialised, self.trained_domains, "trained domains")
            refuse_unknown("study.general", study.general, self.trained_domains, "trained domains")
            if self.stages:
                raise ValueError("study: it makes its own plans of stages; leave out stages")
        return self

    @model_validator(mode="after")
    def _target_is_a_domain(self) -> Self:
        target, known = self.compare.target, list(self.domains)
        if target is not None and target not in known:
            near = meant([target], known)
            raise ValueError(f"compare.target: {target!r} is not a domain of this run{near}; they are {known}")
        return self

    @model_validator(mode="after")
    def _coarse_search_can_be_scored(self) -> Self:
        if (search := self.coarse_search) is not None:
            refuse_unknown("coarse_search.speciality", search.speciality, self.trained_domains, "trained domains")
            if search.scores == "losses" and set(self.domains) == set(search.speciality):
                raise ValueError(
                    "coarse_search.speciality: no other domain is left to measure what is forgotten; add one, if only "
                    "with `eval` files, or use `scores: files`"
                )
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> Self:
        if self.search is not None:
            if self.stages:
                raise ValueError("search: a plan of stages cannot be searched over; leave out `stages`")
            self.search.check(self._searched)
        return self


def read_begun(folder: Path) -> PlanConfig:
    """The configuration that a run's folder was started with, whichever version of raymix wrote it."""
    return read_model(folder / "config.json", SweepConfig).plan
