"""`raymix inspect`: show the first rows of each domain one by one."""

import difflib
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from orchestrator.config.errors import ConfigError
from orchestrator.config.run import RunConfig
from orchestrator.inspect.reading import RefusedRow, SeenExample, read_split
from orchestrator.inspect.showing import print_legend, print_seen, to_json
from workers.data.chat_template import freeze_date
from workers.data.preparing import DomainPlan, fingerprint_tokenizer, plan_domain
from workers.data.tokenization import Side
from workers.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def inspect(config: RunConfig, domain: str | None, split: Side, num_rows: int, as_json: bool, console: Console) -> None:
    """Show what the model will see, example by example, in the order of the files.

    Args:
        domain: the only domain to show; None for all.
        split: `train`, or `eval` for the held-out rows.
        num_rows: per domain; refused rows count, and so does each piece of a row that is split.
        as_json: print one JSON object per line on stdout instead of text.

    Raises:
        ConfigError: there is no such domain.
        ValueError: the tokenizer does not load, or files cannot be read (raised after all other domains).
    """
    names = [domain] if domain is not None else list(config.domains)
    if domain is not None and domain not in config.domains:
        near = difflib.get_close_matches(domain, config.domains, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the domains are {', '.join(config.domains)}"
        raise ConfigError([f"--domain {domain}: no such domain; {hint}"])
    tokenizer = load_tokenizer(config.model.with_absolute_paths())
    freeze_date(tokenizer, config.cache_dir.resolve())
    fingerprint = fingerprint_tokenizer(tokenizer)
    notes = Console(stderr=True, soft_wrap=True, highlight=False) if as_json else console
    if not as_json:
        print_legend(console)
    faults = []
    for name in names:
        try:
            plan = plan_domain(name, config.domains[name].with_absolute_paths(), config.data, fingerprint)
        except ValueError as error:
            faults.append(str(error))
            continue
        for note in _show(plan, config, split, num_rows, tokenizer, None if as_json else console):
            notes.print(f"{name}: {note}", markup=False, highlight=False, soft_wrap=True)
    if faults:
        raise ValueError("\n".join(faults))


def _show(
    plan: DomainPlan,
    config: RunConfig,
    split: Side,
    num_rows: int,
    tokenizer: "PreTrainedTokenizerBase",
    console: Console | None,
) -> list[str]:
    """Show a domain's rows, as JSON if `console` is None, and return notes about them."""
    if split == "train" and not plan.is_trained:
        return ["only measured, so it has no training rows; use --split eval to see its held-out rows"]
    num_excluded = num_shown = 0
    for seen in read_split(plan, split, config.data, tokenizer):
        if not isinstance(seen, SeenExample | RefusedRow):
            num_excluded += 1
            continue
        if console is None:
            sys.stdout.write(to_json(seen, tokenizer) + "\n")
        else:
            print_seen(seen, tokenizer, console)
        num_shown += 1
        if num_shown == num_rows:
            break
    notes = []
    if num_excluded:
        notes.append(f"{num_excluded:,} rows in between were left out by `exclude`")
    if not num_shown:
        notes.append(f"no rows in the {split} split")
    if split == "train" and plan.sample.is_part:
        notes.append("`fraction` or `count` selects part of the examples of all files, maybe not every row above")
    return notes
