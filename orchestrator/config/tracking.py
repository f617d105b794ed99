"""Trackers that record a run in addition to its folder. No tracker's package is imported here."""

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from workers.settings import Settings

Text = Annotated[str, Field(min_length=1)]


class TensorBoardConfig(Settings):
    """Event files for TensorBoard."""

    type: Literal["tensorboard"] = "tensorboard"
    """Curves in event files."""
    folder: Text | None = None
    """Folder of event files, with a subfolder for each run; default: `tensorboard` in the run's folder."""


class MLflowConfig(Settings):
    """A run of an MLflow experiment."""

    type: Literal["mlflow"] = "mlflow"
    """Metrics and settings in MLflow."""
    tracking_uri: Text | None = None
    """The tracking server or store; default: MLFLOW_TRACKING_URI, else mlflow.db next to the run's folder."""
    experiment: Text = "raymix"
    """Name of the experiment; it is created if it does not exist."""


class WandbConfig(Settings):
    """A run of a Weights & Biases project. Log in with `wandb login` or WANDB_API_KEY."""

    type: Literal["wandb"] = "wandb"
    """Metrics and settings in Weights & Biases."""
    project: Text = "raymix"
    """Name of the project."""
    entity: Text | None = None
    """The team or user that owns the project; default: your default entity in Weights & Biases."""
    mode: Literal["online", "offline"] | None = None
    """`offline` keeps everything in the run's folder for `wandb sync`; default: WANDB_MODE, else online."""


TrackerConfig = TensorBoardConfig | MLflowConfig | WandbConfig
_Tagged = Annotated[TrackerConfig, Field(discriminator="type")]


def _by_name(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


AnyTrackerConfig = Annotated[
    _Tagged, BeforeValidator(_by_name, json_schema_input_type=Literal["tensorboard", "mlflow", "wandb"] | _Tagged)
]
"""Settings of a tracker, or just its name."""


def check_tracking(trackers: list[TrackerConfig]) -> list[TrackerConfig]:
    """ValueError if a tracker is given twice: its runs would be mixed up."""
    names = [tracker.type for tracker in trackers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is given twice; keep one")
    return trackers


_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def missing_package(config: TrackerConfig) -> str | None:
    """How to install a tracker's package; None if it is installed."""
    package = _PACKAGES[config.type]
    if find_spec(package) is not None:
        return None
    return f"{package} is not installed; run `pip install 'raymix[{config.type}]'`, or leave {config.type} out"
