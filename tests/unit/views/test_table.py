"""A table of results: what the terminal, a page and a CSV file make of the same plain data."""

import csv
import io
import re
from typing import Literal

import pytest
from rich.console import Console

from orchestrator.views.table import Cell, Column, Remark, ResultTable, Row, best_marked, change_cell, columns_of

HOSTILE = "[bold]<b>x\x1b[2J"
TABLE = ResultTable(
    "Run",
    [Row("first", color="#123456"), Row("second", detail="a detail", is_best=True)],
    [
        Column(
            "loss",
            [
                Cell("1.250", " \u00b10.500 [0.031]", value=1.25000001, half_width=0.5, held_out_error=0.03125),
                Cell("1.125", value=1.125),
            ],
        ),
        Column("change", [Cell("-"), Cell("-0.125", style="better", value=-0.125)]),
        Column("shares", [Cell("a 50.0%, b 50.0%", brief="a 50.0%\nb 50.0%"), Cell("-")], brief="mix", group=1),
        Column("more", [Cell("7"), Cell("8")], is_on_page_only=True),
    ],
    explanation="What it is.",
    notes=["How to read it."],
    remarks=[Remark("second", ["It failed.", "Why."], is_bad=True)],
    caveats=["Where it fails."],
)


def printed(table: ResultTable, width: int = 80, max_rows: int | None = None, has_colors: bool = False) -> str:
    output = io.StringIO()
    colors: Literal["standard"] | None = "standard" if has_colors else None
    console = Console(file=output, width=width, force_terminal=has_colors, color_system=colors)
    console.print(table.to_rich(max_rows))
    return output.getvalue()


def test_the_terminal_has_a_table_for_each_group_then_notes_and_remarks() -> None:
    lines = [line.split() for line in printed(TABLE).splitlines() if line.strip() and "\u2500" not in line]
    assert lines == [
        ["Run", "loss", "change"],
        ["first", "1.250", "\u00b10.500", "[0.031]", "-"],
        ["second", "1.125", "-0.125"],
        ["Run", "mix"],
        ["first", "a", "50.0%"],
        ["b", "50.0%"],
        ["second", "-"],
        ["How", "to", "read", "it."],
        ["second:", "It", "failed.", "Why."],
    ]


def test_more_rows_than_are_wanted_are_counted() -> None:
    text = printed(TABLE, max_rows=1)
    assert "and 1 more" in text and "1.125" not in text and "1.250" in text
    assert "more" not in printed(TABLE, max_rows=2)


def test_the_best_row_stands_out_and_so_does_a_clear_change() -> None:
    assert re.search(r"\x1b\[1;32msecond\x1b\[0m.*\x1b\[1;32m *1\.125\x1b\[0m", printed(TABLE, has_colors=True))
    change = columns_of(
        ["change"], [[change_cell(1.0, 2.0, 0.1)], [change_cell(2.0, 1.0, 0.1)], [change_cell(2, 1, 5)]]
    )
    text = printed(ResultTable("", [Row("a"), Row("b"), Row("c")], change), has_colors=True)
    assert re.findall(r"\x1b\[(\d+)m *([-+]1\.000 \u00b1\d\.\d+)", text) == [
        ("32", "-1.000 \u00b10.100"),
        ("31", "+1.000 \u00b10.100"),
        ("2", "+1.000 \u00b15.000"),
    ]


def test_numbers_are_never_broken_in_a_narrow_terminal() -> None:
    wide = columns_of(["a heading of words"] * 6, [["1,234,567.000 \u00b10.123"] * 6])
    table = ResultTable("Run", [Row("a name that is very long indeed " * 3)], wide)
    assert printed(table, width=110).count("1,234,567.000") == 6


