"""With dtype "bfloat16" networks multiply in bfloat16: read from the lowered programs.

Read is StableHLO as it is handed to an accelerator's compiler. What a CPU's compiler
makes of it says nothing: it widens bfloat16 operands itself, and on a CPU long
self-attention runs in float32 on purpose ("lean" in `models.ops.attention`).

A product may sum in float32; its operands decide how fast it is. `BY_DESIGN` names the
functions whose products stay float32.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import jaxanom
from jaxanom import trees
from jaxanom.jobs import config_file, dry_run, prepare
from jaxanom.models.clip import resnet
from jaxanom.models.latent import vae
from jaxanom.models.ops import attention
from jaxanom.training import plan

PLATFORM = "cuda"
ROOT = Path(jaxanom.__file__).resolve().parent

# (file, function or "*" for all) -> why its products are float32. The layers of towers
# are not among them.
BY_DESIGN = {
    ("models/clip/towers.py", "ImageTower.encode"): "projection of pooled features",
    ("models/clip/towers.py", "ImageTower.project_tokens"): "projection of tokens",
    ("models/clip/towers.py", "TextTower.__call__"): "projection of pooled features",
    ("models/clip/shared_prefix.py", "project"): "projection of pooled features",
    ("methods/detector/model.py", "Segmenter.__call__"): "two logits a pixel",
    ("models/latent/vae.py", "*"): "bfloat16 has 8 bits, as many as a pixel",
    ("methods/app/model.py", "particle_logits"): "cosines",
    ("methods/app/model.py", "prior_logits"): "cosines",
    ("methods/app/model.py", "prior_vectors"): "trained network of two small layers",
    ("methods/bayes_pfl/distributions.py", "*"): "flows and their encoders",
    ("methods/bayes_pfl/heads.py", "*"): "cosines, trained heads and maps",
    ("methods/bayes_pfl/model.py", "Network.image_logits"): "trained head",
    ("methods/bayes_pfl/predict.py", "make_finish.<locals>.finish"): "smoothed maps",
    ("methods/bayes_pfl/predict.py", "top_shares"): "means over pixels",
    ("methods/adp/objective.py", "state"): "cosines",
    ("methods/adp/objective.py", "align"): "cosines",
    ("methods/adp/channels/evidence.py", "*"): "cosines and distances",
    ("models/features/patches.py", "*"): "distances: differences of large products",
    ("methods/adp/channels/fusion.py", "smooth"): "smoothed maps",
    ("losses/orthogonality.py", "*"): "loss",
    ("jax", "_resize"): "enlarged maps, by `jax.image.resize`",
}


class Product(NamedTuple):
    """One matrix product or convolution of a lowered program."""

    kind: str
    operands: tuple[str, str]
    algorithm: str
    frames: tuple[tuple[str, str], ...]  # (file below the package, function)

    @property
    def is_wide(self) -> bool:
        """Whether it multiplies float32; an algorithm that rounds first does not."""
        narrow = "lhs_precision_type = bf16, rhs_precision_type = bf16"
        return "f32" in self.operands and narrow not in self.algorithm


_LINE = re.compile(
    r"stablehlo\.(dot_general|convolution)\b(.*) : "
    r"\(tensor<([^>]*)>, tensor<([^>]*)>\) -> .* loc\((#loc\d*)\)$",
    re.MULTILINE,
)


def products(text):
    """Reads all products of a program that was printed with locations."""
    places = dict(re.findall(r"^(#loc\d*) = loc\((.*)\)$", text, re.MULTILINE))
    found = [
        Product(
            kind,
            (left.split("x")[-1], right.split("x")[-1]),
            "".join(re.findall(r"algorithm = <[^>]*>", options)),
            _frames(places, place) or (("jax", _function_before(text, start)),),
        )
        for start, (kind, options, left, right, place) in (
            (match.start(), match.groups()) for match in _LINE.finditer(text)
        )
    ]
    assert len(found) == len(re.findall(r"stablehlo\.(?:dot\w*|convolution)\b", text))
    return found


def _frames(places, name):
    """Follows a location to the functions of the package, innermost first."""
    found, function, queue = [], "", [name]
    while queue:
        value = places.get(queue.pop(0), "")
        named = re.match(r'"([^"]*)"(?:\((#loc\d*)\))?', value)
        if named and named[1].startswith(str(ROOT)):
            found.append((str(Path(named[1]).relative_to(ROOT)), function))
        elif named and named[2]:
            function = named[1]
        queue = re.findall(r"#loc\d*", value) + queue
    return tuple(found)


def _function_before(text, start):
    """Names the function of the program that a place in the text belongs to."""
    return re.findall(r"func\.func [^@]*@(\w+?)(?:_\d+)?\(", text[:start])[-1]


def is_by_design(frames):
    return any(frame in BY_DESIGN or (frame[0], "*") in BY_DESIGN for frame in frames)


def lowered(function, *args):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    traced = jax.jit(function).trace(*shapes)
    return products(
        traced.lower(lowering_platforms=(PLATFORM,)).as_text(debug_info=True)
    )


def unexpected(found):
    """Counts float32 products by the function that asks for them."""
    wide = [p.frames for p in found if p.is_wide and not is_by_design(p.frames)]
    return Counter(frames[0] for frames in wide)


@pytest.fixture(autouse=True)
def lowering_for_an_accelerator(monkeypatch):
    # Without a kernel, whose products nobody could read.
    monkeypatch.setattr(attention, "fusing_platform", lambda: "other")


def config_of(recipe, backbone, dtype):
    config = config_file.load(f"configs/{recipe}:smoke")
    config.data.image_size, config.data.categories = 16, ("pill",)
    if "model" in config:
        config.model.directory, config.model.dtype = str(backbone), dtype
    if recipe.startswith("bayes_pfl"):
        config.bayes_pfl.layers, config.data.held_out = (1,), ()
    if recipe.startswith("adp"):
        config.adp.feature_layers, config.adp.windows = (0, 1), (1, 2)
        config.adp.map_size = 4
    if recipe.startswith("detector"):
        config.detector.width, config.detector.depth = 4, 1
        config.detector.dtype = dtype
    return config


def rows(config, count=2):
    size = config.data.image_size
    numbers = dict.fromkeys(("label", "category_id", "defect_id"), jnp.int32)
    return {
        "image": jax.ShapeDtypeStruct((count, size, size, 3), jnp.float32),
        "mask": jax.ShapeDtypeStruct((count, size, size), jnp.float32),
        "valid": jax.ShapeDtypeStruct((count,), jnp.bool_),
        "seed": jax.ShapeDtypeStruct((count,), jnp.uint32),
        **{
            name: jax.ShapeDtypeStruct((count,), kind) for name, kind in numbers.items()
        },
    }


def programs(config):
    """Yields (name, products) of every phase's gradient and of every other program."""
    made = prepare.prepare(config)
    params, frozen = made.method.init(jax.random.key(0))
    key = jax.random.key(0)
    for stage in plan.stages(made.method, config.phases):
        trained, fixed = trees.split(params, stage.phase.trainable)

        def gradient(trained, fixed, frozen, batch, key, loss_fn=stage.phase.loss_fn):
            def loss(trained):
                return loss_fn(trees.merge(trained, fixed), frozen, batch, key)[0]

            return jax.grad(loss)(trained)

        batch = dry_run.batch_shapes(made, frozen, stage.name)
        yield stage.name, lowered(gradient, trained, fixed, frozen, batch, key)
    if made.method.encode is not None:
        yield "encode", lowered(made.method.encode, frozen, rows(config))
    for name in ("predict", "generate"):
        function = getattr(made.method, name)
        if function is not None:
            yield name, lowered(function, params, frozen, rows(config), key)


