"""Every block of code in every README works, as far as that can be told quickly.

A block names its language. `python` is executed, all blocks of a file in one namespace
and a folder with images and a finished run; shipped recipes are loaded at a small size.
`console` holds commands behind "$ ", which are parsed by what they would call, their
configs loaded and changed; all other lines are output. `text` is not read. A block may
be left out by a comment above it: <!-- test: skip because REASON --> Commands between
backticks are looked up too, as far as they are whole.
"""

import argparse
import functools
import importlib
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import jaxanom
from jaxanom.cli import main
from jaxanom.jobs import config_file

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("README.md"), *ROOT.glob("*/README.md")])
PAGES = [
    *DOCUMENTS,
    *(ROOT / f"benchmarks/{name}.md" for name in ("CLAIMS", "QUALITY")),
]
LANGUAGES = ("python", "console", "text", "json")
UNCHECKED = ("cd", "export", "git", "pip")  # which a reader may be told to type
PROMPT, DIRECTIVE = "$ ", "<!-- test:"
SKIP = re.compile(r"<!-- test: skip because \S.* -->")
SMALL = {
    "data.image_size": 16,
    "data.batch_size": 2,
    "train.log_every": 1,
    "detector.width": 4,
    "detector.depth": 1,
    "adp.feature_layers": (0, 1),
    "adp.windows": (1, 2),
    "adp.compare_layers": (1,),
    "adp.map_size": 4,
    "adp.pyramid": (1, 2),
    "adp.walk_steps": 2,
    "adp.num_noises": 1,
    "adp.tune": False,
    "phases.invert.num_steps": 0,
}


class Block(NamedTuple):
    """One fenced block; `line` is that of its first line, from 1."""

    language: str
    line: int
    text: str
    skipped: bool


def blocks(document: str) -> list[Block]:
    """Cuts the fenced blocks out of a document.

    Raises:
      ValueError: A block has no known language or no end, or a comment to this test
        is none, or stands above no block.
    """
    found, directive = [], None
    lines = iter(enumerate(document.splitlines(), 1))
    for number, line in lines:
        if line.startswith("```"):
            language, body = line[3:].strip(), []
            if language not in LANGUAGES:
                raise ValueError(f"line {number}: a block of language {language!r}")
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                body.append(inner)
            else:
                raise ValueError(f"line {number}: a block without an end")
            text = "\n".join(body) + "\n"
            found.append(Block(language, number + 1, text, directive is not None))
            directive = None
        elif directive is not None and line.strip():
            raise ValueError(f"line {number}: {directive} stands above no block")
        elif line.startswith(DIRECTIVE):
            if not SKIP.fullmatch(line.strip()):
                raise ValueError(f"line {number}: {line} is no comment of this test")
            directive = line
    if directive is not None:
        raise ValueError(f"{directive} stands above no block")
    return found


def commands(block: Block) -> list[list[str]]:
    """Returns the words of every command of a console block."""
    text = block.text.replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith(PROMPT)]
    assert lines, f"line {block.line}: a console block without a command"
    return [shlex.split(line.removeprefix(PROMPT), comments=True) for line in lines]


class _Parsed(Exception):  # noqa: N818  the words were right
    pass


