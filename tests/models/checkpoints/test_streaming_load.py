"""Weights go to their devices one tensor at a time; host memory holds little more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxanom
from jaxanom import trees
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.checkpoints.formats import stored, weights
from jaxanom.parallel import mesh, rules

ROOT = Path(jaxanom.__file__).parents[1]
# A text tower's proportions: one table of a third, the rest in equal matrices.
SIZES = {
    "embeddings/token_embedding/embedding": (16_384, 1024),
    **{f"layers/{i}/mlp/fc1/kernel": (1024, 2048) for i in range(16)},
    **{f"layers/{i}/mlp/fc1/bias": (2048,) for i in range(16)},
}
CHILD = """
import json, sys
import jax, numpy as np
from jaxanom import trees
from jaxanom.models.checkpoints import pretrained
from jaxanom.models.checkpoints.formats import weights
from jaxanom.parallel import mesh, placement, rules

path, how, sizes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
target = trees.unflatten(
    {name: jax.ShapeDtypeStruct(tuple(s), np.float32) for name, s in sizes.items()}
)
place = rules.shardings(target, mesh.make_mesh(data=1, fsdp=4))
jax.block_until_ready(jax.device_put(np.ones(8), jax.devices()[0]))
def peak():
    # Not ru_maxrss: a child inherits its parent's there.
    with open("/proc/self/status") as file:
        rows = dict(line.split(":", 1) for line in file)
    return 1024 * int(rows["VmHWM"].split()[0])
before = peak()
if how == "streamed":
    params = pretrained.load_params(path, "clip", target, place=place)
else:
    whole = weights.read(path)  # all tensors at once, then all leaves beside them
    host = pretrained.load_params(path, "clip", target)
    params = placement.place(host, place)
leaf = params["embeddings"]["token_embedding"]["embedding"]
parts = [part.data.shape for part in leaf.addressable_shards]
print(json.dumps([peak() - before, parts, float(leaf[5, 7])]))
"""


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """200 MB under published names."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    tree = trees.unflatten(
        {
            name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            for name, shape in SIZES.items()
        }
    )
    weights.write(path, pretrained.to_published(tree, "clip"))
    yield path
    path.unlink()


def run(path, how):
    flag = "--xla_force_host_platform_device_count=4"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), how, json.dumps(SIZES)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_of_a_load_is_little_above_the_file(large_file):
    size = large_file.stat().st_size
    grown, parts, value = run(large_file, "streamed")
    assert parts == [[4096, 1024]] * 4
    assert value == 5 * 1024 + 7
    # The devices are this machine's memory here, so the parameters themselves count.
    assert size * 0.9 < grown < 1.3 * size, grown / size
    # Negative control: reading all, then placing all, holds everything twice.
    grown, _, _ = run(large_file, "at once")
    assert grown > 1.8 * size, grown / size


def small(tmp_path, dtype=np.float32):
    rng = np.random.default_rng(0)
    tree = {
        "fc": {
            "kernel": rng.normal(size=(8, 4)).astype(dtype),
            "bias": rng.normal(size=4).astype(dtype),
        },
        "logit_scale": np.array(2.5, dtype),
    }
    path = weights.write(
        tmp_path / "m.safetensors", pretrained.to_published(tree, "clip")
    )
    return path, tree


def assert_equal(found, wanted):
    found, wanted = trees.flatten(found), trees.flatten(wanted)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), value)


def test_every_leaf_is_on_the_shard_the_rules_give_it(tmp_path):
    path, tree = small(tmp_path)
    place = rules.shardings(tree, mesh.make_mesh())
    found = pretrained.load_params(path, "clip", tree, place=place)
    assert_equal(found, tree)
    for leaf, sharding in zip(
        jax.tree.leaves(found), jax.tree.leaves(place), strict=True
    ):
        assert isinstance(leaf, jax.Array) and leaf.sharding == sharding


def test_halves_are_widened_on_the_way(tmp_path):
    path, tree = small(tmp_path, np.float16)
    place = rules.shardings(tree, mesh.make_mesh())
    found = pretrained.load_params(path, "clip", tree, place=place)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert_equal(found, jax.tree.map(lambda leaf: leaf.astype(np.float32), tree))
    narrow = pretrained.load_params(path, "clip", tree, jnp.bfloat16, place=place)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype("bfloat16")}


def test_the_largest_leaves_are_read_first(tmp_path, monkeypatch):
    path, tree = small(tmp_path)
    seen, read = [], stored.read
    monkeypatch.setattr(
        stored, "read", lambda tensor, *part: seen.append(tensor) or read(tensor, *part)
    )
    assert_equal(pretrained.load_params(path, "clip", tree), tree)
    sizes = [tensor.nbytes for tensor in seen]
    assert len(sizes) == 3 and sizes == sorted(sizes, reverse=True)


def test_shardings_of_another_tree_are_refused_before_a_tensor_is_read(
    tmp_path, monkeypatch
):
    path, tree = small(tmp_path)
    place = rules.shardings(tree["fc"], mesh.make_mesh())
    monkeypatch.setattr(stored, "read", lambda *_: pytest.fail("read weights"))
    with pytest.raises(ValueError, match="place and target differ"):
        pretrained.load_params(path, "clip", tree, place=place)


def test_a_placed_leaf_may_be_donated_and_the_file_read_again(tmp_path):
    path, tree = small(tmp_path)
    place = rules.shardings(tree, mesh.make_mesh())
    first = pretrained.load_params(path, "clip", tree, place=place)
    jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)(first)
    assert_equal(pretrained.load_params(path, "clip", tree, place=place), tree)
