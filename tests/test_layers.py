"""Imports point to lower rows only; heavy packages stay where they are needed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxanom

ROOT = Path(jaxanom.__file__).parent

ROWS = {
    "__main__": 8,
    "cli": 7,
    "jobs": 6,
    "report": 5,
    "serve": 5,
    "methods": 4,
    "training": 4,
    "evaluation": 4,
    "models": 3,
    "data": 3,
    "diffusion": 2,
    "posterior": 2,
    "losses": 2,
    "metrics": 2,
    "parallel": 2,
    "contracts": 1,
    "trees": 1,
    "record": 1,
    "sections": 1,
    "flops": 1,
    "types": 0,
    "errors": 0,
    "files": 0,
}
BANNED_NAMES = ("utils", "util", "helpers", "helper", "misc", "core", "manager")
CORE = {
    "absl",
    "jax",
    "flax",
    "optax",
    "chex",
    "numpy",
    "PIL",
    "orbax",
    "safetensors",
    "ml_collections",
    "scipy",
}
# Needed by few files, imported inside the function that needs them. Progress bars are
# drawn over training steps, generated images and images that are checked.
LAZY = {
    "tokenizers": {"models/clip/tokenizer.py"},
    "tqdm": {"training/loop.py", "methods/defect_generation/drawing.py", "cli/data.py"},
    "matplotlib": {"report/figures.py"},
    "huggingface_hub": {"models/checkpoints/hub.py"},
    "grain": {"data/workers.py"},
    "tensorflow_datasets": {"data/layouts/builders.py"},
    "diffusers": {"models/libraries/classes.py"},
    "transformers": {"models/libraries/classes.py"},
}
NEVER = ("torch", "transformers", "diffusers", "sklearn", "tensorflow")


def modules(root):
    """{dotted name below the package: file}."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known):
    """Yields (name below jaxanom or None, top-level package, is inside a function)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        local = id(node) not in top
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from a.b import c` imports a.b.c where that is a module, else a.b.
            targets = [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}".removeprefix("jaxanom.") in known
                else node.module
                for alias in node.names
            ]
        else:
            continue
        for target in targets:
            package, _, rest = target.partition(".")
            yield (rest if package == "jaxanom" else None), package, local


def package_of(name):
    """The unit that may import itself: a package, or one method."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "methods" else parts[0]


def problems(root):
    """Lists every breach of the rules below a package directory."""
    known = modules(root)
    found, edges = [], {}
    for name, path in known.items():
        short = path.relative_to(root).as_posix()
        if any(part in BANNED_NAMES for part in name.split(".")):
            found.append(f"{short}: forbidden name")
        body = ast.parse(path.read_text(encoding="utf-8")).body
        if path.name == "__init__.py" and body:
            only_text = len(body) == 1 and isinstance(body[0], ast.Expr)
            if not (only_text or name == "" or name.startswith("methods.")):
                found.append(f"{short}: not empty")
        for target, package, local in imports(path, known):
            if target is not None:
                if target != "":
                    edges.setdefault(name, set()).add(target)
                    found += _edge_problem(short, name, target)
            elif package in LAZY:
                if short not in LAZY[package]:
                    found.append(f"{short}: imports {package}")
                elif not local:
                    found.append(f"{short}: imports {package} outside of a function")
            elif package not in CORE and package not in sys.stdlib_module_names:
                found.append(f"{short}: imports {package}")
    return found + [f"cycle: {' -> '.join(path)}" for path in _cycles(edges)]


def _edge_problem(short, name, target):
    here, there = package_of(name), package_of(target)
    if here == "jobs" and there.startswith("methods.") and there != "methods.by_name":
        return [f"{short}: a job imports a paper, {there}"]
    if here == there or (name == "methods.by_name" and there.startswith("methods.")):
        return []
    rows = [ROWS.get(unit.split(".")[0]) for unit in (here, there)]
    if None in rows:
        return [f"{short}: {here} or {there} has no row"]
    if rows[1] >= rows[0]:
        return [f"{short}: row {rows[0]} imports {target} of row {rows[1]}"]
    return []


def _cycles(edges):
    """Yields one path around every cycle that a depth-first walk meets."""
    done, stack = set(), []

    def walk(name):
        if name in stack:
            yield [*stack[stack.index(name) :], name]
            return
        if name in done:
            return
        stack.append(name)
        for target in sorted(edges.get(name, ())):
            yield from walk(target)
        done.add(stack.pop())

    for name in sorted(edges):
        yield from walk(name)


def test_the_package_keeps_its_layers():
    assert problems(ROOT) == []


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


