"""Domains -> a commented configuration, checked before it is written."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from orchestrator.init.looking import FoundDomain, find_domains
from orchestrator.loading import load_config

_LENGTHS = (256, 512, 1024, 2048, 4096)


def init(paths: Sequence[Path], model: str, output: Path, num_gpus: int, console: Console) -> None:
    """Look at data files and write a configuration for them.

    Args:
        paths: data files, or folders that hold some.
        model: the base model: a folder or a hub name.
        output: file to write; it must not exist.
        num_gpus: GPUs of this machine; 0 trains on its CPUs.
        console: where to say what was found.

    Raises:
        ValueError: there is no data, or the file is there already.
        ConfigError: what was found makes no configuration.
    """
    if output.exists():
        raise ValueError(f"{output} is there already; name another file with --output")
    domains = find_domains(paths)
    text = config_text(domains, model, output, num_gpus)
    with TemporaryDirectory() as folder:
        (Path(folder) / output.name).write_text(text, encoding="utf-8")
        load_config(Path(folder) / output.name, check_files=False)
    output.write_text(text, encoding="utf-8")
    for domain in domains:
        console.print(f"{domain.name}: {_told(domain)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{output} written; next: raymix check {output}", markup=False, highlight=False, soft_wrap=True)


def config_text(domains: Sequence[FoundDomain], model: str, output: Path, num_gpus: int) -> str:
    """The configuration in YAML; whatever comes from outside is quoted as JSON, which YAML reads."""
    longest = max(domain.tokens_95 for domain in domains)
    environment = Environment(
        loader=PackageLoader("orchestrator.init", "."), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("config.jinja").render(
        file=json.dumps(str(output))[1:-1],
        name=_word("-".join(domain.name for domain in domains)[:60].strip("-._")),
        model=json.dumps(model),
        dtype="bfloat16" if num_gpus else "float32",
        domains=[
            {
                "name": _word(domain.name),
                "comment": f"    # {_told(domain)}",
                "train": json.dumps([str(path) for path in domain.train]),
                "eval": json.dumps([str(path) for path in domain.eval]) if domain.eval else "",
                "format": domain.format or "",
                "fields": json.dumps(domain.fields) if domain.fields else "",
            }
            for domain in domains
        ],
        max_length=min(next((length for length in _LENGTHS if length >= longest), _LENGTHS[-1]), _context(model)),
        global_batch_size=64 if num_gpus else 16,
        micro_batch_size=4 if num_gpus else 2,
        cluster=f"{{num_workers: {num_gpus}, gpus_per_worker: 1}}" if num_gpus else "{num_workers: 2}",
    )


def _context(model: str) -> int:
    """Tokens that a model in a local folder was made for; as many as we would ever propose, where that is not known."""
    try:
        found = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError):
        return _LENGTHS[-1]
    return found if isinstance(found, int) and found > 0 else _LENGTHS[-1]


def _word(name: str) -> str:
    """A name without quotes, unless YAML would read it as something else (yes, 1e3)."""
    return name if yaml.safe_load(name) == name else json.dumps(name)


def _told(domain: FoundDomain) -> str:
    """What was seen, in a line."""
    files = f"{len(domain.train)} file{'s' if len(domain.train) > 1 else ''}"
    if domain.refusal:
        # Names of columns stand in it, and it becomes a comment: one line, whatever they are.
        return f"{files}; {''.join(letter if letter.isprintable() else ' ' for letter in domain.refusal)}"
    if domain.format is None:
        keys = json.dumps(domain.keys[:8])
        return f"{files}; no known format, a row has {keys}: set `format`, and `fields` for other names"
    bad = f", {domain.num_bad_rows} unreadable" if domain.num_bad_rows else ""
    return f"{files}; {domain.format}; of {domain.num_rows_seen} rows seen{bad}, 95 % within {domain.tokens_95} tokens"
