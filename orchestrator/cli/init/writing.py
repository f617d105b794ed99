"""Domains -> a commented configuration, checked before it is written."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from orchestrator.cli.init.looking import EXAMPLES_COUNTED, FoundDomain, find_domains
from orchestrator.config.load import load_config
from workers.config.data import DataConfig
from workers.config.model import ModelConfig
from workers.data.tokenization import fit_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LENGTHS = (256, 512, 1024, 2048, 4096)
_LENGTH_STEP = 1024  # beyond these
_UNKNOWN_CONTEXT = 32_768
_MIN_LENGTH = 8
_USUAL = 0.02  # of the prompts are held out
_ENOUGH = 16  # prompts are enough to measure a loss on
_MOST = 5  # at most one prompt in five, but at least one
_MAX_DIGITS = 12


def init(paths: Sequence[Path], model: str, output: Path, num_gpus: int, console: Console) -> None:
    """Inspect data files, or folders of them, and write a configuration for them; with 0 GPUs it trains on CPUs.

    Raises:
        ValueError: there is no data, or the output file already exists.
        ConfigError: the data does not give a valid configuration.
    """
    if output.exists():
        raise ValueError(f"{output} already exists; name another file with --output")
    tokenizer = _find_tokenizer(model, console)
    domains = find_domains(paths, tokenizer)
    text = config_text(domains, model, output, num_gpus)
    with TemporaryDirectory() as folder:
        (Path(folder) / output.name).write_text(text, encoding="utf-8")
        load_config(Path(folder) / output.name, check_files=False)
    output.write_text(text, encoding="utf-8")
    for domain in domains:
        console.print(f"{domain.name}: {_told(domain)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{output} written; next: raymix check {output}", markup=False, highlight=False, soft_wrap=True)


def config_text(domains: Sequence[FoundDomain], model: str, output: Path, num_gpus: int) -> str:
    """The configuration in YAML; strings from outside are quoted as JSON, which YAML reads."""
    context = _context(model)
    length = choose_length(max(domain.tokens_95 for domain in domains), context)
    environment = Environment(
        loader=PackageLoader("orchestrator.cli.init", "."), undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("config.jinja").render(
        file=json.dumps(str(output))[1:-1],
        name=_word("-".join(domain.name for domain in domains)[:60].strip("-._")),
        model=json.dumps(model),
        dtype="bfloat16" if num_gpus else "float32",
        domains=[_domain(domain, length) for domain in domains],
        max_length=length,
        length_comment=_length_comment(domains, length, context),
        global_batch_size=64 if num_gpus else 16,
        micro_batch_size=4 if num_gpus else 2,
        cluster=f"{{num_workers: {num_gpus}, gpus_per_worker: 1}}" if num_gpus else "{num_workers: 2}",
    )


def _domain(domain: FoundDomain, max_length: int) -> dict[str, Any]:
    fraction, reason = (None, "") if domain.eval else choose_eval_fraction(domain, max_length)
    return {
        "name": _word(domain.name),
        "comment": f"    # {_told(domain)}",
        "train": json.dumps([str(path) for path in domain.train]),
        "eval": json.dumps([str(path) for path in domain.eval]) if domain.eval else "",
        "eval_fraction": fraction,
        "eval_reason": reason,
        "format": domain.format or "",
        "fields": json.dumps(domain.fields) if domain.fields else "",
    }


def choose_length(needed: int, context: int | None) -> int:
    """Tokens per sequence: the next common length that is enough, limited by the model's context."""
    rounded = math.ceil(needed / _LENGTH_STEP) * _LENGTH_STEP
    usual = next((length for length in _LENGTHS if length >= needed), rounded)
    return max(_MIN_LENGTH, min(usual, _UNKNOWN_CONTEXT if context is None else context))


