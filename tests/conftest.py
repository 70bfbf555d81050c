"""A tiny backbone, a tiny folder of images, and the whole job run once on both."""

import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from jaxanom import record, trees
from jaxanom.data.foundry import names
from jaxanom.jobs import config_file
from jaxanom.methods.pretraining import captions
from jaxanom.models import networks
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.checkpoints.formats import weights
from jaxanom.models.checkpoints.names import layouts
from jaxanom.models.clip import tokenizer
from jaxanom.models.clip import towers as clip
from jaxanom.models.latent import unet, vae
from jaxanom.models.ops import initialise
from jaxanom.parallel import topology

# The suite compiles thousands of programs and runs each once: half of the optimiser's
# work is worth more than quick code. Processes that the tests start inherit it;
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests with what users compile.
QUICK_COMPILES = "JAX_DISABLE_MOST_OPTIMIZATIONS"
if QUICK_COMPILES not in os.environ:
    os.environ[QUICK_COMPILES] = "1"
    jax.config.update(QUICK_COMPILES.lower(), True)
    # Plain loops compile in two thirds of the time of the newer emitters', and small
    # programs in one piece. Other versions end on a flag that they do not know.
    if jax.__version_info__[:2] == (0, 10):
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "")
            + " --xla_cpu_use_fusion_emitters=false"
            + " --xla_cpu_parallel_codegen_split_count=1"
        )


ROOT = Path(__file__).resolve().parents[1]
# Tests of benchmarks and recipes import them from the checkout.
sys.path.insert(0, str(ROOT))


def own_cores(worker: str, count: int, cores: list[int]) -> list[int]:
    """Returns the share of the machine's cores that a worker of pytest-xdist keeps.

    XLA runs as many threads as it sees cores; where every worker sees all of them, they
    wait for each other.
    """
    return cores[int(worker.removeprefix("gw")) :: count] or cores


if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    worker, count = (
        os.environ[f"PYTEST_XDIST_{name}"] for name in ("WORKER", "WORKER_COUNT")
    )
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, own_cores(worker, int(count), cores))

LONGEST = ("test_in_own_process.py", "test_configs.py", "test_fewshot.py")
"""Files that take minutes; a worker that got one last would end alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hands out the longest files first, all others in their order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


SIZE, TEXT_WIDTH, TEXT_LENGTH, LATENT_CHANNELS = 16, 16, 24, 4

SWEPT_CLASSES = ("ant", "bee", "cat")

TINY = {
    "data.image_size": SIZE,
    "data.batch_size": 4,
    "data.shots": 4,
    "train.log_every": 1,
}
TINY_GENERATION = TINY | {
    "data.num_views": 2,
    "model.unet": "scratch",
    "model.block_out_channels": (8,),
    "model.num_heads": 2,
    "phases.adapt.num_steps": 0,
    "phases.adapt.warmup_steps": 0,
    "phases.finetune.num_steps": 2,
    "phases.finetune.warmup_steps": 0,
    "generate.num_images": 3,
    "generate.batch_size": 2,
    "generate.num_steps": 2,
    # Untrained networks hardly change an image; Otsu's threshold alone decides.
    "generate.change_floor": 0.0,
    "detector.batch_size": 4,
    "detector.phase.num_steps": 2,
    "detector.options.width": 4,
    "detector.options.depth": 1,
}
TINY_DETECTION = TINY | {
    "detector.width": 4,
    "detector.depth": 1,
    "phases.segment.num_steps": 2,
}


def write_backbone(folder: Path, size: int = SIZE, dtype: Any = None) -> Path:
    """Writes a directory in the embedded layout: random, a few thousand weights."""
    table = captions.table(names.CATEGORIES, ("good", *names.DEFECT_TYPES))
    words = tokenizer.train(table.texts, 600, folder / "tokenizer")
    sizes = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    towers = clip.ClipConfig(
        clip.TextConfig(
            vocab_size=words.vocab_size,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=words.bos_id,
            eos_token_id=words.eos_id,
            pad_token_id=words.eos_id,
            **sizes,
        ),
        clip.VisionConfig(image_size=size, patch_size=8, **sizes),
        projection_dim=TEXT_WIDTH,
    )
    coder = vae.VaeConfig(
        block_out_channels=(8, 8, 8),
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    network = unet.UNetConfig(
        sample_size=size // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    image = jnp.zeros((1, size, size, 3))
    ids = jnp.zeros((1, TEXT_LENGTH), jnp.int32)
    drawn = {
        "clip": initialise.parameters(
            clip.CLIP(towers),
            jax.random.key(1),
            ids,
            image,
            overrides={
                ".*class_embedding": initialise.normal(0.02),
                "logit_scale": initialise.constant(2.6),
            },
        ),
        "vae": initialise.parameters(
            vae.AutoencoderKL(coder), jax.random.key(2), image
        ),
        "unet": initialise.parameters(
            unet.UNet(network), jax.random.key(3), *networks.example(unet.UNet(network))
        ),
    }
    settings = {
        "clip": dataclasses.asdict(towers),
        "vae": coder.to_dict(),
        "unet": network.to_dict(),
    }
    for kind, params in drawn.items():
        pretrained.save_component(folder, kind, settings[kind], params, kind, dtype)
    record.write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "num_train_timesteps": 1000,
            "beta_schedule": "scaled_linear",
            "timestep_spacing": "linspace",
        },
    )
    return folder


def write_folder(root: Path, category: str = "bolt", size: int = SIZE) -> Path:
    """Writes one category in the MVTec layout: grey noise, bright and dark squares."""
    rng = np.random.default_rng(5)

    def save(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    def grey() -> np.ndarray:
        return rng.integers(100, 140, (size, size, 3)).astype(np.uint8)

    for number in range(6):
        save(root / category / "train" / "good" / f"{number:03d}.png", grey())
    for number in range(3):
        save(root / category / "test" / "good" / f"{number:03d}.png", grey())
    for defect_type, level in (("scratch", 250), ("dent", 5)):
        for number in range(4):
            image, mask = grey(), np.zeros((size, size), np.uint8)
            top, left = rng.integers(0, size - 5, 2)
            mask[top : top + 5, left : left + 4] = 255
            image[mask > 0] = level
            name = f"{number:03d}"
            save(root / category / "test" / defect_type / f"{name}.png", image)
            truth = root / category / "ground_truth" / defect_type
            save(truth / f"{name}_mask.png", mask)
    return root


def with_values(config: ml_collections.ConfigDict, values: dict[str, Any]):
    """Sets "a.b.c" keys, keeping each key's type."""
    for key, value in values.items():
        *sections, last = key.split(".")
        node = config
        for section in sections:
            node = node[section]
        if last not in node:
            raise KeyError(key)
        node[last] = value
    return config


