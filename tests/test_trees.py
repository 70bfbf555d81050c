import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom import trees


def tree():
    return {
        "down": {"kernel": np.arange(6.0).reshape(2, 3), "bias": np.ones(3)},
        "up": {"kernel": np.full((3, 2), 2.0)},
    }


def test_flatten_and_unflatten_are_inverses():
    flat = trees.flatten(tree())
    assert sorted(flat) == ["down/bias", "down/kernel", "up/kernel"]
    jax.tree.map(np.testing.assert_array_equal, trees.unflatten(flat), tree())


def test_split_and_merge_are_inverses_and_share_no_leaf():
    selected, rest = trees.split(tree(), [".*kernel"])
    assert sorted(trees.flatten(selected)) == ["down/kernel", "up/kernel"]
    assert sorted(trees.flatten(rest)) == ["down/bias"]
    jax.tree.map(np.testing.assert_array_equal, trees.merge(selected, rest), tree())


def test_patterns_match_whole_paths_only():
    selected, _ = trees.split(tree(), ["down/.*", "up"])
    assert sorted(trees.flatten(selected)) == ["down/bias", "down/kernel"]


def test_a_pattern_that_matches_nothing_shows_paths_that_exist():
    with pytest.raises(ValueError, match=r"dwon.*down/kernel|dwon.*down/bias"):
        trees.split(tree(), ["dwon/.*"])


def test_a_tree_without_leaves_splits_into_nothing():
    assert trees.split({}, [".*"]) == ({}, {})


def test_merging_a_leaf_twice_is_refused():
    with pytest.raises(ValueError, match="down/bias"):
        trees.merge(tree(), {"down": {"bias": np.zeros(3)}})


def test_ravelled_particles_keep_rows_apart_and_come_back_with_their_types():
    stacked = {
        "a": jnp.arange(12.0).reshape(2, 3, 2),
        "b": jnp.asarray([[1.5], [-2.0]], jnp.bfloat16),
    }
    matrix, unravel = trees.ravel_particles(stacked)
    assert matrix.shape == (2, 7) and matrix.dtype == jnp.float32
    np.testing.assert_array_equal(matrix[1], [6, 7, 8, 9, 10, 11, -2])
    again = unravel(matrix)
    assert again["b"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, again, stacked)


def test_num_params_counts_values():
    assert trees.num_params(tree()) == 6 + 3 + 6


def test_equal_shapes_pass_and_others_are_named():
    trees.check_same_shapes(tree(), tree(), "here")
    other = tree()
    other["up"]["kernel"] = np.zeros((3, 4))
    del other["down"]["bias"]
    with pytest.raises(ValueError, match="another model") as error:
        trees.check_same_shapes(other, tree(), "run/params.safetensors")
    text = str(error.value)
    assert "run/params.safetensors" in text and "2 paths" in text
    assert "up/kernel: wanted (3, 2), found (3, 4)" in text
    assert "down/bias: wanted (3,), found nothing" in text
