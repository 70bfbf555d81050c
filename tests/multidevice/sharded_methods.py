"""All four methods on eight simulated devices walk the path of one device.

Every mesh trains the same tiny recipe from the same weights on the same global batches;
the smallest leaf that fsdp splits is lowered, so that tiny networks are split as large
ones are.
"""

import functools

import jax
import numpy as np
import pytest

from configs import common
from jaxanom import trees
from jaxanom.jobs import config_file, prepare
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import placement, rules
from jaxanom.training import loop

SHORT, LONG = 5, 50
# Every sum over rows or columns is taken in another order: 1e-7 a step, which 50 steps
# and Adam's division by small gradients raise.
TOLERANCE = 1e-5
# Planar flows walk a chaotic path. Gradients of a saturated layer are 1e-9, all of it
# rounding, and Adam with its usual 1e-8 makes whole steps of them, other ones on every
# mesh; layers are steep, so that at the recipe's 1e-3 any difference grows a
# hundredfold in 50 steps. Where the path is steady, what is left is the mesh's doing.
STEADY = {"bayes_pfl": {"eps": 1e-3, "learning_rate": 1e-4}}
EIGHT_NAMES = ("pill", "nut", "button", "cap", "chip", "cable", "gear", "tray")
CHANGES = {
    "defect_generation/foundry.py": {
        "model.unet": "scratch",
        "model.block_out_channels": (8,),
        "model.num_heads": 2,
    },
    "app/foundry.py": {"app.num_vectors": 2, "app.num_particles": 8},
    "bayes_pfl/foundry.py": {"bayes_pfl.layers": (1,), "data.held_out": ()},
    "adp/foundry.py": {
        "adp.feature_layers": (0, 1),
        "adp.windows": (1, 2),
        "adp.map_size": 4,
        "data.categories": EIGHT_NAMES,
    },
}
PHASE = {
    "defect_generation": "finetune",
    "app": "particles",
    "bayes_pfl": "stage1",
    "adp": "invert",
}
SPLIT_WEIGHTS = {
    "2x4": {"data": 2, "fsdp": 4},
    "4x2": {"data": 4, "model": 2},
    "8": {"data": 1, "fsdp": 8},
}
SPLIT_PARTICLES = {
    "2x4": {"data": 2, "particle": 4},
    "4x2": {"data": 4, "particle": 2},
    "8": {"data": 1, "particle": 8},
}
MESHES = {
    "defect_generation": SPLIT_WEIGHTS,
    "app": SPLIT_PARTICLES,
    "bayes_pfl": SPLIT_WEIGHTS | {"8": {"data": 8}},
    "adp": SPLIT_PARTICLES,
}
SUITE = {
    "defect_generation": "2x4",
    "app": "2x4",
    "bayes_pfl": "4x2",
    "adp": "8",
}


def recipe_of(name):
    return f"{name}/foundry.py"


@pytest.fixture(scope="module", autouse=True)
def small_leaves_are_split():
    before, rules.MIN_FSDP_SIZE = rules.MIN_FSDP_SIZE, 32
    yield
    rules.MIN_FSDP_SIZE = before


@functools.cache
def made(name, backbone):
    """The method, its first parameters and its batches: made once for all meshes."""
    config = config_file.load(f"configs/{recipe_of(name)}:smoke")
    config.data.image_size, config.data.batch_size = 16, 8
    config.data.categories = ("pill",)
    config.model.directory = str(backbone)
    for key, value in CHANGES[recipe_of(name)].items():
        section, last = key.split(".")
        config[section][last] = value
    for phase in config.phases:
        config.phases[phase].num_steps = LONG if phase == PHASE[name] else 0
        config.phases[phase].warmup_steps = 0
        if name == "app":  # its first epoch hardly moves
            config.phases[phase].schedule = "constant"
    if "selection" in config:
        config.bayes_pfl.image_head = "pooled"  # stage 2 is left out
    found = prepare.prepare(config, devices=jax.devices()[:1])
    initial = jax.tree.map(np.asarray, found.method.init(jax.random.key(0)))
    make_batches = prepare.batch_maker(found, initial[1], *prepare.pools_of(found))
    batches = make_batches(PHASE[name], 0)
    first = [placement.to_host(next(batches)) for _ in range(LONG)]
    return config, found.method, initial, first


