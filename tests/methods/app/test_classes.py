"""Class names by task."""

import numpy as np
import pytest

from jaxanom.methods.app import classes


def test_the_two_states_and_the_categories_are_classes_too():
    named = classes.make(
        "state", ("pill",), ("good", "crack"), "ok {category}", "bad", ""
    )
    assert named.names == ("ok pill", "bad") and named.targets == ("good", "anomalous")
    named = classes.make("category", ("a_b", "c"), ("good",), "", "", "")
    assert named.names == ("a b", "c")
    assert np.array_equal(named.columns, [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match=r"app\.good_name"):
        classes.make("state", ("a",), ("good",), "{name}", "bad", "")
