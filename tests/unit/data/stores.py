"""Token stores in memory whose every token tells its domain and row, so that a wrong row is seen in the tensors."""

from pathlib import Path

import numpy as np

from workers.contracts import DomainWeights
from workers.data.schedule import DomainRows, Schedule
from workers.data.store import TokenStore

MAX_LENGTH = 12
ROWS_APART = 1000


def make_store(index: int, num_rows: int) -> TokenStore:
    """The store of the domain with this index; row r is filled with `index * ROWS_APART + r`."""
    rows = np.arange(num_rows)
    lengths = (3 + (rows * 7 + index) % (MAX_LENGTH - 2)).astype(np.int32)
    is_used_RL = np.arange(MAX_LENGTH) < lengths[:, None]
    input_ids_RL = np.where(is_used_RL, index * ROWS_APART + rows[:, None], -1).astype(np.int32)
    position_ids_RL = np.where(is_used_RL, np.arange(MAX_LENGTH), 0).astype(np.uint16)
    loss_mask_RL = is_used_RL & (np.arange(MAX_LENGTH) > 0)
    return TokenStore(
        folder=Path(f"domain-{index}"),
        fingerprint=f"{index}",
        num_rows=num_rows,
        num_examples=num_rows,
        num_tokens=int(lengths.sum()),
        num_loss_tokens=int(loss_mask_RL.sum()),
        max_length=MAX_LENGTH,
        input_ids=input_ids_RL,
        position_ids=position_ids_RL,
        loss_mask=loss_mask_RL,
        row_lengths=lengths,
        row_loss_tokens=loss_mask_RL.sum(axis=1).astype(np.int32),
        row_examples=np.ones(num_rows, dtype=np.int32),
        manifest={},
    )


def make_schedule(sizes: dict[str, int], rows_per_step: int, seed: int = 0) -> Schedule:
    """A schedule over domains of these sizes, one example a row."""
    return Schedule(seed, [DomainRows(name, num_rows, 1.0) for name, num_rows in sizes.items()], rows_per_step)


def weights(version: int, effective_step: int, **shares: float) -> DomainWeights:
    """A version; the shares are scaled to sum to 1."""
    total = sum(shares.values())
    return DomainWeights(
        version=version,
        effective_step=effective_step,
        shares={name: share / total for name, share in shares.items()},
        reason="algorithm" if version else "initial",
        by="test",
    )
