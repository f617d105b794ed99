"""What the test of the row losses runs on every rank."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.integration.zero_cases import ArrayStore, Case, build_engine, evaluation_stores


def stores_with_a_row_of_one_loss_token() -> dict[str, ArrayStore]:
    """The evaluation stores, but in the last row of the first domain the first loss token alone counts."""
    stores = evaluation_stores()
    loss_mask = stores["long"].loss_mask.copy()
    loss_mask[-1, loss_mask[-1].argmax() + 1 :] = False
    return {**stores, "long": replace(stores["long"], loss_mask=loss_mask)}


def write_losses(case: Case, path: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Write evaluation.json; the sums of a whole evaluation beside it."""
    from workers.evaluation import build_evaluation_batches, evaluate
    from workers.row_losses import write_row_losses

    engine = build_engine(case)
    stores: Any = stores_with_a_row_of_one_loss_token()
    batches = build_evaluation_batches(stores, 8, 2, engine.rank, engine.world_size)
    write_row_losses(engine, batches, list(stores), path)
    sums = evaluate(engine, batches, list(stores))
    engine.destroy()
    return sums
