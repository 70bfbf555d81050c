"""The page of results shows the newest row of every case, and the suite runs all."""

import json

import pytest
from PIL import Image

from benchmarks import harness, results, suite


def row(case, median_s, device="cpu", **facts):
    return {
        "case": case,
        "median_s": median_s,
        "iqr_s": 0.1,
        "repeats": 3,
        "time": "2026-01-01",
        "machine": {"processor": "p", "cores": 2, "device_kind": device},
        "versions": {"jax": "1", "python": "3"},
        "load_average": [0.5, 1.0, 1.0],
        **facts,
    }


def test_the_newest_row_of_a_case_counts_and_devices_are_cases():
    rows = [row("a", 3.0), row("b", 2.0), row("a", 1.0), row("a", 9.0, device="h200")]
    found = results.newest(rows, ("device",))
    assert [(r["case"], r["median_s"]) for r in found] == [
        ("b", 2.0),
        ("a", 1.0),
        ("a", 9.0),
    ]
    assert len(results.newest(rows, ())) == 2


def test_the_page_names_machine_load_and_numbers(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(harness, "RECORDS", tmp_path)
    monkeypatch.setattr(results, "PAGE", tmp_path / "RESULTS.md")
    rows = [
        row(f"svgd N={n}, {who}", n * factor, N=n)
        for n in (32, 512)
        for who, factor in (("ours", 1e-3), ("blackjax", 2e-2))
    ]
    lines = "".join(json.dumps(line) + "\n" for line in rows)
    (tmp_path / "posterior.jsonl").write_text(lines)
    page = results.write().read_text()
    assert page.count("2 cores") == 1 and "| load |" in page and " 0.5 |" in page
    assert "## Not measured" in page
    assert "10.2" in page and "0.512" in page
    assert "## Metrics" not in page  # no record, no section
    assert (tmp_path / "posterior.png").stat().st_size > 1000
    with (tmp_path / "posterior.jsonl").open("a") as file:
        file.write(json.dumps(row("svgd N=32, ours", 1e-6, "H200", N=32)) + "\n")
    page = results.write().read_text()
    assert page.count("2 cores") == 2 and "## Not measured" not in page


def test_plots_of_a_section_stand_side_by_side(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(harness, "RECORDS", tmp_path)
    (section,) = (s for s in results.SECTIONS if s.name == "trade_off")
    facts = {"calls": 10, "num_images": 4, "seed": 1}
    rows = [
        row(f"defect S={calls // 2}, {solver}, linspace", 0, **facts)
        | {"calls": calls, "error": 1 / calls, "background": 0.0}
        for calls in (10, 20)
        for solver in ("ddim", "dpmpp_2m")
    ] + [
        row(f"round trip k={k}, S = 10", 0, **facts) | {"per_move": k + 1, "error": 0.1}
        for k in range(2)
    ]
    page = results.render(section, rows)
    assert "| defect S=5, ddim, linspace " in page and "trade_off.png" in page
    width, height = Image.open(tmp_path / "trade_off.png").size
    assert width > 2 * height
    panel = results.panel_of("t", rows, section.plots[0])
    assert [line.name for line in panel.series] == [
        "ddim, linspace",
        "dpmpp_2m, linspace",
    ]
    assert panel.series[0].x == (10, 20) and panel.log_y


def test_a_failed_benchmark_is_named_and_the_others_still_run(monkeypatch, capsys):
    started = []

    def run(entry):
        started.append(entry.module)
        return int(entry.module == "unet")

    monkeypatch.setattr(suite, "run", run)
    monkeypatch.setattr(results, "write", lambda: "page")
    assert suite.main(["--device", "cpu", "--only", "unet", "metrics"]) == 1
    assert started == ["unet", "unet", "metrics"]
    assert "failed:\n  unet --size embedded" in capsys.readouterr().out
    assert suite.main(["--only", "metrics"]) == 0
    with pytest.raises(SystemExit, match="choose among"):
        suite.main(["--only", "mertics"])
