import numpy as np

from jaxanom.data import generated
from jaxanom.jobs import defects_to_detector


def row(number, drawn):
    mask = np.full((4, 4), drawn, np.uint8)
    image = np.full((4, 4, 3), number, np.uint8)
    return generated.GeneratedRow(
        "pill", "stain", image, mask, mask, "good/0.png", "a stain", number
    )


def test_what_no_set_takes_in_is_passed_on_and_not_shown():
    rows = [row(0, 0), row(1, 1), row(2, 1), row(3, 1)]
    pictures = {"normal": np.zeros((4, 4, 3)), "inverted": np.zeros((2, 2, 4))}
    shown = []
    passed = defects_to_detector.showing(
        ((one, pictures) for one in rows), shown, limit=2
    )
    assert [one.seed for one in passed] == [0, 1, 2, 3]
    assert [one["image"][0, 0, 0] for one in shown] == [1, 2]
