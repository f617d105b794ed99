"""The date that a chat template writes is one day's, in every run on the same stores."""

from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from workers.data.chat_template import freeze_date

ASKS = (
    "{% if strftime_now is defined %}Today: {{ strftime_now('%d %b %Y') }} "
    '{{ strftime_now ( "it\'s %Y" ) }}{% endif %}'
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
)
USER = [{"role": "user", "content": "!"}]


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_folder)


def test_the_day_is_that_of_the_first_store(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = ASKS
    today = tokenizer.apply_chat_template(USER, tokenize=False)
    assert freeze_date(tokenizer, tmp_path) == date.today()
    assert "strftime_now(" not in tokenizer.chat_template
    assert tokenizer.apply_chat_template(USER, tokenize=False) == today
    (kept,) = tmp_path.iterdir()
    kept.write_text("2024-02-09")
    tokenizer.chat_template = ASKS
    assert freeze_date(tokenizer, tmp_path) == date(2024, 2, 9)
    assert tokenizer.apply_chat_template(USER, tokenize=False) == "Today: 09 Feb 2024 it's 2024!"


def test_a_template_that_asks_for_no_date_stays_as_it_is(tokenizer: Any, tmp_path: Path) -> None:
    for template in ("{{ messages }}", None):
        tokenizer.chat_template = template
        assert freeze_date(tokenizer, tmp_path) is None and tokenizer.chat_template == template
    assert not list(tmp_path.iterdir())


def test_every_template_of_several_is_frozen(tmp_path: Path) -> None:
    tokenizer: Any = SimpleNamespace(chat_template={"default": "{{ messages }}", "tool_use": ASKS})
    assert freeze_date(tokenizer, tmp_path) == date.today()
    assert "strftime_now(" not in tokenizer.chat_template["tool_use"]


def test_a_form_that_only_the_rendering_knows_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = "{% set form = '%Y' %}{{ strftime_now(form) }}"
    with pytest.raises(ValueError, match=r"set model\.chat_template to one without it"):
        freeze_date(tokenizer, tmp_path)
