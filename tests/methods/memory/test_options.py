import pytest

from jaxanom.errors import UserError
from jaxanom.jobs import config_file
from jaxanom.methods.memory import options


def section(**changes):
    return {**config_file.load("configs/memory/folder.py").memory.to_dict(), **changes}


def test_the_shipped_options_are_read():
    assert options.read(section()).kind == "nearest"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "knn"}, "memory.kind='knn'"),
        ({"turns": (1,)}, r"memory.turns=\(1,\)"),
        ({"turns": (0, 4)}, "memory.turns"),
        ({"scales": ()}, "memory.scales"),
        ({"share": 1.5}, "memory.share=1.5"),
        ({"coreset": 0.0}, "memory.coreset=0.0"),
        ({"most_patches": 0}, "memory.most_patches=0"),
        ({"kind": "padim"}, "no turned or mirrored copy"),
        ({"kind": "patchcore", "taps": ("p8", "p16")}, "one bank"),
        ({"nearest": 1}, "unknown keys"),
    ],
)
def test_a_value_that_means_nothing_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        options.read(section(**changes))
