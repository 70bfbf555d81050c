"""What a dry run prints is what a training would hold; it writes and trains nothing."""

import jax
import jax.numpy as jnp
import pytest

from configs import common
from jaxanom import trees
from jaxanom.cli import main
from jaxanom.contracts import Phase
from jaxanom.jobs import config_file, dry_run, prepare
from jaxanom.parallel import memory
from jaxanom.parallel import mesh as meshes
from jaxanom.training import forecast, optimizer, plan


@pytest.fixture(scope="module")
def of_generation(generation_config):
    """One that encodes images ahead: its batches hold latents."""
    return dry_run.of_config(generation_config(train__ema_decay=0.9))


@pytest.fixture(scope="module")
def of_detection(detection_config):
    return dry_run.of_config(detection_config(train__ema_decay=0.0))


def test_parameters_moments_and_average_are_counted(generation_config, of_generation):
    (one,) = of_generation.forecasts
    made = prepare.prepare(generation_config())
    params, frozen = made.method.init(jax.random.key(0))
    size = 4 * trees.num_params(params)
    assert one.phase == "finetune"
    assert one.params == size
    # Adam's two moments and the average; besides, counters and the key.
    assert 0 < one.optimizer - 3 * size < 100
    assert one.frozen == sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    assert one.working > 0 and one.received == 0 and one.flops > 0


def test_the_batch_has_the_shapes_that_training_sees(generation_config):
    config = generation_config()
    made = prepare.prepare(config)
    _, frozen = made.method.init(jax.random.key(0))
    makers = prepare.batch_maker(made, frozen, *prepare.pools_of(made))
    batches = makers("finetune", 0)
    wanted = next(batches)
    batches.close()
    found = dry_run.batch_shapes(made, frozen, "finetune")
    assert {name: leaf.shape for name, leaf in found.items()} == {
        name: leaf.shape for name, leaf in wanted.items()
    }


def test_without_an_average_there_are_two_copies(of_detection):
    (one,) = of_detection.forecasts
    assert 0 < one.optimizer - 2 * one.params < 100


def test_the_text_says_mesh_batch_memory_arithmetic(of_detection):
    text = dry_run.text(of_detection)
    for part in ("data=1, fsdp=1", "global batch  4", "optimizer", "GFLOP a step"):
        assert part in text


def test_what_does_not_fit_is_refused_and_what_fits_is_not(of_detection):
    (one,) = of_detection.forecasts
    dry_run.check_fits(of_detection._replace(limit=one.total))
    with pytest.raises(ValueError, match=r"segment.*needs.*config\."):
        dry_run.check_fits(of_detection._replace(limit=one.total - 1))


def test_the_host_is_the_limit_of_a_cpu_device(of_detection):
    assert memory.device_bytes(of_detection.mesh) == of_detection.limit > 2**28


def test_the_command_trains_nothing_and_writes_nothing(
    detection_config, of_detection, tmp_path, monkeypatch, capsys
):
    config = detection_config()
    monkeypatch.setattr(config_file, "load", lambda name, overrides: config)
    monkeypatch.setattr(dry_run, "of_config", lambda *rest: of_detection)
    run = str(tmp_path / "run")
    words = ["train", "--config=x.py", f"--run={run}", "--dry_run"]
    assert main.main(words) == 0
    assert "phase segment, per device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    too_small = of_detection._replace(limit=1000)
    monkeypatch.setattr(dry_run, "of_config", lambda *rest: too_small)
    assert main.main(words) == 2
    assert "needs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--run=DIR is missing"),
        (["--run=x", "--topology=v5e:4x4"], "goes with --compile_only"),
        (["--dry_run", "--devices=64"], "comes too late"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, message, capsys):
    jax.devices()  # jax has started
    recipe = "configs/detector/foundry.py:smoke"
    assert main.main(["train", f"--config={recipe}", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_training_is_compiled_for_tpus_that_nobody_has(v5e, capsys):
    words = ["--config=configs/app/foundry.py:smoke", "--config.data.batch_size=16"]
    words += ["--compile_only", "--topology=v5e:4x4", "--config.mesh.particle=2"]
    assert main.main(["train", *words, "--config.mesh.data=8"]) == 0
    text = capsys.readouterr().out
    assert f"16 x {v5e[0].device_kind}" in text and "phase particles" in text


def test_what_their_compiler_cannot_fit_names_the_keys_to_change(v5e):
    def loss(params, frozen, batch, key):
        return jnp.mean(jnp.tanh(batch["x"] @ params["w"]) @ params["w"]), {}

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    stage = plan.Stage(Phase("fit", loss), optimizer.read(common.PHASE, "phase"), 0, 0)
    mesh, batch = meshes.make_mesh(16, devices=v5e), {"x": shape(64, 50_000)}
    with pytest.raises(ValueError, match=r"(?s)'fit' does not fit.*fsdp.*15.75G"):
        forecast.of_step(stage, {"w": shape(50_000, 50_000)}, {}, batch, mesh)


def test_an_unknown_topology_is_refused(capsys):
    words = ["--config=configs/app/foundry.py:smoke", "--compile_only"]
    assert main.main(["train", *words, "--topology=v5e:nope"]) == 2
    assert "--devices=16 simulates" in capsys.readouterr().err
