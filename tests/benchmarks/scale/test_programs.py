"""Programs: the hand count is the program's, and what is not donated is not counted."""

import jax
import jax.numpy as jnp

from benchmarks.scale import programs


def test_a_train_step_takes_what_a_count_by_hand_says_and_donates_its_state():
    row = programs.train_step("small", "matmul")
    assert row["uncounted"] == []
    assert row["flops_over_hand"] == 1.0 and row["donated_over_state"] == 1.0
    # The control: the attention that computes its matrix twice takes more.
    assert programs.train_step("small", "lean")["flops_over_hand"] > 1.01


def test_only_arguments_that_a_result_takes_over_count_as_donated():
    def step(state, batch):
        return {"w": state["w"] + batch.sum(), "n": state["n"] + 1}

    shapes = (
        {
            "w": jax.ShapeDtypeStruct((3, 5), jnp.float32),
            "n": jax.ShapeDtypeStruct((), jnp.int32),
        },
        jax.ShapeDtypeStruct((7,), jnp.float32),
    )
    kept = jax.jit(step).lower(*shapes).as_text()
    given = jax.jit(step, donate_argnums=0).lower(*shapes).as_text()
    assert programs.donated_bytes(kept) == 0
    assert programs.donated_bytes(given) == 4 * 15 + 4
