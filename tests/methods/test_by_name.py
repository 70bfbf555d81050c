import importlib

import ml_collections
import pytest

from jaxanom.methods import by_name


@pytest.mark.parametrize("name", by_name.METHODS)
def test_every_name_is_a_package_with_make(name):
    assert callable(importlib.import_module(by_name.METHODS[name]).make)


def test_an_unknown_name_is_answered_with_the_nearest():
    config = ml_collections.ConfigDict({"method": "defect_generaton"})
    with pytest.raises(ValueError, match="did you mean 'defect_generation'"):
        by_name.make(config, None)
