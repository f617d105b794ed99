"""The data of runs: token stores of every domain, for a base model whose files were checked."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.prepare.token_stores import DomainStores, cached_tokenizer, prepare_stores
from orchestrator.views.preparation import PreparationView
from workers.config.data import DomainConfig
from workers.hub import reach_hub
from workers.model.base_config import check_model_path, is_hub_name, load_text_config, reach_model
from workers.model.tokenizer import check_token_ids


class PreparedData:
    """The token stores of all runs of one command; stores that runs share are prepared once.

    Looking up a store reads all files of its domain, which for many small runs would take longer than their training.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._found: dict[str, DomainStores] = {}
        self._reported: set[str] = set()

    def stores(self, config: RunConfig) -> dict[str, DomainStores]:
        """The stores of every domain of a run, built or found in the cache.

        ValueError if the base model cannot be loaded, or if a domain cannot be used with it.
        """
        keys = _keys(config)
        missing = {name: domain for name, domain in config.domains.items() if keys[name] not in self._found}
        if missing:
            self._found |= {keys[name]: pair for name, pair in self._prepare(config, missing).items()}
        return {name: self._found[key] for name, key in keys.items()}

    def is_new(self, config: RunConfig) -> bool:
        """Whether this is the first call for a run with this data."""
        key = " ".join(_keys(config).values())
        is_new = key not in self._reported
        self._reported.add(key)
        return is_new

    def _prepare(self, config: RunConfig, domains: Mapping[str, DomainConfig]) -> dict[str, DomainStores]:
        """The token stores of these domains, after a check of the base model's files."""
        for note in _hub_notes(config, domains):
            self._console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
        model = config.model.with_absolute_paths()
        check_model_path(model)
        # Imports torch for seconds, which a finished run does not need, nor one whose model is not there.
        from workers.model.loading import check_model

        given = {name: domain.with_absolute_paths() for name, domain in domains.items()}
        on_gpu, training = config.cluster.gpus_per_worker > 0, config.training
        base = check_model(model, on_gpu, training)
        with PreparationView(self._console) as view:
            stores = prepare_stores(given, config.data, model, config.cache_dir, view.update)
        num_embeddings = (
            base.num_embeddings if base is not None else getattr(load_text_config(model), "vocab_size", None)
        )
        if num_embeddings is not None:
            of_domains = {name: [store for store in (pair.train, pair.eval) if store] for name, pair in stores.items()}
            check_token_ids(of_domains, cached_tokenizer(model, config.cache_dir.resolve()), num_embeddings)
        return stores


def _keys(config: RunConfig) -> dict[str, str]:
    """By domain, everything that its stores depend on except the content of its files."""
    shared = f"{config.model.model_dump_json()} {config.data.model_dump_json()} {config.cache_dir}"
    return {name: f"{name} {domain.model_dump_json()} {shared}" for name, domain in config.domains.items()}


def _hub_notes(config: RunConfig, domains: Mapping[str, DomainConfig]) -> list[str]:
    """A note for each hub name that is only available from the local cache now."""
    notes: list[str | None] = []
    if is_hub_name(config.model.path):
        notes.append(reach_model(config.model))
    for name, domain in domains.items():
        if domain.hub is not None and not Path(domain.hub.path).exists():
            try:
                notes.append(reach_hub("dataset", domain.hub.path, domain.hub.revision))
            except ValueError as error:
                raise ValueError(f"domain {name!r}: {error}") from error
    return [note for note in notes if note]