@pytest.fixture(scope="session")
def shared_data():
    """(*parts) -> a path below the real data sets; where it is absent the test skips.

    They lie beside the repository, or where `JAXANOM_SHARED_DATA` says.
    """
    root = os.environ.get("JAXANOM_SHARED_DATA", ROOT.parent / "shared" / "data")

    def find(*parts: str) -> Path:
        path = Path(root, *parts)
        if not path.exists():
            pytest.skip(f"{path.name} is not here")
        return path

    return find


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """For 64 px and in half precision, as the embedded one; do not write to it."""
    return write_backbone(tmp_path_factory.mktemp("backbone"), 64, np.float16)


@pytest.fixture(scope="session")
def tiny_clip(tiny_backbone, tmp_path_factory) -> Path:
    """Its CLIP as transformers saves one: the tokenizer's files beside the weights."""
    folder = tmp_path_factory.mktemp("clip")
    for part in ("clip", "tokenizer"):
        shutil.copytree(tiny_backbone / part, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory) -> Path:
    """A CLIP in one file under its authors' names, with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("openai")
    words = tokenizer.train(["a red fox", "a brown bear"], 530, folder / "tokenizer")
    tower = {
        "hidden_size": 64,  # a head of 64 channels, as everywhere in these files
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    text = {"vocab_size": words.vocab_size, "max_position_embeddings": TEXT_LENGTH}
    config = {
        "projection_dim": 64,
        "text_config": tower | text,
        "vision_config": tower | {"image_size": SIZE, "patch_size": 8},
    }
    shapes = trees.flatten(networks.of("clip", config).shapes())
    leaves = {path: leaf.shape for path, leaf in shapes.items()}
    rng = np.random.default_rng(0)
    tensors = {
        origin.name: rng.normal(0, 0.2, origin.shape).astype(np.float32)
        for (origin,) in layouts.origins(leaves, "clip", "openai").values()
    }
    return weights.write(folder / "clip.safetensors", tensors)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def generation_config(tiny_backbone, tiny_folder):
    """() -> config of defect generation, tiny, with changes by "a.b" key."""

    def make(**changes):
        config = config_file.load("configs/defect_generation/folder.py")
        paths = {
            "data.directory": str(tiny_folder),
            "model.directory": str(tiny_backbone),
        }
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return with_values(config, TINY_GENERATION | paths | changes)

    return make


@pytest.fixture(scope="session")
def detection_config(tiny_folder):
    """() -> config of the detector, tiny, with changes by "a.b" key."""

    def make(**changes):
        config = config_file.load("configs/detector/folder.py:unet")
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        paths = {"data.directory": str(tiny_folder)}
        return with_values(config, TINY_DETECTION | paths | changes)

    return make


@pytest.fixture(scope="session")
def swept_folder(tmp_path_factory):
    """Three classes told apart by their level; four test images each."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for label, name in enumerate(SWEPT_CLASSES):
        for split in ("train", "test"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = 60 * label + rng.integers(0, 60, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def sweep_config(swept_folder, tiny_backbone):
    """() -> config of a sweep of eight points, with changes by "a__b" key."""

    def make(**changes):
        config = config_file.load("configs/app/sweep_foundry.py:smoke")
        config.data.name, config.data.directory = "classes", str(swept_folder)
        config.data.image_size, config.data.categories = 16, ()
        config.data.num_train, config.data.shots = 3, 0
        config.data.defect_rule = "none"
        config.model.directory = str(tiny_backbone)
        config.app.task, config.app.num_vectors = "category", 2
        for phase in ("prior", "particles"):
            config.mixture[phase].normal, config.mixture[phase].defect = 1.0, 0.0
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        return with_values(config, changes)

    return make


class KeysRead:
    """Notes which keys of registered configs are read, one by one.

    Copies (`to_dict`) are not reading: everything is copied into the run record.
    """

    def __init__(self, patch: pytest.MonkeyPatch):
        self.read: set[str] = set()
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []
        self._paused = 0
        get, to_dict = (
            ml_collections.ConfigDict.__getitem__,
            ml_collections.ConfigDict.to_dict,
        )

        def noting_get(node, key):
            value = get(node, key)
            prefix = self._names.get(id(node))
            if prefix is not None and not self._paused:
                self.read.add(f"{prefix}{key}")
            return value

        def silent_to_dict(node, *args, **keywords):
            self._paused += 1
            try:
                return to_dict(node, *args, **keywords)
            finally:
                self._paused -= 1

        patch.setattr(ml_collections.ConfigDict, "__getitem__", noting_get)
        patch.setattr(ml_collections.ConfigDict, "to_dict", silent_to_dict)

    def register(self, config, renamed: dict[str, str] | None = None) -> None:
        """Watches a config; `renamed` maps its sections to the names they count as."""
        self._kept.append(config)  # ids stay taken
        self._paused += 1
        self._walk(config, "", renamed or {})
        self._paused -= 1

    def _walk(self, node, prefix, renamed):
        self._names[id(node)] = renamed.get(prefix, prefix)
        for key in node:
            if isinstance(node[key], ml_collections.ConfigDict):
                self._walk(node[key], f"{prefix}{key}.", renamed)

    def unread(self, config) -> list[str]:
        """Returns the keys of a config that nobody read, sections left out."""
        self._paused += 1
        found = [key for key in _leaves(config) if key not in self.read]
        self._paused -= 1
        return found


def _leaves(node, prefix=""):
    for key in node:
        if isinstance(node[key], ml_collections.ConfigDict):
            yield from _leaves(node[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.fixture
def keys_read(monkeypatch) -> KeysRead:
    return KeysRead(monkeypatch)


class Job(NamedTuple):
    """What the whole job left behind."""

    config: ml_collections.ConfigDict
    directory: Path
    page: Path
    table: Any
    unread: list[str]


@pytest.fixture(scope="session")
def whole_job(generation_config, tmp_path_factory) -> Job:
    """`jaxanom quickstart` on the tiny folder, once for all tests that look at it."""
    from jaxanom.jobs import defects_to_detector
    from jaxanom.jobs import prepare as prepared

    config = generation_config()
    directory = tmp_path_factory.mktemp("job") / "run"
    with pytest.MonkeyPatch.context() as patch:
        keys = KeysRead(patch)
        prepare = prepared.prepare

        def noting_prepare(given, **keywords):
            detector = {
                "detector.": "detector.options.",
                "phases.segment.": "detector.phase.",
            }
            keys.register(given, detector if given.method == "detector" else {})
            return prepare(given, **keywords)

        patch.setattr(prepared, "prepare", noting_prepare)
        keys.register(config)
        page, table = defects_to_detector.generate_then_detect(config, directory)
        unread = keys.unread(config)
    return Job(config, directory, page, table, unread)


@pytest.fixture(scope="session")
def v5e():
    """Sixteen TPUs that nobody has, to compile for; extra `tpu` brings the compiler."""
    pytest.importorskip("libtpu")
    return topology.devices("v5e:4x4")