@pytest.mark.parametrize(
    "recipe",
    [
        "defect_generation/foundry.py",
        "detector/foundry.py",
        "app/foundry.py",
        "bayes_pfl/foundry.py",
        "adp/foundry.py",
    ],
)
def test_no_network_multiplies_float32_in_bfloat16_mode(recipe, tiny_backbone):
    found = dict(programs(config_of(recipe, tiny_backbone, "bfloat16")))
    assert any(p.operands == ("bf16", "bf16") for ps in found.values() for p in ps)
    assert {name: unexpected(ps) for name, ps in found.items() if unexpected(ps)} == {}


def test_a_float32_network_is_found(tiny_backbone):
    """Negative control: the same reading of the same method without the option."""
    config = config_of("defect_generation/foundry.py", tiny_backbone, "float32")
    _, found = next(programs(config))
    assert {
        ("models/ops/attention.py", "_matmul"),
        ("models/latent/layers.py", "ResidualBlock.__call__"),
    } <= set(unexpected(found))
    assert len(found) == sum(unexpected(found).values())


def test_both_directions_of_attention_multiply_bfloat16():
    def loss(*arrays):
        return attention.dot_product(*arrays).sum()

    array = jax.ShapeDtypeStruct((2, 6, 2, 4), jnp.bfloat16)
    found = lowered(jax.grad(loss, (0, 1, 2)), array, array, array)
    assert len(found) >= 5 and not any(p.is_wide for p in found)


def test_logits_whose_gradient_stays_float32_are_found():
    """Negative control: the einsum that `attention.products` stands in for."""

    def loss(query, key):
        logits = jnp.einsum("qd,kd->qk", query, key, preferred_element_type=jnp.float32)
        return jnp.sum(logits**2)

    array = jax.ShapeDtypeStruct((4, 8), jnp.bfloat16)
    found = lowered(jax.grad(loss, (0, 1)), array, array)
    assert [p.is_wide for p in found] == [False, True, True]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("tower", ["autoencoder", "resnet"])
def test_other_towers_have_no_float32_layer_unless_asked(tower, dtype):
    image = jnp.zeros((1, 32, 32, 3))
    if tower == "autoencoder":
        config = vae.VaeConfig(block_out_channels=(4, 4), norm_num_groups=2)
        module = vae.AutoencoderKL(config)
    else:
        config = resnet.ResNetConfig(
            layers=(1, 1, 1, 1), width=8, num_heads=2, image_size=32, projection_dim=8
        )
        module = resnet.ResNetTower(config)
    params = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    module = module.clone(dtype=jnp.dtype(dtype))

    def loss(params, image):
        found = module.apply({"params": params}, image)
        return sum(jnp.sum(x) for x in jax.tree.leaves(found))

    found = lowered(jax.grad(loss), params, image)
    wide = sum(p.is_wide for p in found)
    assert len(found) > 10 and wide == (0 if dtype == "bfloat16" else len(found))
