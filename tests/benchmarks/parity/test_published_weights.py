"""The parity benchmark finds equal what is equal, and a changed weight different."""

import json

import numpy as np
import pytest

from benchmarks.parity import published_models, published_weights
from jaxanom.models.checkpoints.formats import weights

TEXT = published_models.SMALL["text tower sd-1"]


def test_the_worst_output_counts():
    wanted = {"a": np.ones(2), "b": np.full(2, 10.0)}
    found = {"a": np.ones(2) * 1.01, "b": np.full(2, 10.05)}
    name, error = published_weights.worst(found, wanted)
    assert name == "a" and error == pytest.approx(0.01)
    with pytest.raises(ValueError, match="differ"):
        published_weights.worst({"a": np.ones(2)}, wanted)


def test_small_and_true_sizes_make_the_same_calls():
    for name, subject in published_models.SMALL.items():
        true = published_models.TRUE[name]
        assert subject.kind == true.kind
        assert [c.name for c in subject.calls] == [c.name for c in true.calls]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with what torch wrote of the small text tower."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("written")
    told = published_weights.write(TEXT, folder)
    assert len(told["seconds"]) == 1
    return folder


def test_the_same_weights_give_the_same_numbers(written):
    (row,) = published_weights.compare(TEXT, written)
    assert row["within"] and row["error"] < 1e-5 and row["num_params"] > 10_000
    json.dumps(row)  # as a line of the record


def test_the_libraries_flax_class_gives_them_too(written):
    pytest.importorskip("transformers.models.clip.modeling_flax_clip")
    (row,) = published_weights.compare(TEXT, written, "hf_flax")
    assert row["within"] and row["implementation"] == "hf_flax"


def test_one_changed_weight_shows(written):
    """Negative control of the two tests above; the last of this file to read it."""
    path = written / TEXT.kind / "model.safetensors"
    tensors = weights.read(path)
    name = "text_model.encoder.layers.1.mlp.fc2.bias"
    tensors[name][0] += 0.01  # all alike would be undone by the next layer norm
    weights.write(path, tensors)
    (row,) = published_weights.compare(TEXT, written)
    assert not row["within"] and row["error"] > published_weights.LIMIT


def test_an_unknown_architecture_is_refused(capsys):
    with pytest.raises(SystemExit):
        published_weights.parse(["--only", "vit-z"])
    assert "vit-z" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", published_models.SMALL)
def test_each_architecture_is_compared_in_processes_of_its_own(name, tmp_path):
    pytest.importorskip("torch")
    rows = published_weights.main(
        ["--small", "--only", name, "--ours_only", "--work", str(tmp_path)]
    )
    assert len(rows) == len(published_models.SMALL[name].calls)
    assert all(row["within"] for row in rows)
    assert list(tmp_path.iterdir()) == [], "weights are removed"
