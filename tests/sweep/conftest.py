"""A sweep small enough for a test: three classes of grey images, a random CLIP."""

import numpy as np
import pytest
from PIL import Image

from jaxanom.cli import config_file

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory):
    """Three classes told apart by their level; four test images each."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for split in ("train", "test"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = 60 * label + rng.integers(0, 60, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def sweep_config(class_folder, tiny_backbone):
    """() -> config of a sweep of eight points, with changes by "a__b" key."""

    def make(**changes):
        config = config_file.load("configs/app/sweep_foundry.py:smoke")
        config.data.name, config.data.directory = "classes", str(class_folder)
        config.data.image_size, config.data.categories = 16, ()
        config.data.num_train, config.data.shots = 3, 0
        config.data.defect_rule = "none"
        config.model.directory = str(tiny_backbone)
        config.app.task, config.app.num_vectors = "category", 2
        for phase in ("prior", "particles"):
            config.mixture[phase].normal, config.mixture[phase].defect = 1.0, 0.0
        for key, value in changes.items():
            *sections, last = key.split("__")
            node = config
            for section in sections:
                node = node[section]
            assert last in node, key
            node[last] = value
        return config

    return make
