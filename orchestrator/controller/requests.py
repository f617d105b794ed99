"""How a user's request reaches a running controller: as a file in the run's folder, handled before the next step.

    requests/<id>.json       ControlRequest; anyone who may write to the run's folder may send one

A file needs no connection to the cluster and waits if the run is not running. It is removed once the journal has the
resulting version, which names the request.
"""

import secrets
import time
from pathlib import Path

from pydantic import ValidationError

from orchestrator.controller.operator import ControlRequest, apply_request
from workers.contracts import DomainWeights
from workers.durable import write_durably

_FOLDER = "requests"


def submit_request(run_folder: Path, request: ControlRequest) -> str:
    """Send a request and return its id.

    ValueError if the run is finished or has not started, or if the request does not fit the current shares.
    """
    if any((run_folder / name).exists() for name in ("summary.json", "stopped.json")):
        raise ValueError(f"{run_folder}: this run is finished, so its weights cannot change")
    apply_request(request, newest_version(run_folder))
    request_id = f"{time.time_ns():020d}-{secrets.token_hex(4)}"  # sorts in the order of submission
    folder = run_folder / _FOLDER
    folder.mkdir(exist_ok=True)
    write_durably(folder / f"{request_id}.json", request.model_dump_json(indent=1).encode())
    return request_id


def waiting_requests(run_folder: Path) -> list[str]:
    """Ids of the requests not handled yet, oldest first."""
    try:
        return sorted(path.stem for path in (run_folder / _FOLDER).glob("[0-9]*.json"))
    except FileNotFoundError:
        return []


def read_request(run_folder: Path, request_id: str) -> ControlRequest:
    """A waiting request; ValueError if the file is not one."""
    try:
        return ControlRequest.model_validate_json((run_folder / _FOLDER / f"{request_id}.json").read_bytes())
    except ValidationError as error:
        raise ValueError(f"{run_folder / _FOLDER / request_id}.json: {error.errors()[0]['msg']}") from None


def forget_request(run_folder: Path, request_id: str) -> None:
    (run_folder / _FOLDER / f"{request_id}.json").unlink(missing_ok=True)


def newest_version(run_folder: Path) -> DomainWeights:
    """The latest version of the weights; ValueError if there is none."""
    return _read_version(_version_files(run_folder)[-1])


def read_versions(run_folder: Path) -> list[DomainWeights]:
    """All versions of the weights, oldest first; ValueError if there are none."""
    return [_read_version(path) for path in _version_files(run_folder)]


def _version_files(run_folder: Path) -> list[Path]:
    paths = sorted((run_folder / "weights").glob("[0-9]*.json"))
    if not paths:
        raise ValueError(f"{run_folder}: no weights yet; is this the folder of a run that has started to train?")
    return paths


def _read_version(path: Path) -> DomainWeights:
    return DomainWeights.model_validate_json(path.read_bytes())
