"""The table that benchmarks/families.py makes: a line for the terminal, and the page docs/families.md."""

from typing import Any

PARTS = ("full-1", "full-3", "lora-1", "lora-3")
"""Strategy and ZeRO stage."""

_EXPLANATION = """Random models of a few thousand parameters in float32, on two CPU processes, at ZeRO 1 and 3, full
and LoRA; each figure is the largest difference of the four, in nats per token. *Packed against alone*: the loss of each
example in a packed sequence, against plain transformers on that example alone. *Three steps*: the losses of three steps
of full fine-tuning, against AdamW in plain torch on single examples. *LoRA reaches*: the share of the parameters of the
decoder's linear matrices that get an adapter with `all-linear`. *Exported*: whether plain transformers finds every key,
and the loss of each example with the exported folder against the engine's.

Ways, fastest first: `positions` restart in every example; a block-diagonal `mask`; `lengths` for kernels that know
them (mamba-ssm, causal-conv1d, flash-linear-attention: GPU packages that were not installed here, so families that
carry a state fall back to the last); `separate`: every example fed to the model separately.
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The table as a page, families that are not right in all of it behind those that are."""
    from transformers import __version__

    whole = [row for row in rows if "error" not in row]
    lines = [
        f"# Model families\n\nWhat raymix does with {len(whole)} families of causal language models, with transformers "
        f"{__version__}; made by\n`python benchmarks/families.py --markdown docs/families.md`.\n",
        _EXPLANATION,
        "| family | packed examples are kept apart by | packed against alone | three steps | LoRA reaches | exported |",
        "|---|---|---|---|---|---|",
    ]
    for row in whole:
        parts = [row[part] for part in PARTS]
        worst = _worst(parts)
        state = "whole" if not any(part["keys_amiss"] for part in parts) else "keys amiss"
        lines.append(
            f"| {row['family']} | {parts[0]['way']} | {worst['packed_difference']:.0e} | "
            f"{worst['step_difference']:.0e} | {row['lora-1']['adapted']:.0%} | "
            f"{state}, {worst['exported_difference']:.0e} |"
        )
    failed = [row for row in rows if "error" in row]
    if failed:
        lines += ["\n## Not built, or refused\n", "| family | why |", "|---|---|"]
        lines += [f"| {row['family']} | {row['error'].replace('|', '/')[:300]} |" for row in failed]
    return "\n".join(lines) + "\n"


def line(row: dict[str, Any]) -> str:
    """A family in the terminal."""
    if "error" in row:
        return f"{row['family']:<22} {row['error'][:200]}"
    parts = [row[part] for part in PARTS]
    worst, amiss = _worst(parts), sum(len(part["keys_amiss"]) for part in parts)
    return (
        f"{row['family']:<22} {'/'.join(sorted({part['way'] for part in parts})):<10} "
        f"packed {worst['packed_difference']:.1e}  steps {worst['step_difference']:.1e}  "
        f"exported {worst['exported_difference']:.1e}  amiss {amiss}  lora {row['lora-1']['adapted']:.0%}  "
        f"proof {worst['proof_seconds']:.2f} s"
    )


def _worst(parts: list[dict[str, Any]]) -> dict[str, float]:
    names = ("packed_difference", "step_difference", "exported_difference", "proof_seconds")
    return {name: max(part[name] for part in parts if part[name] is not None) for name in names}
