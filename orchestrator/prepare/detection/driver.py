"""`raymix detect`, and `detected` in a configuration turned into shares before its run starts."""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from orchestrator.cluster.resources import check_resources
from orchestrator.cluster.session import ray_session
from orchestrator.config.run import RunConfig
from orchestrator.prepare.detection.distribution import Distribution
from orchestrator.prepare.detection.rounds import find_distribution, known_distribution
from orchestrator.prepare.detection.view import distribution_view, write_page
from orchestrator.views.quiet import chatter_to
from workers.durable import write_durably

_SHARE_KEYS = ("initial", "shares")  # of mixing; no algorithm has both


def detect(config: RunConfig, output: Path, console: Console) -> None:
    """Detect the distribution of the configuration's model, or find it where it was detected before.

    Writes `output` and, beside it, a page with the suffix .html.
    """
    distribution = known_distribution(config) or _detect_on_cluster(config)
    page = output.with_suffix(".html")
    _keep(distribution, output, page)
    console.print(distribution_view(distribution))
    console.print(f"distribution: {output}, page: {page}", highlight=False, markup=False)


def _detect_on_cluster(config: RunConfig) -> Distribution:
    with chatter_to(config.output_dir / "detection" / "raymix.log") as quiet_console:
        quiet_console.print(f"detection: starting Ray ({config.cluster.address})", markup=False)
        with ray_session(config.cluster):
            check_resources(config.cluster)
            return find_distribution(config, quiet_console)


def with_detected_shares(config: RunConfig, console: Console) -> RunConfig:
    """The configuration with shares by domain where its mixing says `detected` or names a file of shares.

    The distribution used is kept as distribution.json in the run's folder, and a run that goes on uses that one. To be
    called inside a Ray session.
    """
    given = _unresolved(config)
    if given is None:
        return config
    kept = config.folder / "distribution.json"
    if not kept.exists():
        config.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(given, Path):
            write_durably(kept, given.read_bytes())
        else:
            console.print("initial shares: detecting what the base model knows")
            _keep(find_distribution(config, console), kept, config.folder / "distribution.html")
    return _with_shares(config, json.loads(kept.read_text())["shares"])


def with_known_shares(config: RunConfig) -> RunConfig | None:
    """The same without detecting anything, or writing: None where the shares are still to be detected."""
    given = _unresolved(config)
    if given is None:
        return config
    if isinstance(given, Path):
        return _with_shares(config, json.loads(given.read_text())["shares"])
    known = known_distribution(config)
    return None if known is None else _with_shares(config, known.shares)


def _unresolved(config: RunConfig) -> Path | str | None:
    """The word, or the file, that stands for shares by domain."""
    for key in _SHARE_KEYS:
        given = getattr(config.mixing, key, None)
        if given == "detected" or isinstance(given, Path):
            return given
    return None


def _with_shares(config: RunConfig, shares: Mapping[str, float]) -> RunConfig:
    by_domain = {name: shares[name] for name in config.trained_domains}
    keys = [key for key in _SHARE_KEYS if hasattr(config.mixing, key)]
    return config.replaced(mixing=config.mixing.replaced(**dict.fromkeys(keys, by_domain)))


def _keep(distribution: Distribution, path: Path, page: Path) -> None:
    write_page(distribution, page)
    distribution.write(path)  # last: it says that the rest is there
