"""Checks that the Hugging Face hub has what a configuration names, once and within seconds, before libraries ask.

If the hub does not answer, libraries retry for half a minute or longer for every file and end in a traceback. If the
local cache has the files, this process continues with the cache alone and says so.
"""

import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Literal

Kind = Literal["model", "dataset"]

_TIMEOUT_SECONDS = 5.0
_ASKED_FOR: dict[Kind, str] = {"model": "config.json", "dataset": "README.md"}
_NAMES: dict[Kind, str] = {"model": "model", "dataset": "data set"}
_GIVEN_UP: list[str] = []
"""Why this process continues with the cache alone, if it does: HF_HUB_OFFLINE is then its own wish, not the user's."""
_LOGIN = "log in (`hf auth login`, or a token in HF_TOKEN)"


@lru_cache
def reach_hub(kind: Kind, name: str, revision: str | None = None) -> str | None:
    """Make sure that a name on the hub can be read, from there or from the local cache.

    Returns:
        A line to show if the hub does not answer and the cache is used instead; None if it answers, or if
        HF_HUB_OFFLINE asks for the cache.

    Raises:
        ValueError: the hub does not have it, denies access, or cannot be reached and the cache does not have it.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    what = f"the {_NAMES[kind]} {name!r}"
    cached = _is_cached(kind, name, revision)
    if constants.HF_HUB_OFFLINE:
        if cached:
            return None
        if _GIVEN_UP:
            raise ValueError(_not_cached(kind, what, _GIVEN_UP[0]))
        raise ValueError(
            f"{what} is not in the local cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids asking the hub; "
            "unset HF_HUB_OFFLINE, fill the cache, or give a local folder"
        )
    try:
        url = hf_hub_url(name, _ASKED_FOR[kind], repo_type=kind, revision=revision)
        get_hf_file_metadata(url, timeout=_TIMEOUT_SECONDS)
        return None
    except errors.HFValidationError as error:
        raise ValueError(
            f"{what} is neither a folder on this machine nor a name on the hub, which is written owner/name"
        ) from error
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        raise ValueError(f"{what} is gated: accept its terms at {page}, and {_LOGIN} with that account") from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"the hub ({constants.ENDPOINT}) has no {_NAMES[kind]} {name!r} that you may see; fix the name, give an "
            f"existing local folder, or, if it is private, {_LOGIN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"{what} has no revision {revision!r} on the hub; name a branch, tag or commit of it"
        ) from error
    except errors.EntryNotFoundError as error:
        if kind == "dataset":  # a data set need not have a README
            return None
        raise ValueError(f"{what} has no {_ASKED_FOR[kind]} on the hub, so transformers cannot load it") from error
    except Exception as error:  # network errors have no common base class
        return _use_cache(kind, what, cached, _reason(error))


def _use_cache(kind: Kind, what: str, cached: bool, reason: str) -> str:
    """Continue with the local cache alone."""
    from huggingface_hub import constants

    place = f"the hub ({constants.ENDPOINT}) {reason}"
    if not cached:
        raise ValueError(_not_cached(kind, what, place))
    _GIVEN_UP.append(place)
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if datasets := sys.modules.get("datasets"):
        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True
    return f"{place}; {what} and all others are taken from the local cache ({constants.HF_HUB_CACHE})"


def _not_cached(kind: Kind, what: str, place: str) -> str:
    from huggingface_hub import constants

    no_folder = f"there is no folder of that name in {Path.cwd()}, " if kind == "model" else ""
    return (
        f"{what} cannot be read: {no_folder}{place}, and it is not in the local cache ({constants.HF_HUB_CACHE}); give "
        "a local folder, fix the network (or HF_ENDPOINT), or fill the cache from a machine with access (`hf download`)"
    )


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"answers with status {status}"
    if "Timeout" in type(error).__name__ or "timed out" in str(error):
        return f"does not answer within {_TIMEOUT_SECONDS:g} s"
    return f"cannot be reached ({' '.join(str(error).split()) or type(error).__name__})"


def _is_cached(kind: Kind, name: str, revision: str | None) -> bool:
    from huggingface_hub import constants, try_to_load_from_cache

    if kind == "model":
        try:
            return isinstance(try_to_load_from_cache(name, _ASKED_FOR[kind], revision=revision), str)
        except ValueError:  # not a valid name
            return False
    prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return downloaded.is_dir() or (Path(prepared) / name.replace("/", "___").lower()).is_dir()
