"""Config files on the command line: `--config=FILE.py[:ARG] --config.key=value`."""

import ast
import difflib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from jaxanom.errors import UserError

EMPTY_OF_NUMBERS = ("compare_layers",)
"""Keys whose empty tuple is one of numbers; all others are of words."""


def configs_directory() -> Path:
    """Returns the folder of recipes: beside the package, or inside an installed one."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "configs", package / "configs"):
        if (candidate / "common.py").is_file():
            return candidate
    raise FileNotFoundError(f"no configs/common.py beside or inside {package}")


def _load_module(name: str, path: Path, search: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=search
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _provide_common() -> None:
    """Makes `from configs import common` work from any working directory."""
    if "configs.common" in sys.modules:
        return
    directory = configs_directory()
    package = _load_module("configs", directory / "__init__.py", [str(directory)])
    package.common = _load_module("configs.common", directory / "common.py")


def find(name: str) -> Path:
    """Finds a config file as given, else among the shipped recipes.

    Raises:
      UserError: there is no such file; names the nearest shipped recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    root = configs_directory()
    shipped = root.parent / name if path.parts[:1] == ("configs",) else root / name
    if shipped.is_file():
        return shipped
    known = sorted(
        f"configs/{file.relative_to(root)}"
        for file in root.glob("*/*.py")
        if file.name not in ("__init__.py", "base.py")
    )
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise UserError(
        f"--config: no such file: {name}; did you mean {near[0] if near else '?'}? "
        f"Recipes: {', '.join(known)}"
    )


def load(argument: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Reads a config file and applies `key.path=value` overrides.

    Args:
      argument: "FILE.py" or "FILE.py:ARG"; ARG goes to its `get_config(arg)`.
      overrides: "a.b=value" strings; values are Python literals or plain words.

    Raises:
      UserError: no such file or key (names the nearest), or a value of another type.
    """
    name, _, arg = argument.partition(":")
    path = find(name)
    _provide_common()
    module = _load_module(f"_jaxanom_config_{abs(hash(path.resolve()))}", path)
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} has no function get_config(arg)")
    config = module.get_config(arg)
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise UserError(f"--config.{key} wants a value: --config.{key}=VALUE")
        apply_override(config, key, value)
    return config


def key_paths(config: ml_collections.ConfigDict, prefix: str = "") -> Iterable[str]:
    """Yields every "a.b.c" path of the config, sections included."""
    for key in config:
        yield f"{prefix}{key}"
        value = config[key]
        if isinstance(value, ml_collections.ConfigDict):
            yield from key_paths(value, prefix + key + ".")


def apply_override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets one key from text, keeping the type that the config file gave it.

    Raises:
      UserError: an unknown key (names the nearest) or a value of another type.
    """
    *sections, last = key.split(".")
    node = config
    for section in sections:
        if section not in node or not isinstance(
            node[section], ml_collections.ConfigDict
        ):
            raise _unknown_key(config, key)
        node = node[section]
    if last not in node:
        raise _unknown_key(config, key)
    if isinstance(node[last], ml_collections.ConfigDict):
        inside = ", ".join(f"--config.{key}.{name}" for name in node[last])
        raise UserError(f"--config.{key} is a section; set a key in it: {inside}")
    kind = node.get_type(last)
    try:
        if kind is tuple:
            node[last] = _parse_tuple(text, _holds_words(last, node[last]))
        else:
            node[last] = _parse(text, kind)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--config.{key}={text}: wanted {kind.__name__}, such as {node[last]!r}"
        ) from error


def _unknown_key(config: ml_collections.ConfigDict, key: str) -> UserError:
    known = list(key_paths(config))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return UserError(f"--config.{key}: no such key; did you mean --config.{near[0]}?")


def _parse(text: str, wanted: type) -> Any:
    if wanted is str:
        return text
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise UserError("write true or false")
        return text.lower() == "true"
    # int("2.5") and float("true") raise, where int(2.5) would drop a half in silence.
    return wanted(text)


def _holds_words(key: str, current: tuple) -> bool:
    """Returns whether a tuple is one of words, which may look like numbers: 4711."""
    if not current:
        return key not in EMPTY_OF_NUMBERS
    return all(isinstance(value, str) for value in current)


def _parse_tuple(text: str, words: bool) -> tuple:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # plain words: pill, nut
        value = None
    if value is not None:
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
        if not words or all(isinstance(word, str) for word in value):
            return value
    parts = (part.strip().strip("'\"") for part in text.strip("()[]").split(","))
    return tuple(part for part in parts if part)
