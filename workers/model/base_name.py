"""The public name of a base model: its name on the hub, or that of its folder; never a path."""

from pathlib import Path

_OF_A_RUN = ("model", "best")  # folders of every run, whose names alone mean nothing


def is_hub_name(path: str) -> bool:
    """Whether `model.path` names a model on the hub, not a folder on this machine."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def base_name(path: str) -> str:
    """The hub's name, or the name of the folder; `run-model` for the model of a run."""
    if is_hub_name(path):
        return path
    folder = Path(path).expanduser().resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name in _OF_A_RUN else folder.name
