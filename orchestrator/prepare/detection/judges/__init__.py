"""Judges: who says which domain a text belongs to.

To add one, write a file with a class that is made from its config and a `JudgeContext` and has `answers`, and put it
in the table; its config goes into the union of orchestrator/config/detection.py.
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
    """The judge that the config names; nothing heavy is loaded before the first question."""
    return JUDGES[config.type](config, context)


__all__ = ["JUDGES", "Judge", "JudgeAnswer", "JudgeContext", "build_judge"]
