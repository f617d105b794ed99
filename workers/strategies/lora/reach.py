"""The reach of LoRA: matrices with an adapter, grouped by name, and their share of those that could have one."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from workers.strategies.lora.matrices import Matrix, adapted_names, find_matrices

_NUMBERS = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Reach:
    """The reach in a model wrapped by peft; its weights may be on the meta device."""

    adapted: list[Matrix]
    left_out: list[Matrix]  # linear matrices of the decoder without one
    saved: list[str]  # modules trained in full

    @property
    def share_of_matrices(self) -> float:
        """Share of adapted matrices in all linear matrices of the decoder and others that are adapted."""
        return len(self.adapted) / (len(self.adapted) + len(self.left_out))

    @property
    def share_of_parameters(self) -> float:
        adapted, left_out = (sum(m.num_parameters for m in part) for part in (self.adapted, self.left_out))
        return adapted / (adapted + left_out)

    def lines(self) -> list[str]:
        """A line on the matrices with an adapter, then on those trained in full and those left out, if any."""
        total = len(self.adapted) + len(self.left_out)
        lines = [
            f"LoRA on {len(self.adapted):,} of {total:,} matrices ({self.share_of_matrices:.0%}, "
            f"{self.share_of_parameters:.0%} of their parameters): {_grouped(self.adapted)}"
        ]
        if self.saved:
            lines.append(f"trained in full: {', '.join(self.saved)}")
        if self.left_out:
            reasons = sorted({matrix.refusal for matrix in self.left_out if matrix.refusal})
            lines.append("; ".join([f"no adapter on {_grouped(self.left_out)}", *reasons]))
        return lines


def find_reach(model: Any) -> Reach:
    """The reach of the adapters in a model returned by `apply`."""
    matrices, names = find_matrices(model), adapted_names(model)
    trained = (name for name, p in model.named_parameters() if ".modules_to_save." in name and p.requires_grad)
    saved = {name.removeprefix("base_model.model.").partition(".modules_to_save.")[0] for name in trained}
    adapted = [matrix for matrix in matrices if matrix.name in names]
    left_out = [m for m in matrices if m.is_linear and m.name not in names and not _is_within(m, saved)]
    return Reach(adapted, left_out, sorted(saved))


def _is_within(matrix: Matrix, modules: Iterable[str]) -> bool:
    return any(f"{matrix.name}.".startswith(f"{module}.") for module in modules)


def _grouped(matrices: list[Matrix]) -> str:
    """Names with stars for numbers, grouped by module: layers.*.self_attn.[k_proj, q_proj] (48)."""
    groups: dict[str, Counter[str]] = {}
    for matrix in matrices:
        name = _NUMBERS.sub(".*.", matrix.name.removesuffix(".weight"))
        owner, _, leaf = name.rpartition(".")
        groups.setdefault(owner, Counter())[leaf] += 1
    return ", ".join(_group(owner, leaves) for owner, leaves in groups.items())


def _group(owner: str, leaves: "Counter[str]") -> str:
    names = next(iter(leaves)) if len(leaves) == 1 else f"[{', '.join(leaves)}]"
    return f"{owner + '.' if owner else ''}{names} ({leaves.total()})"
