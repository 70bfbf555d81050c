import pytest

from jaxanom.jobs import config_file
from jaxanom.methods.adp import options


def section(**changes):
    found = config_file.load("configs/adp/folder.py").adp
    for key, value in changes.items():
        found[key] = value
    return found


def test_recipes_hold_every_option_and_no_other():
    assert set(section()) == set(options.Options._fields)
    with pytest.raises(ValueError, match=r"unknown keys \['shots'\]"):
        options.read({**section(), "shots": 4})


def test_channels_come_in_one_order_with_language_first():
    found = options.read(section(channels=("reference", "noise_gap", "language")))
    assert found.channels == ("language", "reference", "noise_gap")
    assert options.default_weights(found) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("baseline", "channels"),
    [
        ("winclip", ("language",)),
        ("winclip_plus", ("language", "reference")),
        ("patch_bank", ("reference",)),
    ],
)
def test_a_baseline_learns_no_token_and_tunes_nothing(baseline, channels):
    found = options.read(section(baseline=baseline))
    assert found.channels == channels
    assert found.token == "class_word" and not found.tune
    assert options.default_weights(found) == (1.0,) * len(channels)


def test_another_primary_channel_takes_the_weight_of_language():
    found = options.read(section(channels=options.CHANNELS, primary="reconstruct"))
    assert options.default_weights(found) == (0.0, 1.0, 1.0, 0.0, 0.0)
    alone = options.read(section(channels=("noise_gap", "unet_features")))
    assert options.default_weights(alone) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"baseline": "padim"}, "baseline='padim'"),
        ({"prompts": "short"}, "prompts='short'"),
        ({"channels": ()}, "channels is empty"),
        ({"num_vectors": 0}, "num_vectors=0"),
        ({"num_synthetic": 0}, "num_synthetic=0; wanted at least 2"),
        ({"turns": ()}, "turns is empty"),
        ({"standard_errors": -1.0}, "standard_errors=-1.0"),
        ({"sigma": -1.0}, "sigma=-1.0"),
        ({"sigma": float("nan")}, "sigma=nan"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(changes, said):
    with pytest.raises(ValueError, match=said):
        options.read({**section(), **changes})


def test_the_objective_reads_its_own_switches():
    found = options.of_objective(options.read(section(align_weight=0.0)))
    assert found.align_weight == 0
    assert found.state_weight == section().state_weight