class Checker:
    """Parses commands with the real parsers and starts none of them."""

    def __init__(self, patch: pytest.MonkeyPatch, capsys):
        """Works from the repository's root."""
        self._patch, self._capsys = patch, capsys
        patch.chdir(ROOT)
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        self._targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
        self._variables = set(re.findall(r"\$\((\w+)\)", makefile))

    def check(self, words: list[str]) -> None:
        """Raises AssertionError, ValueError or OSError unless it could be started."""
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        match words:
            case ["jaxanom", *rest] | ["python", "-m", "jaxanom", *rest]:
                self.jaxanom(rest)
            case ["make", *rest]:
                self.make(rest)
            case ["python", "-m", module, *rest] if module.startswith("benchmarks."):
                self.benchmark(module, rest)
            case ["sbatch", *rest]:
                self.launch([word for word in rest if not word.startswith("--nodes")])
            case [script, *rest] if script.startswith("launch/"):
                self.launch([script, *rest])
            case [command, *_] if command in UNCHECKED:
                pass
            case _:
                raise AssertionError(f"no way to check {' '.join(words)}")

    def jaxanom(self, words: list[str]) -> None:
        """Lets the command parse its words; loads and changes the config they name."""
        parsed = []
        verb = importlib.import_module(f"jaxanom.cli.{words[0]}")
        self._patch.setattr(verb, "run", parsed.append)
        self._exits(lambda: main.main(words), words)
        (arguments,) = parsed
        recipe = getattr(arguments, "config", None)
        if recipe:
            config_file.load(recipe, arguments.overrides)
        elif arguments.overrides:  # of a run that is not here: a generator's
            config_file.load("configs/defect_generation/folder.py", arguments.overrides)
        for change in getattr(arguments, "on", ()):
            key = change.partition("=")[0]
            assert key in self._keys(), f"no recipe has a key {key}"

    @functools.cache  # noqa: B019  lives as long as a test
    def _keys(self) -> set[str]:
        recipes = set(ROOT.glob("configs/*/*.py")) - set(
            ROOT.glob("configs/*/[_b]*.py")
        )
        configs = [config_file.load(str(recipe)) for recipe in recipes]
        return {key for config in configs for key in config_file.key_paths(config)}

    def make(self, words: list[str]) -> None:
        """Looks the targets and the variables up in the Makefile."""
        for word in words:
            name, is_variable, _ = word.partition("=")
            known = self._variables if is_variable else self._targets
            assert name in known, f"the Makefile knows no {name}, only {sorted(known)}"

    def benchmark(self, module: str, words: list[str]) -> None:
        """Runs the module up to where it has parsed its words."""
        parse_args = argparse.ArgumentParser.parse_args

        def parse(parser, arguments=None, namespace=None):
            parse_args(parser, arguments, namespace)
            raise _Parsed

        assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module

        def run():
            with pytest.raises(_Parsed):
                runpy.run_module(module, run_name="__main__")

        with self._patch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse)
            patch.setattr(sys, "argv", [module, *words])
            patch.delitem(sys.modules, module, raising=False)
            self._exits(run, words)

    def launch(self, words: list[str]) -> None:
        """Looks for the script, and checks the words that it hands on."""
        script, *rest = words
        assert (ROOT / script).is_file(), f"no {script}"
        if script == "launch/local.sh":
            self.jaxanom(rest)
        elif any(word.startswith("--config=") for word in rest):
            self.jaxanom(["train", *(word for word in rest if word.startswith("--"))])

    def _exits(self, call, words: list[str]) -> None:
        try:
            code = call()
        except SystemExit as error:
            code = error.code
        said = self._capsys.readouterr().err
        assert not code, f"{' '.join(words)}: {said}"


@pytest.fixture
def checker(monkeypatch, capsys) -> Checker:
    return Checker(monkeypatch, capsys)


def small(config):
    """Makes a shipped recipe one of seconds, where it has such keys."""
    keys = SMALL.keys() & set(config_file.key_paths(config))
    config.update_from_flattened_dict({key: SMALL[key] for key in keys})
    for phase in config.get("phases", {}).values():
        phase.num_steps, phase.warmup_steps = min(phase.num_steps, 1), 0
    return config


@pytest.fixture
def namespace(tmp_path, monkeypatch, tiny_folder, tiny_backbone) -> dict:
    """What a README's Python finds: a folder to work in, and names for what is there.

    photos/{good,more_good,new} hold images, photos/parts a dataset, runs/detector a
    run. `images_dir` and `run_dir` name the last two, `tmp` the folder itself.
    """
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, level in (("good", 0), ("more_good", 0), ("new", 90)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(100, 140, (16, 16, 3)).astype(np.uint8)
            pixels[4:8, 4:8] += level
            path = tmp_path / "photos" / name / f"{number:03d}.png"
            Image.fromarray(pixels).save(path)
    shutil.copytree(tiny_folder, tmp_path / "photos" / "parts")
    load = config_file.load

    def load_small(argument, overrides=()):
        config = small(load(f"{argument.partition(':')[0]}:smoke"))
        if "model" in config:
            config.model.directory = str(tiny_backbone)
        for override in overrides:
            key, _, value = override.partition("=")
            config_file.apply_override(config, key, value)
        return config

    monkeypatch.setattr(config_file, "load", load_small)
    images, run = tmp_path / "photos" / "parts", tmp_path / "runs" / "detector"
    jaxanom.train("configs/detector/folder.py", run, [f"data.directory={images}"])
    return {"images_dir": images, "run_dir": run, "tmp": tmp_path}


def execute(document: str, path: Path, namespace: dict) -> None:
    """Executes the Python of a document; a traceback names its lines."""
    for block in blocks(document):
        if block.language == "python" and not block.skipped:
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(path), "exec"), namespace)


def each(name: str, paths: list[Path]):
    """Parametrizes a test by files."""
    names = [str(path.relative_to(ROOT)) for path in paths]
    return pytest.mark.parametrize(name, paths, ids=names)


@each("document", DOCUMENTS)
def test_every_block_says_what_it_is_and_every_object_can_be_read(document):
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.language == "json" and not block.skipped:
            json.loads(block.text)


