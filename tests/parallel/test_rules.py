import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxanom.parallel import mesh, rules


def abstract_mesh(data=1, fsdp=1, model=1, particle=1):
    """Specs depend on axis sizes only, so no devices are needed."""
    return AbstractMesh((data, fsdp, model, particle), mesh.AXES)


def spec(path, shape, **sizes):
    return rules.spec(path, shape, abstract_mesh(**sizes))


def names(found):
    """Axes without trailing None, which P writes or leaves out."""
    axes = list(found)
    while axes and axes[-1] is None:
        axes.pop()
    return tuple(axes)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("unet/conv_in/kernel", (3, 3, 4, 320)),
        ("text/layers/0/self_attn/q_proj/kernel", (768, 768)),
        ("particles/prompt", (5, 16, 512)),
        ("scale", ()),
    ],
)
def test_pure_data_parallelism_replicates_every_parameter(path, shape):
    assert names(spec(path, shape, data=8)) == ()


def test_fsdp_splits_the_largest_dimension_it_divides():
    assert names(spec("a/kernel", (3, 3, 128, 256), fsdp=4)) == (None,) * 3 + ("fsdp",)
    assert names(spec("a/kernel", (512, 130), fsdp=4)) == ("fsdp",)
    # 1001 is larger but odd: the rule takes the largest *divisible* one.
    assert names(spec("a/kernel", (1001, 64), fsdp=4)) == (None, "fsdp")


def test_fsdp_leaves_small_and_indivisible_leaves_whole():
    assert names(spec("a/bias", (512,), fsdp=4)) == ()
    assert names(spec("a/kernel", (1001, 1003), fsdp=4)) == ()
    # Negative control: the same bias is split once it is large.
    assert names(spec("a/bias", (rules.MIN_FSDP_SIZE,), fsdp=4)) == ("fsdp",)


def test_tensor_parallel_projections_split_out_then_in():
    sizes = {"model": 2, "fsdp": 2}
    out = spec("e/layers/0/mlp/fc1/kernel", (256, 1024), **sizes)
    back = spec("e/layers/0/mlp/fc2/kernel", (1024, 256), **sizes)
    assert names(out) == ("fsdp", "model")
    assert names(back) == ("model", "fsdp")


def test_particles_split_their_leading_axis():
    assert names(spec("particles/prompt", (4, 16, 64), particle=2)) == ("particle",)
    # Negative control: the word inside another name is no match.
    assert names(spec("sub_particles/prompt", (4, 16, 64), particle=2)) == ()


def test_a_rule_that_does_not_divide_is_an_error_that_names_the_key():
    with pytest.raises(ValueError, match=r"particles/prompt.*config\.mesh\.particle"):
        spec("particles/prompt", (5, 16), particle=2)


def test_optimizer_state_lives_where_its_parameter_lives():
    params = {
        "particles": {"prompt": jnp.zeros((4, 8))},
        "big": {"kernel": jnp.zeros((256, 128))},
    }
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    found = rules.shardings_like(state, params, abstract_mesh(particle=2, fsdp=2))
    assert names(found[0].mu["particles"]["prompt"].spec) == ("particle",)
    assert names(found[0].nu["big"]["kernel"].spec) == ("fsdp",)
    assert found[0].count.spec == P()


def test_the_catch_all_comes_last():
    assert rules.RULES[-1] == (".*", P())
