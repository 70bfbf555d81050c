"""Every benchmark that takes flags can be asked for help, under its own name."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if "__main__" in path.read_text()
    and re.search(r"argparse\.ArgumentParser\(|harness\.parser\(", path.read_text())
]


@pytest.mark.parametrize("module", MODULES)
def test_a_benchmark_tells_its_flags_and_its_command(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"usage: python -m {module} ")


def test_the_list_is_not_empty():
    assert {"benchmarks.suite", "benchmarks.scale.preemption"} <= set(MODULES)
    assert "benchmarks.harness" not in MODULES
