"""Where a run is written down beside its folder. No tracker's package is imported here."""

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
    """Folder of event files, with a folder for each run; default: `tensorboard` in the run's own folder."""


class MLflowConfig(Settings):
    """A run of an MLflow experiment."""

    type: Literal["mlflow"] = "mlflow"
    """Metrics and settings in MLflow."""
    tracking_uri: Text | None = None
    """The tracking server or store; default: what MLFLOW_TRACKING_URI says, else mlflow.db beside the run's folder."""
    experiment: Text = "raymix"
    """Name of the experiment; it is made where it is missing."""


class WandbConfig(Settings):
    """A run of a Weights & Biases project. Who writes is known by `wandb login` or WANDB_API_KEY."""

    type: Literal["wandb"] = "wandb"
    """Metrics and settings in Weights & Biases."""
    project: Text = "raymix"
    """Name of the project."""
    entity: Text | None = None
    """The team or person that the project belongs to; default: as Weights & Biases knows you."""
    mode: Literal["online", "offline"] | None = None
    """`offline` keeps everything in the run's folder for `wandb sync`; default: what WANDB_MODE says, else online."""


TrackerConfig = TensorBoardConfig | MLflowConfig | WandbConfig
_Tagged = Annotated[TrackerConfig, Field(discriminator="type")]


def _by_name(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


AnyTrackerConfig = Annotated[
    _Tagged, BeforeValidator(_by_name, json_schema_input_type=Literal["tensorboard", "mlflow", "wandb"] | _Tagged)
]
"""Settings of a tracker, or its name alone."""


def check_tracking(trackers: list[TrackerConfig]) -> list[TrackerConfig]:
    """Refuse a tracker that is named twice: its runs would be mixed up.

    Raises:
        ValueError: with its name.
    """
    names = [tracker.type for tracker in trackers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} stands twice; keep one")
    return trackers


_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def missing_package(config: TrackerConfig) -> str | None:
    """What to install for a tracker; None where it is there."""
    package = _PACKAGES[config.type]
    if find_spec(package) is not None:
        return None
    return f"{package} is not installed; run `pip install 'raymix[{config.type}]'`, or leave {config.type} out"
