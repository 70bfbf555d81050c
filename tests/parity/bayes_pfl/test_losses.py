"""Every loss and its gradient against the released code."""

import jax
import numpy as np
import pytest

from jaxanom.losses import orthogonality, segmentation
from jaxanom.methods.bayes_pfl import objective


@pytest.mark.parametrize("suffix", ["", "_emptymask"])
def test_focal_and_dice_of_margins(golden, suffix):
    """The released loss sees a pair of logits, ours their difference."""
    arrays = golden.arrays("losses")
    mask = arrays["seg_mask"] * (0.0 if suffix else 1.0)

    def focal(logits):
        margins = logits[:, 1] - logits[:, 0]
        return segmentation.focal(margins, mask, class_balanced=True)

    def dice(logits):
        margins = logits[:, 1] - logits[:, 0]
        return segmentation.dice(jax.nn.sigmoid(margins), mask)

    for name, loss in (("focal", focal), ("dice", dice)):
        value, grads = jax.value_and_grad(loss)(arrays["seg_logits"])
        golden.close(value, arrays[name + suffix], what=name)
        key = f"{name}{suffix}_grad" if suffix else f"{name}_grad_logits"
        golden.close(grads, arrays[key], golden.gradient, name)


def test_decorrelation(golden):
    arrays = golden.arrays("losses")

    def loss(text):
        halves = np.split(np.arange(text.shape[1]), 2)
        return sum(orthogonality.squared_cosine(text[:, half]) for half in halves)

    value, grads = jax.value_and_grad(loss)(arrays["orth_emb"])
    golden.close(value, arrays["orth"])
    golden.close(grads, arrays["orth_grad"], golden.gradient)
    # Negative control: off-diagonal entries alone give another mean.
    num_prompts = arrays["orth_emb"].shape[1] // 2
    other = value * num_prompts / (num_prompts - 1)
    assert abs(other - arrays["orth"]) > 100 * golden.forward * abs(arrays["orth"])


def test_cross_entropy(golden):
    arrays = golden.arrays("losses")
    loss = jax.value_and_grad(objective.cross_entropy)
    value, grads = loss(arrays["ce_logits"], arrays["ce_labels"])
    golden.close(value, arrays["ce"])
    golden.close(grads, arrays["ce_grad"], golden.gradient)
