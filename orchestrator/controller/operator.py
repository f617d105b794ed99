"""The requests that a user can send to a running controller, how they reach it, and the resulting shares.

set      set the shares of some domains; the others keep their proportions. The algorithm continues from there.
pin      the same, or the current share, permanently: the algorithm moves the rest.
release  return pinned domains (all if none is named) to the algorithm.
pause    keep the shares unchanged; evaluations are still counted.
resume   apply the algorithm's answers again.

A request is a file in the run's folder, handled before the next step; anyone who may write there may send one:

    requests/<id>.json       ControlRequest

A file needs no connection to the cluster and waits if the run is not running. It is removed once the journal has the
resulting version, which names the request.
"""

import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.mixing.base import Shares, normalise
from workers.bounded import read_model
from workers.contracts import SHARE_SUM_TOLERANCE, DomainWeights
from workers.durable import remove, write_durably
from workers.settings import Settings

_ASKED_SUM_TOLERANCE = 1e-6  # people write 0.333333
_FOLDER = "requests"


class ControlRequest(Settings):
    """One change that a user requests."""

    kind: Literal["set", "pin", "release", "pause", "resume"]
    """What to do."""
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Share of each domain to set or pin."""
    domains: list[str] = Field(default_factory=list)
    """Domains to pin at their current share, or to release; if empty, all pinned ones are released."""
    by: Annotated[str, Field(min_length=1, max_length=100)]
    """Who requests it."""
    why: Annotated[str, Field(max_length=1000)] = ""
    """The reason."""

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if self.kind == "set" and (self.domains or not self.shares):
            raise ValueError("set needs a share for each domain that it names, e.g. law=0.4")
        if self.kind == "pin" and not (self.domains or self.shares):
            raise ValueError("pin needs a domain, e.g. law or law=0.4")
        if self.kind not in ("set", "pin") and self.shares:
            raise ValueError(f"{self.kind} takes no shares")
        if self.kind in ("pause", "resume") and self.domains:
            raise ValueError(f"{self.kind} applies to the whole run, not to {self.domains}")
        return self


def apply_request(request: ControlRequest, now: DomainWeights) -> tuple[Shares, list[str], bool]:
    """Shares, pinned domains, and whether the algorithm is paused, after a request.

    ValueError if it names an unknown domain, or if its shares and the pinned ones cannot sum to 1.
    """
    names = list(now.shares)
    if unknown := sorted({*request.shares, *request.domains} - set(names)):
        raise ValueError(f"{unknown} are not trained domains of this run; choose from {names}")
    pinned = set(now.pinned)
    if request.kind == "pin":
        pinned |= {*request.shares, *request.domains}
    elif request.kind == "release":
        pinned -= set(request.domains or names)
    paused = {"pause": True, "resume": False}.get(request.kind, now.paused)
    shares = dict(now.shares)
    if request.shares:
        fixed = {name: now.shares[name] for name in {*now.pinned, *request.domains}} | request.shares
        shares = fill_up(fixed, now.shares)
    return shares, [name for name in names if name in pinned], paused


def hold_pinned(shares: Mapping[str, float], now: DomainWeights) -> Shares:
    """The algorithm's answer with the pinned domains at their current share; the rest keeps its proportions."""
    return fill_up({name: now.shares[name] for name in now.pinned}, shares) if now.pinned else dict(shares)


def fill_up(fixed: Mapping[str, float], others: Mapping[str, float]) -> Shares:
    """Fixed shares, and the rest divided among the other domains in proportion to `others`, or evenly if these are 0.

    ValueError if the fixed shares sum to more than 1, or to less with no domain left to take the rest.
    """
    total = math.fsum(fixed.values())
    free = {name: share for name, share in others.items() if name not in fixed}
    if total > 1.0 + _ASKED_SUM_TOLERANCE:
        raise ValueError(f"shares of {', '.join(fixed)} sum to {total:.6g}, more than 1; lower or release some")
    if not free and total < 1.0 - _ASKED_SUM_TOLERANCE:
        raise ValueError(f"shares of {', '.join(fixed)} sum to {total:.6g}, and no domain is left to take the rest")
    rest = max(1.0 - total, 0.0)
    if rest <= SHARE_SUM_TOLERANCE or not free:
        return normalise({name: fixed.get(name, 0.0) for name in others})
    parts = normalise(free) if any(free.values()) else dict.fromkeys(free, 1.0 / len(free))
    return {name: fixed[name] if name in fixed else rest * parts[name] for name in others}


def describe_change(version: DomainWeights) -> str:
    held = [f"{', '.join(version.pinned)} pinned"] if version.pinned else []
    held += ["algorithm paused"] if version.paused else []
    shares = ", ".join(f"{name} {share:.3g}" for name, share in version.shares.items())
    because = f" ({version.why})" if version.why else ""
    return f"{version.by}: {'; '.join([shares, *held])}{because}"


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
    return sorted(path.stem for path in (run_folder / _FOLDER).glob("[0-9]*.json"))


def read_request(run_folder: Path, request_id: str) -> ControlRequest:
    """A waiting request; OSError or ValueError if the file is not one."""
    return read_model(run_folder / _FOLDER / f"{request_id}.json", ControlRequest)


def forget_request(run_folder: Path, request_id: str) -> None:
    remove(run_folder / _FOLDER / f"{request_id}.json")


def newest_version(run_folder: Path) -> DomainWeights:
    """The latest version of the weights; ValueError if there is none."""
    return read_model(_version_files(run_folder)[-1], DomainWeights)


def read_versions(run_folder: Path) -> list[DomainWeights]:
    """All versions of the weights, oldest first; ValueError if there are none."""
    return [read_model(path, DomainWeights) for path in _version_files(run_folder)]


def _version_files(run_folder: Path) -> list[Path]:
    paths = sorted((run_folder / "weights").glob("[0-9]*.json"))
    if not paths:
        raise ValueError(f"{run_folder}: no weights yet; is this the folder of a run that has started to train?")
    return paths
