"""What a base model is called where others read it: its name on the hub, or its folder's; never a path."""

from pathlib import Path

_OF_A_RUN = ("model", "best")  # folders that every run has, whose names alone say nothing


def is_hub_name(path: str) -> bool:
    """Whether `model.path` names a model of the hub, not a folder of this machine."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).exists()


def base_name(path: str) -> str:
    """The hub's name, or the name of the folder; `run-model` for the model of a run, which is no name of the hub."""
    if is_hub_name(path):
        return path
    folder = Path(path).expanduser().resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name in _OF_A_RUN else folder.name
