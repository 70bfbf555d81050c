"""Flows, encoders and KL terms against the released modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.methods.bayes_pfl import distributions
from jaxanom.posterior import flows


def planar(arrays):
    return flows.Planar(
        arrays["u"][..., 0], arrays["w"][..., 0, :], arrays["b"][..., 0, 0]
    )


def test_every_planar_step_and_its_log_determinant(golden):
    arrays = golden.arrays("planar_flow")
    flow = planar(arrays)
    assert (arrays["one_plus_psi_u"] < 0).any()  # a fold, which is let be
    point = arrays["z0"]
    for k in range(flow.b.shape[-1]):
        point, logdet = flows.step(point, flow.u[:, k], flow.w[:, k], flow.b[:, k])
        golden.close(point, arrays["z_all"][k + 1], what=f"step {k}")
        golden.close(logdet, arrays["logdet_all"][k], what=f"logdet {k}")
    moved, total = flows.push(arrays["z0"], flow)
    golden.close(moved, arrays["z_all"][-1])
    golden.close(total, arrays["logdet_sum"])


def test_gradients_through_the_flow(golden):
    arrays = golden.arrays("planar_flow")

    def objective(point, flow):
        moved, logdet = flows.push(point, flow)
        return jnp.sum(moved * arrays["cot_z"]) + jnp.sum(logdet * arrays["cot_logdet"])

    value, grads = jax.value_and_grad(objective, (0, 1))(arrays["z0"], planar(arrays))
    golden.close(value, arrays["objective"])
    golden.close(grads[0], arrays["grad_z0"], golden.gradient)
    for name, grad in grads[1]._asdict().items():
        wanted = arrays[f"grad_{name}"].reshape(grad.shape)
        golden.close(grad, wanted, golden.gradient, name)


def draws_of(golden, noise):
    image_features = golden.arrays("prompt_flow")["image_features"]
    network = golden.network()
    rows = image_features[: noise.context.shape[0]]
    return network.apply({"params": golden.params()}, rows, None, noise, method="draw")


def test_encoders_draws_and_kl_terms_of_a_training_step(golden):
    arrays = golden.arrays("prompt_flow")
    noise = distributions.Noise(
        *(
            arrays[f"{tag}/eps"][:, None]
            for tag in ("isd", "iad_normal", "iad_abnormal")
        )
    )
    draws = draws_of(golden, noise)
    num_images = noise.context.shape[0]
    for tag, draw in zip(("isd", "iad_normal", "iad_abnormal"), draws, strict=True):
        for name, value in (
            ("mu", draw.mean),
            ("var", draw.variance),
            ("z0", draw.start),
            ("zk", draw.end),
            ("logdet", draw.logdet),
        ):
            golden.close(value[:, 0], arrays[f"{tag}/{name}"], what=f"{tag} {name}")
        kl = (
            distributions.kl_image_specific(draw)
            if tag == "isd"
            else distributions.kl_image_agnostic(draw, num_images, "author")
        )
        golden.close(kl, arrays[f"{tag}/kl"], what=tag)


def test_the_amortised_flow_and_the_reconstruction(golden):
    arrays = golden.arrays("prompt_flow")
    network = golden.network(reconstruction_weight=1.0)
    params = golden.params(reconstruction_weight=1.0)
    flow = network.bind({"params": params}).context_flow(arrays["image_features"])
    for name, value in flow._asdict().items():
        golden.close(value, arrays[f"isd/{name}"].reshape(value.shape), what=name)
    end = arrays["isd/zk"][:, None]
    draw = distributions.Draw(None, None, None, end, None)
    draws = distributions.Draws(draw, None, None)
    rebuilt = network.apply({"params": params}, draws, method="reconstruct")
    golden.close(rebuilt[:, 0], arrays["isd/x_mean"])
    error = np.sum((rebuilt[:, 0] - arrays["image_features"]) ** 2, -1).mean()
    golden.close(error, arrays["isd/rec"])


def test_several_draws_of_one_image(golden):
    arrays = golden.arrays("prompt_flow")
    tags = ("isd", "iad_normal", "iad_abnormal")
    noise = distributions.Noise(*(arrays[f"test/eps_{tag}"][None] for tag in tags))
    for tag, draw in zip(tags, draws_of(golden, noise), strict=True):
        golden.close(draw.end[0], arrays[f"test/zk_{tag}"], what=tag)


@pytest.mark.parametrize("tag", ["kl_isd", "kl_iad"])
def test_gradients_of_the_kl_terms(golden, tag):
    arrays = golden.arrays("losses")
    num_images = arrays[f"{tag}/x"].shape[0]
    values = {n: arrays[f"{tag}/{n}"][:, None] for n in ("mu", "var", "z0", "zk")}
    values["logdet"] = arrays[f"{tag}/logdet"][:, None]

    def kl(values):
        draw = distributions.Draw(
            mean=values["mu"],
            variance=values["var"],
            start=values["z0"],
            end=values["zk"],
            logdet=values["logdet"],
        )
        if tag == "kl_isd":
            return distributions.kl_image_specific(draw)
        return distributions.kl_image_agnostic(draw, num_images, "author")

    value, grads = jax.value_and_grad(kl)(values)
    golden.close(value, arrays[f"{tag}/kl"])
    for name, grad in grads.items():
        wanted = arrays[f"{tag}/grad_{name}"]
        golden.close(grad[:, 0], wanted, golden.gradient, name)


def test_the_exact_log_determinant_differs_from_the_released_one(golden):
    """Negative control: dividing by N is seen by these tolerances."""
    arrays = golden.arrays("prompt_flow")
    noise = distributions.Noise(
        *(
            arrays[f"{tag}/eps"][:, None]
            for tag in ("isd", "iad_normal", "iad_abnormal")
        )
    )
    draw = draws_of(golden, noise).normal
    exact = distributions.kl_image_agnostic(draw, noise.context.shape[0], "exact")
    wanted = arrays["iad_normal/kl"]
    assert abs(exact - wanted) > 10 * golden.forward * abs(wanted)
