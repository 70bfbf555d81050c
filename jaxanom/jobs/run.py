"""The public face: a run with what can be done with it, and how one comes about."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from jaxanom.data import generated
from jaxanom.jobs import config_file
from jaxanom.jobs import detect as detecting
from jaxanom.jobs import evaluate as evaluating
from jaxanom.jobs import fewshot as few_shots
from jaxanom.jobs import generate as generating
from jaxanom.jobs import load as loading
from jaxanom.jobs import train as training
from jaxanom.types import Predictions


class Run(loading.Trained):
    """A trained run; `jaxanom.load` opens one.

    Attributes:
      directory: Where it lies.
      prepared: Its config brought to life.
      params: What was trained.
      frozen: The weights that were not.
    """

    __slots__ = ()

    def predict(self, images: Sequence[np.ndarray], category: str = "") -> Predictions:
        """Scores images, uint8 [H, W, 3] each; see `jobs.detect.predict`."""
        return detecting.predict(self, images, category)

    def detect(
        self,
        paths: Sequence[str | Path],
        directory: str | Path,
        normal: str | Path | None = None,
        false_alarm_rate: float = 0.05,
        category: str = "",
    ) -> list[dict[str, Any]]:
        """Scores files and writes heat maps; see `jobs.detect.detect`."""
        return detecting.detect(
            self, paths, directory, normal, false_alarm_rate, category
        )

    def evaluate(self, num_examples: int = 12) -> dict[str, Any]:
        """Scores the run on its test images; see `jobs.evaluate.evaluate`."""
        return evaluating.evaluate(self, num_examples)

    def generate(
        self,
        directory: str | Path,
        num_images: int | None = None,
        overwrite: bool = False,
    ) -> generated.Written:
        """Draws new defects and writes them; see `jobs.generate.generate`."""
        return generating.generate(self, directory, num_images, overwrite)


def load(
    directory: str | Path, overrides: Sequence[str] = (), category: str = ""
) -> Run:
    """Opens a finished run; see `jobs.load.load`.

    Args:
      directory: The run.
      overrides: Changes of its config, such as "generate.num_steps=20".
      category: A product it was not trained on and shall be asked about.
    """
    return Run(*loading.load(directory, lambda c: _config(c, overrides), category))


def train(
    config: ml_collections.ConfigDict | str | Path,
    directory: str | Path,
    overrides: Sequence[str] = (),
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Trains a config, or a recipe by its name; see `jobs.train.train`.

    Args:
      config: A config, or a recipe such as "configs/detector/folder.py".
      directory: The run.
      overrides: Changes of a recipe, such as "data.directory=DIR".
      on_log: Called with every row of metrics.
    """
    return Run(*training.train(_config(config, overrides), directory, on_log))


def fewshot(
    normal: str | Path | Sequence[str | Path],
    category: str,
    directory: str | Path,
    tower: str = "",
    config: ml_collections.ConfigDict | str | Path = "",
    overrides: Sequence[str] = (),
) -> Run:
    """Learns a detector from a few normal images; see `jobs.fewshot.fewshot`.

    Args:
      normal: Image files, or folders whose images are meant.
      category: What the product is called, in words.
      directory: The run.
      tower: Network whose features are remembered, see `models.features.towers`; ""
        keeps the recipe's.
      config: A config of a few-shot method, or a recipe's name; "" takes the one for
        images of this size.
      overrides: Changes of a recipe, such as "memory.kind=padim".
    """
    settings = _config(config or few_shots.recipe(normal), overrides)
    return Run(*few_shots.fewshot(normal, category, directory, settings, tower))


def predict(
    run: Run | str | Path, images: Sequence[np.ndarray], category: str = ""
) -> Predictions:
    """Scores images with a run, or with the run in a directory."""
    return _opened(run).predict(images, category)


def detect(
    run: Run | str | Path, paths: Sequence[str | Path], directory: str | Path, **options
) -> list[dict[str, Any]]:
    """Scores files and writes heat maps; see `Run.detect` for the options."""
    return _opened(run).detect(paths, directory, **options)


def evaluate(run: Run | str | Path, num_examples: int = 12) -> dict[str, Any]:
    """Scores a run on its test images."""
    return _opened(run).evaluate(num_examples)


def generate(
    run: Run | str | Path,
    directory: str | Path,
    num_images: int | None = None,
    overwrite: bool = False,
) -> generated.Written:
    """Draws new defects and writes them; see `jobs.generate.generate`."""
    return _opened(run).generate(directory, num_images, overwrite)


def _opened(run: loading.Trained | str | Path) -> Run:
    return load(run) if isinstance(run, str | Path) else Run(*run)


def _config(
    config: ml_collections.ConfigDict | str | Path, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
    if isinstance(config, str | Path):
        return config_file.load(str(config), overrides)
    for change in overrides:
        key, _, value = change.partition("=")
        config_file.apply_override(config, key, value)
    return config
