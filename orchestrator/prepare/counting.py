"""Counts of every domain from its token stores, including overlaps. Reads manifests and hashes, no tokens."""

from collections.abc import Mapping

from orchestrator.prepare.token_stores import DomainStores, training_stores
from orchestrator.runs.data_record import DomainCounts, StoreCounts
from workers.data.overlap import find_shared, find_within
from workers.data.report import Report
from workers.data.store import TokenStore


def count_domains(stores: Mapping[str, DomainStores]) -> dict[str, DomainCounts]:
    trained = training_stores(stores)
    leaks = find_within(
        {name: domain.eval.prompts for name, domain in stores.items()},
        {name: store.prompts for name, store in trained.items()},
    )
    shared = find_shared({name: store.distinct_examples for name, store in trained.items()})
    counts = {}
    for name, domain in stores.items():
        of_eval = Report(**domain.eval.manifest["report"])
        of_train = Report(**domain.train.manifest["report"]) if domain.train else Report()
        if not domain.has_eval_files and domain.train is None:  # evaluated on rows of its training files
            of_train, of_eval = of_eval, of_train
        counts[name] = DomainCounts(
            train=_count_store(domain.train) if domain.train else None,
            eval=_count_store(domain.eval),
            train_files=of_train,
            eval_files=of_eval,
            num_leaked_prompts=leaks[name].num_any,
            leaked_prompts=leaks[name].by_domain,
            num_shared_examples=shared[name].num_any if name in shared else 0,
            shared_examples=shared[name].by_domain if name in shared else {},
        )
    return counts


def _count_store(store: TokenStore) -> StoreCounts:
    return StoreCounts(
        num_examples=store.num_examples,
        num_distinct=store.manifest["num_distinct_examples"],
        num_prompts=store.manifest["num_prompts"],
        num_rows=store.num_rows,
        num_tokens=store.num_tokens,
        num_targets=store.num_loss_tokens,
    )
