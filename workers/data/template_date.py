"""Chat templates that write today's date: the same rows would differ tomorrow, so one day is fixed for all."""

import re
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from workers.durable import write_durably

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CALL = re.compile(r"""strftime_now\s*\(\s*("[^"]*"|'[^']*')\s*\)""")
_ASKED = re.compile(r"strftime_now\s*\(")
_FILE = "template-date"


def freeze_date(tokenizer: "PreTrainedTokenizerBase", cache_dir: Path) -> date | None:
    """Make the chat template write the day on which the first store in `cache_dir` was made, which is kept there.

    Changes the tokenizer; returns the day, or None if the template does not ask for it (`strftime_now`).

    Raises:
        ValueError: the format of the date is known only when the template is rendered.
    """
    templates = tokenizer.chat_template
    by_name = templates if isinstance(templates, dict) else {"": templates or ""}
    if not any(_ASKED.search(source) for source in by_name.values()):
        return None
    day = _day_of(cache_dir)
    frozen = {name: _CALL.sub(lambda call: _written(day, call.group(1)), source) for name, source in by_name.items()}
    if any(_ASKED.search(source) for source in frozen.values()):
        raise ValueError(
            "model.path: the chat template writes today's date in a format that cannot be known in advance, so the "
            "same rows would differ tomorrow; set model.chat_template to one without it"
        )
    tokenizer.chat_template = frozen if isinstance(templates, dict) else frozen[""]
    return day


def _day_of(cache_dir: Path) -> date:
    path = cache_dir / _FILE
    if not path.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_durably(path, date.today().isoformat().encode())
    return date.fromisoformat(path.read_text())


def _written(day: date, form: str) -> str:
    quote = form[0]
    return quote + day.strftime(form[1:-1]).replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
