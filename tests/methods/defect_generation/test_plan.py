"""The plan of a set: which image, which defect, where."""

import numpy as np
import pytest
from PIL import Image

from jaxanom.data import catalog, pools
from jaxanom.data.layouts import mvtec
from jaxanom.errors import UserError
from jaxanom.jobs import prepare
from jaxanom.methods.defect_generation import plan


@pytest.fixture(scope="module")
def dataset(generation_config):
    """The training part of the tiny folder."""
    return pools.training_part(*prepare.open_data(generation_config()))


def test_more_images_leave_the_first_ones_as_they_are(dataset):
    short = plan.plan(dataset, 3, seed=5)
    long = plan.plan(dataset, 9, seed=5)
    for one, other in zip(short, long, strict=False):
        assert one[:4] == other[:4]
        np.testing.assert_array_equal(one.mask, other.mask)
    assert [request.number for request in long] == list(range(9))
    assert any(
        one.normal != other.normal or np.any(one.mask != other.mask)
        for one, other in zip(long, plan.plan(dataset, 9, 6), strict=True)
    )


def test_defect_types_take_turns_and_masks_come_from_their_own_training_masks(dataset):
    requests = plan.plan(dataset, 6, seed=0, rule=plan.Rule("uniform"))
    kinds = [request.defect_type for request in requests]
    assert kinds == ["dent", "scratch"] * 3
    for request in requests:
        record = dataset.records[request.normal]
        assert record.defect_type == "good" and record.category == request.category
        assert request.mask.dtype == np.uint8 and request.mask.sum() == 20  # 5 x 4


def test_a_defect_type_without_masks_is_left_out(dataset):
    def load(record):
        image, mask = dataset.load(record)
        return image, np.zeros_like(mask) if record.defect_type == "dent" else mask

    half = dataset._replace(load=load)
    assert {r.defect_type for r in plan.plan(half, 4, 0)} == {"scratch"}
    none = half._replace(load=lambda r: (load(r)[0], np.zeros_like(load(r)[1])))
    with pytest.raises(ValueError, match="no training defect has a mask"):
        plan.plan(none, 4, 0)


def test_entries_of_a_plan_that_share_an_image_share_its_mask_and_type(dataset):
    shared = plan.plan(dataset, 7, seed=5, per_image=3)
    single = plan.plan(dataset, 3, seed=5)
    assert [request.number for request in shared] == list(range(7))
    for request in shared:
        wanted = single[request.number // 3]
        assert request[1:4] == wanted[1:4]
        np.testing.assert_array_equal(request.mask, wanted.mask)


def bars(defects=6, normals=8):
    """Bars in any pose; of a defect the half that ends in blue is marked."""
    size = 64
    y, x = np.mgrid[:size, :size].astype(float)
    rng = np.random.default_rng(0)
    pictures, records = {}, []
    for number in range(defects + normals):
        turn, kind = rng.uniform(0, np.pi), "good" if number >= defects else "half"
        along = (x - 32) * np.cos(turn) + (y - 32) * np.sin(turn)
        across = (y - 32) * np.cos(turn) - (x - 32) * np.sin(turn)
        inside = (abs(along) < 20) & (abs(across) < 8)
        image = np.full((size, size, 3), 120, np.uint8)
        image[inside] = (200, 40, 40)
        mask = inside & (along > 0) & (kind == "half")
        image[mask] = (40, 40, 220)
        record = mvtec.Record(f"{number}.png", None, "bar", kind, "train", str(number))
        records.append(record)
        pictures[record] = image, mask.astype(np.uint8), inside
    dataset = catalog.from_records(
        "bars", records, (size, size), load=lambda record: pictures[record][:2]
    )
    return dataset, [pictures[record][2] for record in records]


def test_masks_follow_the_object_by_context_and_not_uniformly():
    dataset, objects = bars()
    off = {}
    for placement in ("context", "uniform"):
        requests = plan.plan(dataset, 24, 0, rule=plan.Rule(placement))
        off[placement] = [
            (request.mask > 0)[~objects[request.normal]].sum() / request.mask.sum()
            for request in requests
        ]
    assert np.mean(off["context"]) < 0.1 < 0.25 < np.mean(off["uniform"])


def test_entries_by_context_depend_on_seed_and_place_alone():
    dataset, _ = bars()
    short, long, other = (plan.plan(dataset, n, s) for n, s in ((2, 5), (5, 5), (5, 6)))
    for one, same in zip(short, long, strict=False):
        assert one[:4] == same[:4]
        np.testing.assert_array_equal(one.mask, same.mask)
    assert any(np.any(a.mask != b.mask) for a, b in zip(long, other, strict=True))


def test_a_users_own_masks_are_taken_as_they_are(tmp_path):
    dataset, _ = bars()
    masks = np.zeros((2, 64, 64), np.uint8)
    masks[0, 10:20, 10:20] = masks[1, 40:50, 5:60] = 255
    folder = tmp_path / "half"
    folder.mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{number}.png")
    rule = plan.Rule(masks=str(tmp_path))
    for request in plan.plan(dataset, 5, 0, rule=rule):
        np.testing.assert_array_equal(request.mask, masks[request.number % 2] > 0)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(folder / "2.png")
    with pytest.raises(UserError, match=r"2\.png marks nothing"):
        plan.plan(dataset, 5, 0, rule=rule)
    with pytest.raises(UserError, match=r"config\.generate\.masks.*half"):
        plan.plan(dataset, 5, 0, rule=plan.Rule(masks=str(folder)))