@each("document", DOCUMENTS)
def test_every_command_could_be_started(document, checker):
    for block in blocks(document.read_text(encoding="utf-8")):
        if block.language == "console" and not block.skipped:
            for words in commands(block):
                checker.check(words)


@each("page", PAGES)
def test_commands_within_sentences_exist(page, checker):
    """Whole ones are parsed; of the others, verb, target or module are there."""
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    for code in re.findall(r"`([^`]+)`", text):
        match shlex.split(code.replace("\n", " ").replace("'", "")):
            case ["jaxanom", verb, *rest]:
                assert verb in main.VERBS, code
                if any(word.startswith("--config=") for word in rest):
                    checker.jaxanom([verb, *rest])
            case ["make", *rest]:
                checker.make(rest)
            case ["python", "-m", module, *_] if module.startswith("benchmarks."):
                assert importlib.util.find_spec(module), code


@each("document", DOCUMENTS)
def test_all_python_runs(document, request):
    text = document.read_text(encoding="utf-8")
    kinds = {block.language for block in blocks(text) if not block.skipped}
    if "python" in kinds:
        execute(text, document, request.getfixturevalue("namespace"))


def test_python_goes_on_where_the_block_above_ended_and_breaks_where_it_is_broken(
    namespace,
):
    """The second half is the control."""
    text = (
        "```python\nrun = jaxanom.load(run_dir)\n```\n\n```python\nrun.predict\n```\n"
    )
    namespace["jaxanom"] = jaxanom
    execute(text, Path("README.md"), namespace)
    with pytest.raises(AttributeError, match="predikt") as error:
        execute(text.replace("predict", "predikt"), Path("README.md"), namespace)
    assert error.traceback[-1].lineno + 1 == 6
    skipped = "<!-- test: skip because it is wrong -->\n```python\n1 / 0\n```\n"
    execute(skipped, Path("README.md"), namespace)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```\nls\n```\n", "language ''"),
        ("```bash\nls\n```\n", "language 'bash'"),
        ("```text\nls\n", "without an end"),
        ("<!-- test: skip because -->\n```text\n```\n", "no comment of this test"),
        ("<!-- test: set up -->\n```text\n```\n", "no comment of this test"),
        ("<!-- test: skip because of X -->\nwords\n", "above no block"),
        ("<!-- test: skip because of X -->\n", "above no block"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        blocks(text)


def test_commands_are_the_lines_behind_a_prompt():
    text = "$ a --x=1 \\\n    --y=2   # why\noutput\n$ X=1 b 'c d'\n"
    words = [["a", "--x=1", "--y=2"], ["X=1", "b", "c d"]]
    assert commands(Block("console", 1, text, False)) == words
    with pytest.raises(AssertionError, match="without a command"):
        commands(Block("console", 1, "ls\n", False))


TRAIN = "jaxanom train --run=R --config=configs/"


@pytest.mark.parametrize(
    "command",
    [
        TRAIN + "detector/folder.py --config.data.batch_size=2 --dry_run",
        "jaxanom generate --run=R --out=S --config.generate.num_steps=5",
        "jaxanom evaluate --run=R --on=data.directory=D",
        "X=1 launch/local.sh train --config=configs/app/foundry.py:smoke",
        "sbatch --nodes=2 launch/slurm.sbatch --config=configs/app/folder.py --run=R",
        "launch/sweep.sh grid.txt --config=configs/app/folder.py --run=R",
        "make quickstart EXTRAS=cuda",
        "python -m benchmarks.speed.metrics --size 64",
    ],
)
def test_a_right_command_passes(checker, command):
    checker.check(shlex.split(command))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (TRAIN + "detector/folder.py --dry_ruin", "unknown argument --dry_ruin"),
        (TRAIN + "detector/folder.py --config.data.batch=2", "did you mean"),
        (TRAIN + "detector/folder.py --config.data.batch_size=two", "wanted int"),
        (TRAIN + "detector/folders.py", "no such file"),
        ("jaxanom generate --run=R --out=S --config.generate.x=5", "did you mean"),
        ("jaxanom generate --run=R", "--out"),
        ("jaxanom evaluate --run=R --on=data.directry=D", "data.directry"),
        ("jaxanom trian --run=R", "trian"),
        ("launch/local.sh train --config=configs/x.py", "no such file"),
        ("launch/slurm.sh", "no launch/slurm.sh"),
        ("make quickstrat", "quickstrat"),
        ("make quickstart EXTRA=cuda", "EXTRA"),
        ("python -m benchmarks.speed.metric", "metric"),
        ("python -m benchmarks.speed.metrics --sizes 64", "--sizes"),
        ("rm -r runs", "no way to check"),
    ],
)
def test_a_wrong_command_fails(checker, command, message):
    with pytest.raises((AssertionError, ValueError, ImportError), match=message):
        checker.check(shlex.split(command))