def _length_comment(domains: Sequence[FoundDomain], max_length: int, context: int | None) -> str:
    """How many of the examples seen fit, in the domain where the fewest do; rounded down."""
    counted = [domain for domain in domains if domain.lengths]
    if not counted:
        return "tokens per sequence; no example could be read to measure it"
    least = min(counted, key=lambda domain: domain.fraction_within(max_length))
    percent = math.floor(least.fraction_within(max_length) * 1000) / 10
    what = "tokens per sequence" if max_length != context else "tokens per sequence, the model's full context"
    fit = f"{percent:g} % of the examples seen fit"
    if len(counted) > 1:
        fit += f" in {least.name}, and no fewer in any other domain"
    how = "counted by the model's tokenizer"
    if least.is_estimate:
        how = "estimated at 4 bytes per token, see `raymix check`"
    return f"{what}; {fit} ({how})"


def _find_tokenizer(model: str, console: Console) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of a local model folder; without one, prints what follows from that and returns None."""
    why = f"{model} is not a folder on this machine"
    if Path(model).is_dir():
        from workers.model.tokenizer import load_tokenizer

        try:
            return load_tokenizer(ModelConfig(path=model))
        except ValueError as error:
            why = str(error)
    message = f"lengths are estimated at 4 bytes per token: {why}"
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    return None


def _context(model: str) -> int | None:
    """Context length in tokens of a model in a local folder; None if it is not known."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        found = config.get("text_config", config)["max_position_embeddings"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def _word(name: str) -> str:
    """A name without quotes, unless YAML would read it as something else (yes, 1e3)."""
    return name if yaml.safe_load(name) == name else json.dumps(name)


def _told(domain: FoundDomain) -> str:
    """What was seen, in a line."""
    files = f"{len(domain.train)} file{'s' if len(domain.train) > 1 else ''}"
    if domain.refusal:
        # It contains column names and becomes a YAML comment, so it must stay on one line.
        return f"{files}; {''.join(letter if letter.isprintable() else ' ' for letter in domain.refusal)}"
    if domain.format is None:
        keys = json.dumps(domain.keys[:8])
        return f"{files}; no known format; rows have {keys}: set `format`, and `fields` if the names differ"
    bad = f", {domain.num_bad_rows} unreadable" if domain.num_bad_rows else ""
    if domain.num_refused:
        counted = len(domain.lengths) + domain.num_refused
        bad += f", {domain.num_refused} of {counted} sampled refused by the tokenizer or its template"
    within = f"95 % within {domain.tokens_95} tokens{' (estimated)' if domain.is_estimate else ''}"
    return f"{files}; {domain.format}; of {domain.num_rows_seen} rows seen{bad}, {within}"


def choose_eval_fraction(domain: FoundDomain, max_length: int) -> tuple[float, str]:
    """The fraction, and a comment on it for the configuration.

    The hashes of the prompts decide which of them a fraction takes, so the outcome is known if all rows were read.
    """
    usual = f"{_USUAL:.0%} of the prompts are held out".replace("%", " %")
    if not domain.is_whole or domain.num_rows_seen > EXAMPLES_COUNTED:
        return _USUAL, usual
    data = DataConfig(max_length=max_length, too_long="truncate")
    places = sorted(
        {prompt / 2.0**64 for prompt, tokens in domain.prompts if tokens is None or fit_example(tokens, data)}
    )
    if len(places) < 2:
        return _USUAL, f"{'one prompt' if places else 'no prompt'} cannot be split; give `eval` files"
    num_usual = sum(place < _USUAL for place in places)
    wanted = max(1, min(_ENOUGH, len(places) // _MOST))
    if wanted <= num_usual < len(places):
        return _USUAL, usual
    lower, upper = places[wanted - 1], places[wanted]
    for digits in range(2, _MAX_DIGITS + 1):
        fraction = (math.floor(lower * 10**digits) + 1) / 10**digits
        if lower < fraction <= upper:
            instead = "none" if num_usual == 0 else f"{num_usual}"
            return fraction, f"holds out {wanted} of the {len(places)} prompts; 2 % would hold out {instead}"
    return _USUAL, usual