def train(name, backbone, num_steps, sizes, directory, first_batch=None):
    """Returns (losses, trained parameters) on the host."""
    config, method, initial, batches = made(name, backbone)
    losses = []

    def on_log(row):
        if row["kind"] == "train":
            losses.append(row["loss"])

    def make_batches(phase, step):
        chosen = [first_batch or batches[0], *batches[1:]]
        return iter(chosen[step:])

    phases = {key: dict(value) for key, value in config.phases.to_dict().items()}
    phases[PHASE[name]] |= {"num_steps": num_steps, **STEADY.get(name, {})}
    devices = jax.devices() if sizes else jax.devices()[:1]
    params, _ = loop.run(
        method,
        phases,
        common.TRAIN | {"log_every": 1, "checkpoint_every": 0},
        make_batches,
        meshes.make_mesh(**(sizes or {}), devices=devices),
        directory,
        initial=initial,
        on_log=on_log,
    )
    return np.array(losses), trained(name, method, placement.to_host(params))


def trained(name, method, params):
    """What the phase trains; the rest would make every difference look small."""
    phase = next(one for one in method.phases if one.name == PHASE[name])
    return trees.split(params, phase.trainable)[0]


@functools.cache
def alone(name, backbone, num_steps, directory):
    return train(name, backbone, num_steps, None, directory)


def gap(found, wanted):
    """Distance of two trees, relative to the length of the second."""
    difference = jax.tree.map(lambda a, b: np.asarray(a - b, np.float64), found, wanted)
    norm = lambda tree: np.sqrt(  # noqa: E731
        sum(np.sum(np.square(np.float64(leaf))) for leaf in jax.tree.leaves(tree))
    )
    return norm(difference) / norm(wanted)


def check(name, backbone, num_steps, sizes, folders):
    wanted_losses, wanted = alone(name, backbone, num_steps, folders / f"{name}-alone")
    losses, params = train(
        name, backbone, num_steps, sizes, folders / f"{name}-{sizes}"
    )
    assert len(losses) == num_steps
    # A loss near zero is compared with where it began.
    scale = np.maximum(np.abs(wanted_losses), 0.1 * np.abs(wanted_losses[0]))
    assert np.max(np.abs(losses - wanted_losses) / scale) <= TOLERANCE
    assert gap(params, wanted) <= TOLERANCE
    # It moved, so that agreeing means something.
    _, method, initial, _ = made(name, backbone)
    assert gap(trained(name, method, initial[0]), wanted) > 10 * TOLERANCE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", MESHES)
def test_a_method_on_eight_devices_trains_as_on_one(name, tiny_backbone, folders):
    check(name, tiny_backbone, SHORT, MESHES[name][SUITE[name]], folders)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SPLIT_WEIGHTS)
@pytest.mark.parametrize("name", MESHES)
def test_fifty_steps_on_any_mesh_are_those_of_one_device(
    name, layout, tiny_backbone, folders
):
    check(name, tiny_backbone, LONG, MESHES[name][layout], folders / "long")


def test_one_other_row_in_one_batch_is_noticed(tiny_backbone, folders, tmp_path):
    """Negative control: what a device that loses one of its rows would do."""
    name = "bayes_pfl"
    _, wanted = alone(name, tiny_backbone, SHORT, folders / f"{name}-alone")
    batch = made(name, tiny_backbone)[3][0]
    changed = {key: np.array(value) for key, value in batch.items()}
    for value in changed.values():
        value[-1] = value[0]
    assert any(np.any(changed[key] != batch[key]) for key in batch)
    _, params = train(name, tiny_backbone, SHORT, None, tmp_path, changed)
    assert gap(params, wanted) > TOLERANCE


def test_tiny_networks_are_split(tiny_backbone):
    """So that the tests above are about split weights."""
    layout = meshes.make_mesh(data=2, fsdp=4)
    params, frozen = made("defect_generation", tiny_backbone)[2]
    specs = [
        place.spec
        for tree in (params, frozen)
        for place in jax.tree.leaves(rules.shardings(tree, layout))
    ]
    assert sum("fsdp" in spec for spec in specs) > 10
    layout = meshes.make_mesh(data=4, model=2)
    places = trees.flatten(
        rules.shardings(made("bayes_pfl", tiny_backbone)[2][1], layout)
    )
    assert sum("model" in place.spec for place in places.values()) > 4
