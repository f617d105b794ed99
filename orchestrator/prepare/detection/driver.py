"""`raymix detect`, and replacing `detected` in a configuration by shares before its run starts."""

from pathlib import Path

from rich.console import Console

from orchestrator.cluster.resources import check_resources
from orchestrator.cluster.session import ray_session
from orchestrator.config.run import RunConfig
from orchestrator.mixing.needs import DISTRIBUTION, Measured, Numbers, Source
from orchestrator.prepare.detection.quantification import DetectedDistribution
from orchestrator.prepare.detection.rounds import find_distribution, known_distribution
from orchestrator.prepare.detection.view import distribution_view, write_page
from orchestrator.views.console import redirect_output
from workers.durable import write_durably


def detect(config: RunConfig, output: Path, console: Console) -> None:
    """Detect the distribution of the configuration's model, or read it if it was detected before.

    Writes `output` and, next to it, a page with the suffix .html.
    """
    distribution = known_distribution(config)
    if distribution is None:
        with redirect_output(config.output_dir / "detection" / "raymix.log") as quiet_console:
            quiet_console.print(f"detection: starting Ray ({config.cluster.address})", markup=False)
            with ray_session(config.cluster):
                check_resources(config.cluster)
                distribution = find_distribution(config, quiet_console)
    page = output.with_suffix(".html")
    _keep(distribution, output, page)
    console.print(distribution_view(distribution))
    console.print(f"distribution: {output}, page: {page}", highlight=False, markup=False)


def with_detected_shares(config: RunConfig, console: Console) -> RunConfig:
    """The configuration with shares by domain if its mixing has `detected` or a file of shares.

    The distribution is kept as distribution.json in the run's folder, which a resumed run uses. To be called inside a
    Ray session.
    """
    source = config.mixing.needs.distribution
    if source is None:
        return config
    kept = config.folder / "distribution.json"
    if not kept.exists():
        config.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            write_durably(kept, source.read_bytes())
        else:
            console.print("initial shares: detecting what the base model knows")
            _keep(find_distribution(config, console), kept, config.folder / "distribution.html")
    return _with_shares(config, source, DISTRIBUTION.read(kept))


def with_known_shares(config: RunConfig) -> RunConfig | None:
    """The same without detecting or writing anything; None if the shares have not been detected yet."""
    source = config.mixing.needs.distribution
    if source is None:
        return config
    if isinstance(source, Path):
        return _with_shares(config, source, DISTRIBUTION.read(source))
    known = known_distribution(config)
    return None if known is None else _with_shares(config, source, known.shares)


def _with_shares(config: RunConfig, source: Source, shares: Numbers) -> RunConfig:
    by_domain = {name: shares[name] for name in config.trained_domains}
    return config.replaced(mixing=config.mixing.with_measured(Measured(distributions={source: by_domain})))


def _keep(distribution: DetectedDistribution, path: Path, page: Path) -> None:
    write_page(distribution, page)
    distribution.write(path)  # last: it marks the rest as complete
