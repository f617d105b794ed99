"""Judges: they decide which domain a text belongs to.

To add one, write a class that takes its config and a `JudgeContext` and has `answers`, and add it to the table; its
config goes into the union in orchestrator/config/detection.py.
"""

from collections.abc import Callable
from typing import Any

from orchestrator.config.detection import AnyJudgeConfig
from orchestrator.prepare.detection.judges.base import Judge, JudgeAnswer, JudgeContext
from orchestrator.prepare.detection.judges.classifier import ClassifierJudge
from orchestrator.prepare.detection.judges.endpoint import EndpointJudge
from orchestrator.prepare.detection.judges.likelihood import LikelihoodJudge

JUDGES: dict[str, Callable[[Any, JudgeContext], Judge]] = {
    "classifier": ClassifierJudge,
    "likelihood": LikelihoodJudge,
    "endpoint": EndpointJudge,
}


def build_judge(config: AnyJudgeConfig, context: JudgeContext) -> Judge:
    """The judge that the config names; nothing large is loaded before the first question."""
    return JUDGES[config.type](config, context)


__all__ = ["JUDGES", "Judge", "JudgeAnswer", "JudgeContext", "build_judge"]
