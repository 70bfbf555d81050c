"""The UNet's benchmark times what gives the same numbers, and sees what does not."""

import jax
import pytest

from benchmarks.speed import unet, unet_torch


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    return unet.prepare(unet.SIZES["small"], tmp_path_factory.mktemp("unet"), 2, 3)


@pytest.mark.slow
def test_results_agree_with_pytorch_and_a_changed_weight_shows(work):
    peer = unet_torch.make(work.folder, "eager", work.batch)
    wanted = unet.torch_results(work, peer, unet.CALLS)
    module = unet.module_of(work, "ours")
    cases = unet.flax_cases(work, module, "ours")
    found = unet.flax_results(work, "ours", cases, unet.CALLS)
    errors = unet.differences(found, wanted)
    assert set(errors) == {*unet.CALLS, "loss"}
    assert max(errors.values()) < 1e-4  # float32 through a dozen layers, measured 2e-6
    tower = work.tower
    changed = jax.tree.map(lambda leaf: leaf * 1.01, tower.params)
    other = work._replace(tower=tower._replace(params=changed))
    cases = unet.flax_cases(other, module, "ours")
    found = unet.flax_results(other, "ours", cases, ("forward",))
    short = unet.torch_results(work, peer, ("forward",))
    assert unet.differences(found, short)["forward"] > 1e-3


def test_a_network_the_libraries_class_does_not_know_is_left_out(capsys):
    pytest.importorskip("diffusers")
    shipped = unet.backbones.resolve("embedded") / "unet"
    work = unet.Work(shipped, unet.backbones.load_unet(shipped), {}, {})
    assert set(unet.flax_modules(work, unet.PEERS)) == {"ours"}
    assert "norm_num_groups" in capsys.readouterr().out