def test_names_cannot_steer_the_terminal_and_are_no_markup_on_a_page() -> None:
    hostile = ResultTable(
        HOSTILE,
        [Row(HOSTILE, HOSTILE)],
        [Column(HOSTILE, [Cell(HOSTILE)]), Column("", [Cell("", brief=HOSTILE)])],
        HOSTILE,
        notes=[HOSTILE],
        remarks=[Remark(HOSTILE, [HOSTILE])],
    )
    text, page = printed(hostile, 200), str(hostile.to_html())
    assert "\x1b" not in text and text.count("[bold]<b>x\\x1b[2J") == 10
    assert "<b>" not in page and page.count("&lt;b&gt;x") == 8


def test_the_page_has_every_column_and_what_the_terminal_has_no_room_for() -> None:
    page = str(TABLE.to_html())
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert rows[0] == ["Run", "loss", "change", "shares", "more"]
    first, second = rows[1:]
    assert first[0] == '<i style="background: #123456"></i>first'
    assert first[1:] == ["1.250<small> \u00b10.500 [0.031]</small>", "-", "a 50.0%, b 50.0%", "7"]
    assert second[:2] == ["second<small>a detail</small>", "<strong>1.125</strong>"]
    assert '<td class="better"><strong>-0.125</strong></td>' in page
    assert '<p class="note">What it is. How to read it.</p>' in page
    assert '<div class="verdict bad">\n<p>second: It failed.</p>\n<p>Why.</p>\n</div>' in page
    assert "bar" not in page and "Where it fails" not in page


def test_a_part_of_a_whole_is_a_bar_and_without_rows_there_is_nothing() -> None:
    rows = [Row("a", color="red", part=0.25), Row("b", color="blue")]
    page = str(ResultTable("Domain", rows, columns_of(["x"], [["1"], ["2"]])).to_html())
    assert page.count('class="bar"') == 3  # the heading's too
    assert "width: 25.0%; background: red" in page and "width: 0%; background: blue" in page
    assert not ResultTable("Domain", [], columns_of(["x"], []), notes=["n"]).to_html().strip()


def test_a_file_has_the_values_themselves_and_errors_where_any_is_known() -> None:
    table = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert [row["Run"] for row in table] == ["first", "second"]
    assert list(table[0]) == ["Run", "loss", "loss half_width", "loss held_out_error", "change", "shares", "more"]
    assert [float(row["loss"]) for row in table] == [1.25000001, 1.125]
    assert (table[0]["loss half_width"], table[1]["loss half_width"]) == ("0.5", "")
    assert table[1]["change"] == "-0.125" and table[0]["shares"] == "a 50.0%, b 50.0%"


def test_columns_of_the_same_name_are_all_there() -> None:
    table = ResultTable("tokens", [Row("a")], columns_of(["tokens", "tokens"], [["1", "2"]]))
    assert table.to_csv() == "tokens,tokens,tokens\r\na,1,2\r\n"
    assert len(re.findall("<th>tokens</th>", str(table.to_html()))) == 3 and printed(table).count("tokens") == 3


def test_transposed_a_run_is_a_column() -> None:
    lines = printed(TABLE.transposed("loss in nats")).splitlines()
    shown = [re.split(r" {2,}", line.strip()) for line in lines if "loss" in line or "more" in line]
    assert shown == [
        ["loss in nats", "first", "second"],
        ["loss", "1.250 \u00b10.500 [0.031]", "1.125"],
        ["more", "7", "8"],
    ]


@pytest.mark.parametrize(
    ("values", "is_higher_better", "best"),
    [
        ([2.0, 1.0, 3.0], False, [1]),
        ([2.0, 1.0, 3.0], True, [2]),
        ([2.0, 1.0, 3.0], None, []),
        ([2.0, None, float("nan")], False, []),
        ([2.0, None, 2.0], False, [0, 2]),
    ],
)
def test_the_best_of_several_is_marked(
    values: list[float | None], is_higher_better: bool | None, best: list[int]
) -> None:
    cells = best_marked([Cell(str(value)) for value in values], values, is_higher_better)
    assert [place for place, cell in enumerate(cells) if cell.style == "best"] == best
