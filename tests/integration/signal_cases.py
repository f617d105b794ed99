"""What the tests of the signals run on every rank."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from tests.integration.zero_cases import NUM_DOMAINS, Case, build_engine, global_batch, tokenizer
from workers.data.store import TokenStore
from workers.signals.meter import SignalPool

SIGNALS = ("hidden_similarity", "hidden_similarity:code", "perplexity_ratio", "perplexity_ratio:sequence")
NUM_STEPS = 4
STEPS_MEASURED = (NUM_STEPS, NUM_STEPS + 7)


def signal_stores() -> dict[str, TokenStore]:
    """Three domains of packed rows; some examples have no loss token."""
    stores = {}
    for name, step, num_rows in (("math", 21, 8), ("code", 22, 7), ("law", 23, 2)):
        batch = global_batch(step)
        ids, positions = batch.input_ids_BL[:num_rows], batch.position_ids_BL[:num_rows]
        lengths = (ids != 0).sum(axis=1).astype(np.int32)
        num_examples = (positions == 0).sum(axis=1) - (ids.shape[1] - lengths)
        stores[name] = TokenStore(
            folder=Path(name),
            fingerprint=name,
            num_rows=num_rows,
            num_examples=int(num_examples.sum()),
            num_tokens=int(lengths.sum()),
            num_loss_tokens=int(batch.loss_mask_BL[:num_rows].sum()),
            max_length=ids.shape[1],
            input_ids=ids,
            position_ids=positions,
            loss_mask=batch.loss_mask_BL[:num_rows],
            row_lengths=lengths,
            row_loss_tokens=batch.loss_mask_BL[:num_rows].sum(axis=1).astype(np.int32),
            row_examples=num_examples.astype(np.int32),
            manifest={},
        )
    return stores


def signal_pool() -> SignalPool:
    """An odd number of passes on two ranks, and not every row at every evaluation."""
    return SignalPool(signal_stores(), seed=5, num_examples=6, micro_batch_size=2)


def measure_signals(case: Case, folder: Path) -> dict[str, Any]:
    """All signals of the base model, after some steps, and from what was kept of the base model; exports the model."""
    from workers.export import export_model, held_out_examples
    from workers.signals.meter import SignalMeter

    engine = build_engine(case)
    meter = SignalMeter(SIGNALS, signal_pool(), engine, folder, num_steps_done=0)
    at_base = [meter.measure(step) for step in (0, 50)]
    for step in range(1, NUM_STEPS + 1):
        engine.forward_backward(global_batch(step, engine.data_rank, engine.num_data_ranks), NUM_DOMAINS)
        engine.step(5e-3)
    trained = [meter.measure(step) for step in STEPS_MEASURED]
    resumed = SignalMeter(SIGNALS, signal_pool(), engine, folder, num_steps_done=NUM_STEPS).measure(NUM_STEPS)
    errors = []
    for kept, pool in ((folder / "elsewhere", signal_pool()), (folder, SignalPool(signal_stores(), 6, 6, 2))):
        try:
            SignalMeter(SIGNALS, pool, engine, kept, NUM_STEPS)
        except (ValueError, RuntimeError) as error:
            errors.append(str(error))
    similarity_alone = SignalMeter(SIGNALS[:1], signal_pool(), engine, folder / "unused", NUM_STEPS).measure(NUM_STEPS)
    export_model(engine, tokenizer(), folder / "model", held_out_examples([global_batch(99)]), end_id=None)
    engine.destroy()
    return {
        "at_base": at_base,
        "trained": trained,
        "resumed": resumed,
        "errors": errors,
        "similarity_alone": similarity_alone,
    }


def examples_of(step: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Domain, token ids and loss mask of each example that is drawn for a step, cut out of its row."""
    pool = signal_pool()
    for batch in pool.draw(step):
        store = pool.stores[batch.domain]
        for row in batch.rows:
            end = int(store.row_lengths[row])
            starts = np.flatnonzero(store.position_ids[row, :end] == 0)
            for start, stop in zip(starts, [*starts[1:], end], strict=True):
                yield pool.names[batch.domain], store.input_ids[row, start:stop], store.loss_mask[row, start:stop]


def plain_signals(base: Path, trained: Path, step: int) -> dict[str, dict[str, float]]:
    """The same by transformers alone: each example a sequence of its own."""
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (base, trained)]
    names = list(signal_stores())
    embeddings: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    ratios: dict[str, dict[str, list[float]]] = {span: {name: [] for name in names} for span in ("", ":sequence")}
    for name, ids, mask in examples_of(step):
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            outputs = [model(input_ids=tokens, use_cache=False, output_hidden_states=True) for model in models]
        embeddings[name].append(outputs[1].hidden_states[-1][0].mean(dim=0))
        nats = [-out.logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0] for out in outputs]
        for span, counts in (("", torch.from_numpy(mask[1:])), (":sequence", torch.ones(len(ids) - 1, dtype=bool))):
            if counts.any():
                perplexities = [float(n[counts].mean().exp()) for n in nats]
                ratios[span][name].append(perplexities[1] / perplexities[0])
    z = [torch.stack(embeddings[name]).mean(dim=0) for name in names]
    cosines = [[float(torch.cosine_similarity(a, b, dim=0)) for b in z] for a in z]
    return {
        "hidden_similarity": {name: float(np.mean(row)) for name, row in zip(names, cosines, strict=True)},
        "hidden_similarity:code": {name: row[1] for name, row in zip(names, cosines, strict=True)},
        **{f"perplexity_ratio{span}": {n: float(np.mean(v)) for n, v in by.items()} for span, by in ratios.items()},
    }


def train_twice(config_path: Path) -> None:
    """One training in one go, and the same in another folder, ended at step 6 and taken up from its checkpoint."""
    from orchestrator.config.load import load_config
    from orchestrator.mixing import Measured, resolve_mixing
    from orchestrator.prepare.token_stores import prepare_stores
    from orchestrator.training.driver import train_in_process
    from orchestrator.training.plan import build_plan, domain_sizes
    from workers.training.trainer import Trainer

    os.chdir(config_path.parent)
    config = load_config(config_path)
    stores = prepare_stores(config.domains, config.data, config.model, config.cache_dir, lambda *progress: None)
    measure = Trainer.measure

    def end_at_six(rank: Trainer, step: int) -> None:
        if step == 6:
            raise InterruptedError
        measure(rank, step)

    for name in ("whole", "ended"):
        plan = build_plan(config.model_copy(update={"name": name}), name, stores)
        plan.folder.mkdir(parents=True)
        mixing = resolve_mixing(config.mixing, Measured(), config.trained_domains)
        if name == "ended":
            with suppress(InterruptedError), patch.object(Trainer, "measure", end_at_six):
                train_in_process(plan, mixing, domain_sizes(stores))
        train_in_process(plan, mixing, domain_sizes(stores))
