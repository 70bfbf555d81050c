import numpy as np

from jaxanom.methods.adp.memory import bank
from jaxanom.models.features import patches


def test_a_bank_is_filled_up_with_rows_of_nobody():
    shots = np.ones((1, 2, 2, 5), np.float32)
    rows = bank.build({"kind": shots}, np.array([0]), num_slots=2)["kind"]
    assert rows["features"].shape == (8, 5)
    assert (np.asarray(rows["owners"]) == patches.PADDING).sum() == 4


def test_the_joined_layers_come_first():
    assert bank.joined_groups(["a", "b"]).names == ("joined", "a", "b")
    assert bank.joined_groups(["a"]).names == ("joined",)


def test_the_first_mixture_is_the_mean_of_all_kinds():
    groups = bank.separate_groups(["a", "b"])
    np.testing.assert_allclose(groups.mixtures, [[0.5, 0.5], [1, 0], [0, 1]])
    assert bank.separate_groups(["a"]).mixtures.shape == (1, 1)
