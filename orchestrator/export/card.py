"""The model card, written from the files of a run."""

from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from orchestrator.controller.operator import describe_change
from orchestrator.runs.benchmark_record import asked_for
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.records import RunSummary
from orchestrator.runs.summary import summarise
from orchestrator.views.format import NOTHING, format_loss, format_score, format_score_change, format_share, printable
from orchestrator.views.verdict import HARMFUL, verdict_sentence
from workers.model.base_config import base_name, is_hub_name

Kind = Literal["merged", "bf16", "adapter"]

_SETTINGS = (
    ("training", "learning_rate"),
    ("training", "schedule"),
    ("training", "global_batch_size"),
    ("training", "batches"),
    ("data", "max_length"),
    ("data", "packing"),
    ("model", "dtype"),
    ("seed",),
)
_LOADING = {
    "transformers": (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    ),
    "peft": (
        "from peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("{name}")  # loads the base model too'
    ),
}


def model_card(run: RunFolder, kind: Kind, is_best: bool, base: str) -> str:
    """README.md of an exported model, in Markdown.

    Args:
        run: a finished run, refreshed.
        kind: which weights the folder holds.
        is_best: whether they are those of the best evaluation, not of the last step.
        base: the base model, as named by `model.path` or by the adapter's configuration.
    """
    result = summarise(run)
    library = "peft" if kind == "adapter" else "transformers"
    environment = Environment(loader=PackageLoader("orchestrator.export", "."), undefined=StrictUndefined)
    return environment.get_template("card.jinja").render(
        library=library,
        name=_plain(run.name),
        base=_plain(base_name(base)),
        base_is_public=is_hub_name(base),
        strategy=_plain(run.setting("training", "strategy", "type")),
        num_trained=sum(1 for domain in result.domains.values() if domain.rows_seen),
        algorithm=_plain(result.mixing_type),
        moved=result.weights_versions > 1,
        steps=f"{result.steps:,}",
        tokens=f"{result.num_tokens:,}",
        unit=run.setting("mixing", "unit"),
        rows=_domain_rows(result, is_best),
        best=result.best.step if is_best and result.best else None,
        harm=_plain(verdict_sentence(run, result)) if result.verdict in HARMFUL and not is_best else "",
        benchmarks=_benchmark_rows(run, "best" if is_best else "model"),
        converted=kind == "bf16",
        changes=[
            {"effective_step": version.effective_step, "text": _plain(describe_change(version))}
            for version in run.weights
            if version.reason == "operator"
        ],
        settings=[(".".join(key), _plain(run.setting(*key))) for key in _SETTINGS],
        loading=_LOADING[library].format(name=_plain(run.name)),
    )


def _domain_rows(result: RunSummary, is_best: bool) -> list[list[str]]:
    total = sum(domain.rows_seen or 0 for domain in result.domains.values())
    rows = []
    for name, domain in result.domains.items():
        seen, loss = domain.rows_seen or 0, domain.loss_nats_best if is_best else domain.loss_nats_end
        rows.append(
            [
                _plain(name),
                f"{seen:,}" if seen else "only measured",
                format_share(seen / total) if total else NOTHING,
                NOTHING if domain.epochs is None else f"{domain.epochs:.2f}",
                *map(format_share, (domain.share_initial, domain.share_mean, domain.share_final)),
                format_loss(domain.loss_nats_start),
                format_loss(loss),
            ]
        )
    return rows


def _benchmark_rows(run: RunFolder, model: str) -> list[list[str]]:
    return [
        [
            _plain(score.task),
            NOTHING
            if score.num_samples is None
            else f"{score.num_samples:,}" + (f" (the first {score.limit:,} of each task)" if score.limit else ""),
            NOTHING if score.num_fewshot is None else f"{score.num_fewshot}",
            _plain(metric) + (", in the chat template" if score.chat else ""),
            format_score(values.base),
            format_score(values.result),
            format_score_change(values),
        ]
        for score in asked_for(run.tasks)
        if score.model == model
        for metric, values in score.metrics.items()
    ]


def _plain(value: object) -> str:
    """The value in one line, with Markdown's special characters escaped."""
    text = printable(value)
    return "".join(f"\\{letter}" if letter in "\\`*[]<>|" else letter for letter in text)
