"""The loss of each held-out example on disk: evaluations/STEP.npz of every evaluation, evaluation.json of the last.

    evaluations/00000600.npz   arrays over the E examples of all domains: `example` (identity, uint64),
                               `loss_sum_nats`, `num_tokens` and `domain`, an index into `domains`; by domain
                               `num_held_out`, the examples of the whole held-out set. Complete or absent.
    evaluation.json            the last of them, for reading: by domain lists with an entry for each example:
                               `row` (in the domain's evaluation store), `example` (its place in that row),
                               `loss_sum_nats` and `num_tokens`

A domain's sums equal those in the feedback of the same step. So the difference of any two evaluations, of one run or of
two runs on the same data, can be paired later (`workers.validation.loss_statistics`).
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from workers.bounded import MAX_EXAMPLES_BYTES, open_regular
from workers.durable import remove, write_durably
from workers.validation.held_out import HeldOutSample
from workers.validation.loss_statistics import ExampleLosses

FOLDER = "evaluations"
Losses = Mapping[str, ExampleLosses]


class EvaluationHistory:
    """The evaluations of a run on disk; the first and the newest one in memory.

    Evaluations after `num_steps_done` are removed, as the lines of metrics.jsonl are.
    """

    def __init__(self, folder: Path, num_steps_done: int) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(exist_ok=True)
        steps = evaluated_steps(folder)
        for step in steps:
            if step > num_steps_done:
                remove(evaluation_path(folder, step))
        kept = [step for step in steps if step <= num_steps_done]
        self.first: Losses | None = read_losses(folder, kept[0]) if kept and kept[0] == 0 else None
        """Of step 0; None if it was not recorded."""
        self.newest: Losses | None = read_losses(folder, kept[-1]) if kept else None
        self.newest_step = kept[-1] if kept else None

    def write(self, step: int, losses: Losses) -> None:
        """Write an evaluation to disk; on one rank only."""
        write_durably(evaluation_path(self._folder.parent, step), _pack(losses))

    def remember(self, step: int, losses: Losses) -> None:
        """Keep this evaluation in memory as the newest."""
        if step == 0:
            self.first = losses
        self.newest, self.newest_step = losses, step


def evaluation_path(run_folder: Path, step: int) -> Path:
    return run_folder / FOLDER / f"{step:08d}.npz"


def evaluated_steps(run_folder: Path) -> list[int]:
    """The steps whose evaluations are on disk, ascending."""
    names = (path.stem for path in (run_folder / FOLDER).glob("*.npz"))
    return sorted(int(name) for name in names if name.isdecimal())


def read_losses(run_folder: Path, step: int) -> dict[str, ExampleLosses]:
    """The evaluation after `step` steps; FileNotFoundError if it does not exist, ValueError if it is damaged."""
    path = evaluation_path(run_folder, step)
    try:
        with open_regular(path, MAX_EXAMPLES_BYTES) as opened, np.load(opened, allow_pickle=False) as file:
            if (size := sum(part.file_size for part in file.zip.infolist())) > MAX_EXAMPLES_BYTES:
                raise ValueError(f"unpacks to {size:,} bytes, and at most {MAX_EXAMPLES_BYTES:,} are read")
            arrays = {name: file[name] for name in file.files}
        domain_E, losses = arrays["domain"], {}
        for d, name in enumerate(arrays["domains"].tolist()):
            part_E = domain_E == d
            losses[name] = ExampleLosses(
                arrays["example"][part_E],
                arrays["loss_sum_nats"][part_E],
                arrays["num_tokens"][part_E].astype(np.int64),
                int(arrays["num_held_out"][d]),
            )
        return losses
    except (KeyError, ValueError, EOFError, IndexError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is damaged: {error}; delete it; differences from it are then shown without an error"
        ) from error


def write_evaluation_json(path: Path, samples: Mapping[str, HeldOutSample], losses: Losses) -> None:
    """Write evaluation.json, in the order of the stores."""
    content = {}
    for name, sample in samples.items():
        order_E = np.lexsort((sample.place_E, sample.row_E))
        content[name] = {
            "row": sample.row_E[order_E].tolist(),
            "example": sample.place_E[order_E].tolist(),
            "loss_sum_nats": losses[name].loss_sum_nats_E[order_E].tolist(),
            "num_tokens": losses[name].num_tokens_E[order_E].tolist(),
        }
    write_durably(path, json.dumps({"domains": content}).encode())


def _pack(losses: Losses) -> bytes:
    each, counts = list(losses.values()), [len(part.example_E) for part in losses.values()]
    file = io.BytesIO()
    np.savez(
        file,
        domains=np.array(list(losses), dtype=np.str_),
        num_held_out=np.array([part.num_held_out for part in each], dtype=np.int64),
        domain=np.repeat(np.arange(len(each), dtype=np.int32), counts),
        example=np.concatenate([part.example_E for part in each]),
        loss_sum_nats=np.concatenate([part.loss_sum_nats_E for part in each]),
        num_tokens=np.concatenate([part.num_tokens_E for part in each]).astype(np.int32),
    )
    return file.getvalue()
