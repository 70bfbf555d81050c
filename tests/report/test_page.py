import html.parser
import os
import re

import numpy as np
import pytest

from jaxanom.report import figures, page, panels, style, tables
from jaxanom.report.figures import Panel, Series

pytest.importorskip("matplotlib")
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Document(html.parser.HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(content)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, tag, name):
        return [v for t, n, v in self.attributes if (t, n) == (tag, name)]


def picture(seed=0, side=32):
    return np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)


def every_section(text="word", image=None):
    image = picture() if image is None else image
    panel = Panel(text, text, text, (Series(text, [0, 1], [1.0, 2.0]),))
    table = tables.Table((text, "v"), ((text, 1.0),), caption=text, notes=(text,))
    return [
        page.text(text, text, text),
        page.facts(text, {text: text}, caption=text),
        page.pictures(
            text,
            [page.PictureRow(text, [image, image[..., 0], None], note=text)],
            [text, "mask", "gap"],
            caption=text,
        ),
        page.curves(text, [panel], caption=text),
        page.table(text, table),
        page.details(text, {text: {text: text}}, note=text),
    ]


def test_every_text_is_shown_as_text():
    document = Document(page.render(HOSTILE, every_section(HOSTILE), HOSTILE))
    assert "script" not in document.tags
    assert not [name for _, name, _ in document.attributes if name.startswith("on")]
    assert len(document.values("img", "src")) == 3
    assert document.text.count("alert(1)") >= 15
    # Negative control: unescaped, the parser does see an element.
    assert "script" in Document("<p><script></script></p>").tags


def test_the_page_needs_nothing_from_outside_and_runs_nothing():
    content = page.render("title", every_section())
    document = Document(content)
    assert not {"script", "link", "iframe", "object"} & set(document.tags)
    assert all(src.startswith("data:image/") for src in document.values("img", "src"))
    assert all(href.startswith("#") for href in document.values("a", "href"))
    assert not re.search(r"url\(|@import|https?://", content)


def test_every_picture_has_an_alternative_text_and_a_size():
    document = Document(page.render("title", every_section("crack")))
    alternatives = document.values("img", "alt")
    assert len(alternatives) == 3 and all(alternatives)
    assert "crack: crack" in alternatives and "mask: crack" in alternatives
    assert len(document.values("img", "width")) == 3


def test_contents_point_to_existing_sections():
    document = Document(page.render("title", every_section()))
    targets = set(document.values("section", "id"))
    assert {href[1:] for href in document.values("a", "href")} == targets
    assert len(targets) == 6


def test_the_page_adapts_to_dark_and_narrow_screens():
    content = page.render("title", [])
    assert 'name="viewport"' in content
    assert "prefers-color-scheme: dark" in content and "max-width: 44rem" in content


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(
        channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]


def contrast(first, second):
    low, high = sorted([luminance(first), luminance(second)])
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_have_the_contrast_that_accessibility_rules_ask_for():
    schemes = re.findall(r"--paper: .*?\}", style.CSS, re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for name in ("ink", "muted", "accent"):
            assert contrast(colors[name], colors["paper"]) >= 4.5  # WCAG AA, text
            assert contrast(colors[name], colors["soft"]) >= 4.5
        for line in figures.LINE_COLORS:
            assert contrast(line, colors["paper"]) >= 3  # WCAG AA, graphics
    assert contrast("#ffffff", "#000000") == pytest.approx(21)


def test_pictures_shrink_until_the_page_fits(tmp_path):
    rows = [page.PictureRow(f"{k}", [picture(k, 384)]) for k in range(4)]
    sections = [page.pictures("noise", rows, ["image"])]
    full = page.write(tmp_path / "full.html", "t", sections).stat().st_size
    limit = full // 2
    small = page.write(tmp_path / "small.html", "t", sections, max_bytes=limit)
    assert small.stat().st_size < limit
    assert "so that the page stays small" in small.read_text()
    assert "so that the page stays small" not in (tmp_path / "full.html").read_text()


def test_a_page_that_cannot_fit_is_an_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "page.html"
    page.write(path, "old", [])
    with pytest.raises(ValueError, match="pass fewer rows"):
        page.write(path, "new", [page.text("t", "x" * 20_000)], max_bytes=20_000)
    assert "<title>old</title>" in path.read_text()
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]


def test_a_name_that_is_no_utf_8_is_shown_by_its_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    sections = [page.text(name, name), page.details("Record", {"file": name})]
    written = page.write(tmp_path / "a.html", name, sections)
    assert r"caf\udce9.png" in written.read_text(encoding="utf-8")


def test_equal_runs_write_equal_pages(tmp_path):
    first = page.write(tmp_path / "a.html", "t", every_section())
    second = page.write(tmp_path / "b.html", "t", every_section())
    assert first.read_bytes() == second.read_bytes()


def test_latents_keep_their_pixels_and_photographs_are_smoothed():
    small = page.render("t", every_section(image=picture(side=32)))
    large = page.render("t", every_section(image=picture(side=256)))
    assert small.count('class="exact"') == 2 and 'class="exact"' not in large


def test_without_curves_the_section_says_why():
    section = page.curves("Curves", [], empty="No defect in this split.")
    assert "No defect in this split." in section.body(100)
    assert "<img" not in section.body(100)


def test_rows_that_do_not_match_the_columns_are_refused():
    with pytest.raises(ValueError, match="'crack' has 1 pictures"):
        page.pictures("t", [page.PictureRow("crack", [picture()])], ["a", "b"])


def test_an_evaluation_becomes_a_page(tmp_path):
    result = {
        "per_category": {"bolt": {"m": 0.5}},
        "mean": {"m": 0.5},
        "curves": {"bolt": {"pixel/roc": {"x": [0, 1], "y": [0, 1]}}},
        "examples": [
            {
                "image": picture(),
                "mask": np.eye(32),
                "anomaly_map": np.eye(32),
                "category": "bolt",
            }
        ],
    }
    rows = [
        page.PictureRow(example["category"], pictures)
        for example, pictures in zip(
            result["examples"], panels.detection_rows(result["examples"]), strict=True
        )
    ]
    curves = panels.detection_panels({"run": result["curves"]["bolt"]})
    path = page.write(
        tmp_path / "page.html",
        "Run",
        [
            page.table("Detection", tables.per_category(result, {"m": "M"})),
            page.pictures("Predictions", rows, panels.DETECTION_COLUMNS),
            page.curves("Curves", curves),
        ],
    )
    document = Document(path.read_text())
    assert len(document.values("img", "src")) == 5
    assert "50.0" in document.text
