"""What `import jaxanom` offers, and that it costs nothing until it is used."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxanom

PUBLIC = {
    *("load", "train", "predict", "detect", "generate", "evaluate", "fewshot"),
    *("Run", "UserError", "__version__"),
}


def test_the_public_names_are_these_and_can_be_used():
    assert set(jaxanom.__all__) == PUBLIC == set(dir(jaxanom))
    for name in PUBLIC:
        assert getattr(jaxanom, name) is not None
    assert issubclass(jaxanom.UserError, ValueError)
    with pytest.raises(AttributeError, match="'lode'"):
        jaxanom.lode  # noqa: B018


def test_importing_the_package_imports_no_jax():
    program = (
        "import json, sys, jaxanom\n"
        "before = 'jax' in sys.modules\n"
        "jaxanom.load\n"
        "print(json.dumps([before, 'jax' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    # The second is the control: using a name does import it.
    assert json.loads(done.stdout) == [False, True]


def test_the_version_is_told_in_one_place():
    setup = Path(jaxanom.__file__).parents[1] / "setup.py"
    if not setup.is_file():
        pytest.skip("installed from a wheel")
    assert re.fullmatch(r"\d+\.\d+\.\d+", jaxanom.__version__)
    assert jaxanom.__version__ not in setup.read_text(encoding="utf-8")


def test_a_run_predicts_and_evaluates_and_so_do_its_directory_and_the_functions(
    whole_job,
):
    directory = whole_job.directory / "real"
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    run = jaxanom.load(directory)
    assert isinstance(run, jaxanom.Run)
    ours = run.predict([image])
    assert ours.anomaly_map.shape == (1, 16, 16)
    for again in (jaxanom.predict(directory, [image]), jaxanom.predict(run, [image])):
        np.testing.assert_array_equal(again.anomaly_map, ours.anomaly_map)
    results = run.evaluate(num_examples=0)
    assert jaxanom.evaluate(directory, 0)["mean"] == results["mean"]
    with pytest.raises(jaxanom.UserError, match="does not generate"):
        run.generate(directory / "set")


def test_a_recipe_is_trained_by_its_name_and_a_wrong_key_is_the_users(
    tiny_folder, tmp_path
):
    changes = [
        *(f"data.directory={tiny_folder}", "data.image_size=16", "data.batch_size=4"),
        "data.shots=4",
        *("detector.width=4", "detector.depth=1", "phases.segment.num_steps=1"),
    ]
    recipe = "configs/detector/folder.py:unet"
    run = jaxanom.train(recipe, tmp_path / "run", changes)
    assert run.prepared.config.data.image_size == 16
    assert (tmp_path / "run" / "params.safetensors").is_file()
    with pytest.raises(jaxanom.UserError, match="did you mean"):
        jaxanom.train(recipe, tmp_path / "other", ["data.bach_size=4"])
    assert not (tmp_path / "other").exists()
