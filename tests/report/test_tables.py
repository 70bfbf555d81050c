import html.parser

import pytest

from jaxanom.report import tables
from jaxanom.report.tables import Table

HOSTILE = '<script>alert("1")</script> & |pipe|'


class Cells(html.parser.HTMLParser):
    """Collects the text of every cell, row by row, and the tags seen."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_records_with_different_keys_share_one_table():
    table = tables.from_records([{"a": 1, "b": 2.0}, {"b": 0.5, "c": "x"}])
    assert table.columns == ("a", "b", "c")
    assert table.rows == ((1, 2.0, None), (None, 0.5, "x"))
    chosen = tables.from_records([{"a": 1, "b": 2}], {"b": "Heading"})
    assert chosen == Table(("Heading",), ((2,),))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (True, "yes"),
        (3, "3"),
        (0.12345, "0.123"),
        (0.0, "0.000"),
        (2e-5, "2e-05"),  # would read 0.000
        (-0.0004, "-0.0004"),
        (123456789.0, "1.23e+08"),
        ("text", "text"),
    ],
)
def test_cells_are_shown_without_losing_small_numbers(value, shown):
    assert tables.format_cell(value) == shown


def test_spread_is_the_sample_deviation():
    # Deviations of 1, 2, 3 are -1, 0, 1: variance 2 / (3 - 1).
    assert tables.mean_std([1, 2, 3], digits=2) == "2.00 ± 1.00"
    assert tables.mean_std([0.5], scale=100, digits=1) == "50.0"
    assert tables.mean_std([]) == "–"


def test_a_mean_never_hides_an_undefined_repeat():
    assert tables.mean_std([1.0, float("nan"), 2.0]) == "–"
    runs = {"a": [{"m": 0.5}, {}]}
    assert tables.compare(runs, {"m": "M"}).rows == (("a", 2, "–"),)


def test_evaluation_is_listed_by_category_with_its_mean_last():
    result = {
        "per_category": {"bolt": {"m": 0.5}, "nut": {"m": float("nan")}},
        "mean": {"m": 0.5},
    }
    table = tables.per_category(result, {"m": "M"}, caption="said")
    assert table.columns == ("Category", "M")
    assert table.rows == (("bolt", "50.0"), ("nut", "–"), ("Mean", "50.0"))
    assert table.has_total and table.caption == "said"


def test_plain_text_aligns_numbers_right_and_words_left():
    table = Table(("name", "value"), (("a", 1.5), ("long", 22.25)), digits=2)
    assert tables.to_text(table).splitlines() == [
        "name  value",
        "----  -----",
        "a      1.50",
        "long  22.25",
    ]


def test_total_is_set_apart_in_text_and_html():
    table = Table(("n", "v"), (("a", 1), ("sum", 1)), has_total=True)
    assert tables.to_text(table).splitlines()[3] == "---  -"
    assert tables.to_html(table).count("<tfoot>") == 1
    assert "tfoot" not in tables.to_html(table._replace(has_total=False))


def test_markdown_keeps_its_columns_whatever_the_cells_hold():
    table = Table(("name", "v"), ((HOSTILE, 1.0), ("two\nlines", 2.0)))
    lines = tables.to_markdown(table).splitlines()
    assert len(lines) == 4
    assert "<script" not in lines[2] and "\\|pipe\\|" in lines[2]
    assert lines[1].endswith("-: |")
    assert len({len(line) for line in lines}) == 1


def test_html_shows_hostile_text_as_text():
    table = Table((HOSTILE, "v"), ((HOSTILE, 1.0),), caption=HOSTILE, notes=(HOSTILE,))
    parser = Cells()
    parser.feed(tables.to_html(table))
    assert "script" not in parser.tags
    assert parser.rows == [[HOSTILE, "v"], [HOSTILE, "1.000"]]


def test_html_names_rows_and_columns_for_screen_readers():
    text = tables.to_html(Table(("name", "v"), (("a", 1), ("b", 2))))
    assert text.count('scope="col"') == 2 and text.count('scope="row"') == 2


def test_spreads_and_dashes_count_as_numbers_but_words_do_not():
    table = Table(("a", "b"), (("98.1 ± 0.3", "3 runs"), ("–", "4")))
    text = tables.to_html(table)
    assert '<th scope="col" class="number">a' in text
    assert '<th scope="col" class="text">b' in text


def test_rows_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        tables.to_text(Table(("a", "b"), (("x",),)))


def test_an_empty_table_is_only_its_heading():
    table = Table(("a", "b"), (), has_total=True)
    assert tables.to_text(table) == "a  b\n-  -"
    assert "<tbody></tbody>" in tables.to_html(table)
