"""The importance that CoFiTune's soft mask needs: measured before training, one Ray task per domain, and cached.

Each domain's scores are cached by a fingerprint of all that they depend on, so that another normalisation, merge or
choice of domains measures nothing again. The resulting importance is cached under a digest of its content, which is the
path in plans (so that runs with equal importance have equal plans), and copied to the run's folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cluster.pool import as_completed
from orchestrator.cluster.session import check_resources
from orchestrator.config.run import RunConfig
from orchestrator.prepare.token_stores import DomainStores
from workers.config.model import ModelConfig
from workers.data.store import TokenStore
from workers.fingerprint import fingerprint, fingerprint_bytes
from workers.strategies.cofitune import CoFiTuneConfig, ImportanceConfig
from workers.strategies.cofitune.importance import (
    KINDS,
    Importance,
    Scores,
    merge_importance,
    normalise_scores,
    read_importance,
    read_scores,
    write_importance,
    write_scores,
)

_SCORES_VERSION = 2
"""Incremented whenever the same settings would give other scores."""
FILE = "importance.safetensors"


def with_importance(
    config: RunConfig, stores: Mapping[str, DomainStores], console: Console, *, in_folder: bool = True
) -> RunConfig:
    """The run with a file of importance in its strategy; unchanged if nothing is masked.

    With `in_folder`, the file is also copied to the run's folder, and a resumed run uses that copy.
    """
    strategy = config.training.strategy
    if not isinstance(strategy, CoFiTuneConfig) or strategy.mask == "none":
        return config
    kept, settings = config.folder / FILE, strategy.importance
    about: dict[str, Any]
    if in_folder and kept.exists():
        importance, about = read_importance([kept]), {"copy_of": str(kept)}
    elif settings.files:
        importance, about = read_importance(settings.files), {"files": [str(path) for path in settings.files]}
    else:
        about = {"model": config.model.path, "seed": config.seed, **settings.model_dump(mode="json", exclude={"files"})}
        importance = _measure(config, settings, stores, console)
    if in_folder and not kept.exists():
        config.folder.mkdir(parents=True, exist_ok=True)
        write_importance(kept, importance, about)
    found = settings.replaced(files=[_in_cache(config, importance, about)])
    return config.replaced(training=config.training.replaced(strategy=strategy.replaced(importance=found)))


def _measure(
    config: RunConfig, settings: ImportanceConfig, stores: Mapping[str, DomainStores], console: Console
) -> Importance:
    """Importance measured on the training rows of the domains, in parallel."""
    trained = {name: pair.train for name, pair in stores.items() if pair.train is not None}
    names = settings.domains or list(trained)
    files = {name: _scores_file(config, settings, name, trained[name]) for name in names}
    missing = {name: path for name, path in files.items() if not path.exists()}
    if missing:
        check_resources(config.cluster.replaced(num_workers=1))
        console.print(f"importance of heads and neurons: measuring the base model on {len(missing)} domains")
    import ray

    cluster, model = config.cluster, config.model.with_absolute_paths()
    task = ray.remote(num_cpus=cluster.cpus_per_worker, num_gpus=cluster.gpus_per_worker)(_measure_domain)
    how = (settings, config.training.micro_batch_size, config.seed)
    waiting = {
        task.remote(model, trained[name].folder.resolve(), *how, path.resolve()): name for name, path in missing.items()
    }
    for _ in as_completed(waiting, "importance on domain"):
        pass
    scores = [read_scores(path) for path in files.values()]
    sets = [Scores.pooled(scores)] if settings.merge == "pool" else scores
    normalised = [
        normalise_scores(s.signed if settings.normalisation == "zscore" else s.absolute, settings.normalisation)
        for s in sets
    ]
    return merge_importance(normalised)


def _measure_domain(
    model: ModelConfig, store: Path, settings: ImportanceConfig, rows_per_pass: int, seed: int, path: Path
) -> None:
    from workers.model.importance import measure_scores

    path.parent.mkdir(parents=True, exist_ok=True)
    write_scores(path, measure_scores(model, store, settings.num_rows, rows_per_pass, settings.dropout, seed))


def _scores_file(config: RunConfig, settings: ImportanceConfig, name: str, store: TokenStore) -> Path:
    identity = {
        "version": _SCORES_VERSION,
        "model": config.model.with_absolute_paths().model_dump(mode="json", exclude={"chat_template"}),
        "store": store.fingerprint,
        "settings": settings.model_dump(mode="json", include={"num_rows", "dropout"}),
        "rows_per_pass": config.training.micro_batch_size,  # dropout is drawn pass by pass
        "seed": config.seed,
    }
    return config.output_dir / "importance" / f"{name}-{fingerprint(identity)}.safetensors"


def _in_cache(config: RunConfig, importance: Importance, about: Mapping[str, Any]) -> Path:
    """The importance in a file whose name is a digest of its content."""
    content = b"".join(importance[kind].tobytes() for kind in KINDS)
    path = config.output_dir.resolve() / "importance" / f"merged-{fingerprint_bytes(content)}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_importance(path, importance, about)
    return path
