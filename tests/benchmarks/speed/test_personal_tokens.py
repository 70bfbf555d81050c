"""Tokens: the timed loops learn the same vectors, and other draws would show."""

import jax
import numpy as np
import pytest

from benchmarks.speed import personal_tokens


def test_both_learn_the_same_vectors_and_other_draws_give_others(
    tiny_backbone, monkeypatch
):
    for library in ("torch", "diffusers", "transformers"):
        pytest.importorskip(library)
    given = personal_tokens.problem(str(tiny_backbone), steps=2, batch=2)
    cases = personal_tokens.cases_of(given, [2])
    assert [case.name for case in cases] == ["ours, 2 tokens", personal_tokens.TORCH]
    # Adam's first steps divide gradients by their own size, so float32 errors of the
    # smallest gradients show; observed 1e-5 of the way.
    assert cases[0].facts["difference"] < 1e-3
    found = np.asarray(cases[0].call())
    assert found.shape[:2] == (2, personal_tokens.NUM_VECTORS)
    honest = personal_tokens.draws
    monkeypatch.setattr(
        personal_tokens, "draws", lambda given, key: honest(given, jax.random.key(9))
    )
    other = personal_tokens.torch_loop(given)()
    start = personal_tokens.token_data(given.towers, given.params, 1).start[0]
    assert personal_tokens.difference(other, found[0], start) > 0.1


def test_rates_are_compared_by_token_steps():
    rows = [
        {"case": "ours, 8 tokens", "rate": 6.0},
        {"case": personal_tokens.TORCH, "rate": 2.0},
    ]
    found = personal_tokens.times_as_fast(rows)
    assert [row["times_torch"] for row in found] == [3.0, 1.0]
    assert "times_torch" not in personal_tokens.times_as_fast(rows[:1])[0]