BREACHES = {
    "row 2 imports models": {"losses/a.py": "from jaxanom.models import unet"},
    "row 2 imports metrics": {"losses/a.py": "def f():\n  import jaxanom.metrics.b"},
    "row 4 imports methods": {"methods/x/a.py": "from jaxanom.methods.y import b"},
    "row 6 imports cli": {"jobs/a.py": "from jaxanom.cli import main"},
    "a job imports a paper": {"jobs/a.py": "from jaxanom.methods.app import parts"},
    "row 4 imports evaluation": {"training/a.py": "import jaxanom.evaluation"},
    "cycle": {
        "models/a.py": "import jaxanom.models.b",
        "models/b.py": "import jaxanom.models.a",
    },
    "helpers.py: forbidden name": {"models/helpers.py": ""},
    "core/a.py: forbidden name": {"core/a.py": ""},
    "not empty": {"models/__init__.py": "from jaxanom import trees"},
    "imports torch": {"models/a.py": "import torch"},
    "imports pandas": {"models/a.py": "def f():\n  import pandas"},
    "imports tqdm": {"models/a.py": "def f():\n  import tqdm"},
    "outside of a function": {"report/figures.py": "import matplotlib"},
    "has no row": {"unheard/a.py": "import jaxanom.trees"},
}


@pytest.mark.parametrize("wanted", BREACHES)
def test_a_breach_of_each_rule_is_caught(tmp_path, wanted):
    found = problems(write(tmp_path, BREACHES[wanted]))
    assert any(wanted in line for line in found), found


def test_what_the_rules_allow_is_not_caught(tmp_path):
    files = {
        "cli/train.py": "def run():\n  from jaxanom.jobs import train",
        "jobs/train.py": "from jaxanom.methods import by_name\nimport tempfile",
        "methods/by_name.py": "import jaxanom.methods.app",
        "methods/app/__init__.py": "from jaxanom.methods.app import predict",
        "methods/app/predict.py": "from jaxanom.models import unet\nimport jax",
        "models/latent/unet.py": "from jaxanom.models.latent import layers",
        "models/latent/layers.py": "from jaxanom.types import Array",
        "models/__init__.py": '"""Flax modules."""',
        "models/clip/tokenizer.py": "def f():\n  import tokenizers",
        "types.py": "import numpy.typing",
    }
    assert problems(write(tmp_path, files)) == []


def child(code):
    """Runs code in its own interpreter and returns the JSON it prints last."""
    path = os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_module_imports_without_the_packages_that_few_files_need():
    blocked = (*LAZY, *NEVER)
    names = sorted(
        f"jaxanom.{name}" for name in modules(ROOT) if name not in ("", "__main__")
    )
    found = child(
        "import importlib, json, sys\n"
        f"blocked = {blocked!r}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked:\n"
        "            raise ImportError(f'blocked: {name}')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "try:\n"
        "    import tqdm\n"
        "    works = False\n"
        "except ImportError:\n"
        "    works = True\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "done = 'jaxanom.jobs.run' in sys.modules\n"
        "print(json.dumps({'works': works, 'jobs': done}))"
    )
    assert found == {"works": True, "jobs": True}


@pytest.mark.parametrize(
    "words",
    [["--help"], ["train", "--help"], ["doctor", "--help"], ["sweep", "--help"]],
)
def test_help_is_quick_and_imports_no_jax(words):
    found = child(
        "import json, resource, sys\n"
        "from jaxanom.cli import main\n"
        "try:\n"
        f"    main.main({words!r})\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = [n for n in ('jax', 'flax', 'numpy') if n in sys.modules]\n"
        "print()\n"
        "print(json.dumps([code, heavy, used.ru_utime + used.ru_stime]))"
    )
    code, heavy, seconds = found
    assert code == 0
    assert heavy == []
    assert seconds < 1.0  # of processor time; importing jax alone takes about that


def test_every_recipe_travels_with_a_wheel(monkeypatch):
    import runpy

    setuptools = pytest.importorskip("setuptools")
    root = ROOT.parent
    if not (root / "README.md").is_file():
        monkeypatch.setattr(Path, "read_text", lambda *args, **keywords: "")
    given = {}
    monkeypatch.chdir(root)
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    runpy.run_path(str(root / "setup.py"))
    for recipe in (root / "configs").glob("*/*.py"):
        assert f"jaxanom.configs.{recipe.parent.name}" in given["packages"], recipe
    for module in ROOT.rglob("*.py"):
        package = ".".join(module.relative_to(root).parent.parts)
        assert package in given["packages"], module
