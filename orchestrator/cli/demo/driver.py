"""`raymix demo`: six domains, a base model, and a configuration to read, change and run again; then the run."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.cli.demo.domains import DemoDomain, Turn, make_domains
from orchestrator.config.load import load_config
from orchestrator.views.console import redirect_output

_SEED = 0
_CONFIG = """\
# Written by `raymix demo`. To experiment, change `name` and anything else, then: raymix run {file}
name: demo
output_dir: {runs}
seed: {seed}
model: {{path: {base}, dtype: float32}}

domains:
{domains}

data: {{max_length: 128, packing: true}}

mixing:
  type: versatune        # domains with more left to learn get a larger share
  initial: uniform
  reference: computed    # first fine-tune briefly on each domain alone, to see how much there is to learn
  sigma: 0.5             # how far one evaluation moves the shares
  floor: 0.03            # no domain falls below 3 %

training:
  max_steps: 240
  global_batch_size: 16
  micro_batch_size: 8
  learning_rate: 6.0e-3  # high: the model is tiny and not pretrained
  betas: [0.9, 0.98]
  warmup_fraction: 0.05
  deepspeed: {{zero_stage: 2}}
  checkpoint_every: 100

evaluation: {{every: 20, max_rows: 16}}
reference: {{max_steps: 90}}
cluster: {{address: local, num_workers: 2}}
"""


def run_demo(folder: Path, console: Console) -> None:
    """Write the demo, train on it as `raymix run` does, and print the model's answers before and after training."""
    from orchestrator.cli.demo.model import answers_table, generate_answers
    from orchestrator.sweeps.run import run

    with redirect_output(folder / "raymix.log") as quiet_console:
        quiet_console.print(f"generating the demo's domains and base model in {folder}", markup=False, highlight=False)
        config = load_config(write_demo(folder))
    run(config.plan, console)
    prompts = demo_prompts()
    asked = [prompt for _, prompt in prompts]
    with redirect_output(folder / "raymix.log"):
        before, after = (generate_answers(part, asked) for part in (Path(config.model.path), config.folder / "model"))
    console.print()
    console.print(answers_table(prompts, before, after))


def write_demo(folder: Path) -> Path:
    """Write the demo into a folder and return the path of its configuration; an existing demo is left unchanged.

    The files are always the same. The configuration is written last, so a folder that has one is complete.
    """
    config = folder / "config.yaml"
    if config.exists():
        return config
    from orchestrator.cli.demo.model import write_base_model

    domains = make_domains(_SEED)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, domain in domains.items():
        _write_turns(folder / "data" / f"{name}.jsonl", domain.train)
        _write_turns(folder / "data" / f"{name}-held-out.jsonl", domain.held_out)
    texts = [f"{turn.prompt}\n{turn.answer}" for domain in domains.values() for turn in domain.train]
    write_base_model(folder / "base", texts, _SEED)
    draft = config.with_suffix(".draft")
    draft.write_text(_config_text(folder, domains), encoding="utf-8")
    draft.replace(config)
    return config


def demo_prompts() -> list[tuple[str, str]]:
    """A held-out prompt of each domain: (domain, prompt)."""
    return [(name, domain.held_out[0].prompt) for name, domain in make_domains(_SEED).items()]


def _write_turns(path: Path, turns: Sequence[Turn]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for turn in turns:
            messages = [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": turn.answer}]
            file.write(json.dumps({"messages": messages}) + "\n")


def _config_text(folder: Path, domains: dict[str, DemoDomain]) -> str:
    data = folder / "data"
    lines = [
        f"  {name}: {{train: {_quote(data / f'{name}.jsonl')}, eval: {_quote(data / f'{name}-held-out.jsonl')}}}"
        for name in domains
    ]
    return _CONFIG.format(
        file=folder / "config.yaml",
        runs=_quote(folder / "runs"),
        base=_quote(folder / "base"),
        seed=_SEED,
        domains="\n".join(lines),
    )


def _quote(path: Path) -> str:
    """The path as a YAML value. A path of plain characters contains a slash, so it needs no quotes."""
    return str(path) if re.fullmatch(r"[A-Za-z0-9_./-]+", str(path)) else json.dumps(str(path))
