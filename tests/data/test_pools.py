import numpy as np
import pytest

from jaxanom import record
from jaxanom.data import catalog, generated, pools

SIZE = (8, 8)


def dataset(num_good=5, num_defects=4):
    """Two categories, two defect types each; an image's grey level is its number."""
    records = []
    for category in ("bolt", "nut"):

        def add(split, kind, count, category=category):
            for number in range(count):
                name = f"{category}/{split}/{kind}/{number:03d}.png"
                mask = None if kind == "good" else f"mask:{name}"
                records.append(catalog.Record(name, mask, category, kind, split, name))

        add("train", "good", num_good)
        add("test", "good", 2)
        for kind in ("crack", "dent"):
            add("test", kind, num_defects)

    def load(record):
        level = [item.name for item in records].index(record.name)
        mask = np.zeros(SIZE, np.uint8)
        mask[:2, :3] = record.mask is not None
        return np.full((*SIZE, 3), level, np.uint8), mask

    return catalog.from_records("made", records, SIZE, load=load)


def kinds(data, numbers):
    return {data.records[number].defect_type for number in numbers}


@pytest.mark.parametrize(
    "rule, shots, per_category",
    [
        ("none", 0, 0),
        ("all", 0, 8),
        ("first_third", 0, 2),
        ("shots", 3, 3),
        ("shots_per_type", 2, 4),
    ],
)
def test_parts_share_no_image_and_leave_none_out(rule, shots, per_category):
    data = dataset()
    found = pools.divide(data, rule, shots, seed=0)
    parts = [*found.normal, *found.defect, *found.test]
    assert sorted(parts) == list(range(len(data.records)))
    assert kinds(data, found.normal) == {"good"}
    assert kinds(data, found.defect) <= {"crack", "dent"}
    for category in data.categories:
        chosen = [n for n in found.defect if data.records[n].category == category]
        assert len(chosen) == per_category
    assert {data.records[n].split for n in found.normal} == {"train"}
    assert sum(data.records[n].defect_type == "good" for n in found.test) == 4


def test_the_test_split_trains_on_all_of_itself_and_tests_on_nothing():
    data = dataset()
    found = pools.divide(data, "test_split", 0, seed=0)
    parts = [*found.normal, *found.defect]
    assert sorted(parts) == catalog.select(data, "test")
    assert kinds(data, found.normal) == {"good"} and found.test == ()


def test_a_division_is_compared_with_the_recorded_one(tmp_path):
    data = dataset()
    found = pools.divide(data, "shots", 3, seed=0)
    pools.check_recorded(data, found, tmp_path)  # nothing was recorded
    recorded = {"split": pools.describe(data, found)}
    record.write_json(tmp_path / record.RECORD, recorded)
    pools.check_recorded(data, found, tmp_path)
    moved, gone = found.defect[0], found.normal[0]
    name, missing = (data.records[number].name for number in (moved, gone))
    other = pools.Division(found.normal[1:], found.defect[1:], (*found.test, moved))
    with pytest.raises(ValueError) as refused:
        pools.check_recorded(data, other, tmp_path)
    said = str(refused.value)
    assert f"1 missing: {missing}; 1 moved: {name} (from defect to test)" in said
    fewer = recorded["split"] | {"normal": recorded["split"]["normal"][1:]}
    record.write_json(tmp_path / record.RECORD, {"split": fewer})
    with pytest.raises(ValueError, match=rf"\(1 new: {missing}\)"):
        pools.check_recorded(data, found, tmp_path)


@pytest.mark.parametrize("rule", ["test_split", "all", "shots"])
def test_a_held_out_category_is_tested_on_and_never_trained_on(rule):
    data = dataset()
    shots = 3 if rule == "shots" else 0
    found = pools.divide(data, rule, shots, seed=0, held_out=("nut",))
    assert list(found.test) == catalog.select(data, "test", "nut")
    trained = [*found.normal, *found.defect]
    assert {data.records[number].category for number in trained} == {"bolt"}
    # Nothing else about the other category changes.
    alone = pools.divide(data, rule, shots, seed=0)
    assert found.defect == tuple(n for n in alone.defect if n in found.defect)
    bolts = [n for n in alone.defect if data.records[n].category == "bolt"]
    assert list(found.defect) == bolts


@pytest.mark.parametrize("held_out", [("nail",), ("bolt", "nut")])
def test_held_out_categories_are_known_and_leave_one_to_train_on(held_out):
    with pytest.raises(ValueError, match=r"held_out.*left to train on"):
        pools.divide(dataset(), "all", 0, 0, held_out=held_out)


def test_a_limit_on_normal_images_is_per_category_and_seeded():
    data = dataset()
    few = pools.divide(data, "none", 0, seed=1, num_normal=2).normal
    assert len(few) == 4 and set(few) <= set(pools.divide(data, "none", 0, 1).normal)
    assert few == pools.divide(data, "none", 0, seed=1, num_normal=2).normal
    assert len(pools.divide(data, "none", 0, 1, num_normal=99).normal) == 10


def test_an_unknown_rule_names_its_key():
    with pytest.raises(ValueError, match=r"config\.data\.defect_rule='half'.*'all'"):
        pools.divide(dataset(), "half", 0, 0)


def test_shots_where_the_rule_takes_none_are_refused():
    with pytest.raises(ValueError, match="takes no shots"):
        pools.divide(dataset(), "first_third", 5, 0)


def test_the_record_lists_every_image_by_name():
    data = dataset()
    division = pools.divide(data, "shots", 2, 0)
    found = pools.describe(data, division)
    assert sorted(found) == ["defect", "normal", "test"]
    listed = [name for names in found.values() for name in names]
    assert sorted(listed) == sorted(record.name for record in data.records)


def test_a_method_sees_no_test_image():
    data = dataset()
    division = pools.divide(data, "shots", 2, 0)
    part = pools.training_part(data, division)
    assert part.categories == data.categories
    assert part.defect_types == data.defect_types
    names = {record.name for record in part.records}
    assert names.isdisjoint(data.records[n].name for n in division.test)
    assert len(names) == len(division.normal) + len(division.defect)


def write_set(directory, category="bolt", kind="dent"):
    image = np.full((*SIZE, 3), 200, np.uint8)
    mask = np.ones(SIZE, np.uint8)
    row = generated.GeneratedRow(category, kind, image, mask, mask, "n", "p", 0)
    generated.write(directory, [row], {category: [image]})


def test_generated_images_carry_the_ids_of_the_real_ones(tmp_path):
    data = dataset()
    write_set(tmp_path / "set", "nut")
    found = pools.sources(data, pools.divide(data, "all", 0, 0), tmp_path / "set")
    assert sorted(found) == ["defect", "generated", "normal"]
    assert [len(found[name]) for name in ("normal", "defect")] == [10, 16]
    (example,) = [found["generated"][row] for row in range(len(found["generated"]))]
    assert (example["category_id"], example["defect_id"]) == (1, 2)
    assert example["label"] == 1 and example["mask"].all()


def test_a_generated_set_of_something_else_is_refused(tmp_path):
    data = dataset()
    write_set(tmp_path / "set", "gear")
    with pytest.raises(ValueError, match=r"unknown category 'gear'.*bolt, nut"):
        pools.sources(data, pools.divide(data, "all", 0, 0), tmp_path / "set")


def batches_of(mixture, seed=0):
    data = dataset()
    found = pools.sources(data, pools.divide(data, "all", 0, 0))
    return pools.batch_maker(found, mixture, 4, seed)


def take(batches, count):
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def test_batches_resume_where_they_stopped():
    make = batches_of({"fit": {"normal": 0.5, "defect": 0.5}})
    whole, later = take(make("fit", 0), 6), take(make("fit", 4), 2)
    for one, other in zip(whole[4:], later, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_phases_and_seeds_draw_apart_and_weights_are_kept():
    mixture = {"one": {"normal": 1.0}, "two": {"normal": 0.25, "defect": 0.75}}
    make = batches_of(mixture)
    first = np.concatenate([batch["label"] for batch in take(make("one", 0), 3)])
    assert not first.any()
    labels = np.concatenate([batch["label"] for batch in take(make("two", 0), 100)])
    # 400 draws of 0.75: deviation 0.022, four of them are 0.09.
    assert labels.mean() == pytest.approx(0.75, abs=0.09)
    other = batches_of(mixture, seed=1)
    assert any(
        np.any(a["image"] != b["image"])
        for a, b in zip(take(make("one", 0), 3), take(other("one", 0), 3), strict=True)
    )


@pytest.mark.parametrize(
    "mixture, said",
    [
        ({"fit": {"normal": 1.0, "generated": 0.5}}, r"fit\.generated=0\.5.*generated"),
        ({"fit": {"normal": 1.0, "odd": 0.5}}, r"fit\.odd=0\.5"),
        ({"fit": {"normal": 0.0, "defect": 0.0}}, "gives no pool a weight"),
        ({"fit": {"normal": 1.0, "defect": -0.5}}, r"fit\.defect=-0\.5"),
        ({"other": {"normal": 1.0}}, r"config\.mixture\.fit is missing"),
    ],
)
def test_a_mixture_that_cannot_be_drawn_names_its_key(mixture, said):
    data = dataset()
    found = pools.sources(data, pools.divide(data, "all", 0, 0))
    with pytest.raises(ValueError, match=said):
        pools.check_mixtures(found, mixture, ["fit"])


def test_an_empty_pool_with_weight_is_refused_and_without_it_is_not():
    data = dataset()
    found = pools.sources(data, pools.divide(data, "none", 0, 0))
    with pytest.raises(ValueError, match="no defect images"):
        pools.batch_maker(found, {"fit": {"normal": 1.0, "defect": 0.5}}, 4, 0)
    pools.batch_maker(found, {"fit": {"normal": 1.0, "defect": 0.0}}, 4, 0)


def test_normal_images_are_listed_by_category():
    data = dataset()
    found = pools.normal_images(data, pools.divide(data, "none", 0, 0, num_normal=3))
    assert {name: len(images) for name, images in found.items()} == {
        "bolt": 3,
        "nut": 3,
    }
    assert found["nut"][0].shape == (*SIZE, 3)


def test_spread_takes_every_kind_before_any_twice():
    data = dataset()
    test = pools.divide(data, "none", 0, 0).test
    rows = pools.spread(data, test, 7)
    records = [data.records[test[row]] for row in rows]
    seen = [(record.category, record.defect_type) for record in records]
    assert len(set(seen[:6])) == 6 and len(rows) == 7
    assert pools.spread(data, test, 0) == ()
    assert len(pools.spread(data, test, 999)) == len(test)
    assert pools.spread(data, (), 5) == ()


def test_a_file_that_was_trained_on_is_told_by_its_bytes(tmp_path):
    data, records = dataset(num_good=2, num_defects=1), []
    for number, row in enumerate(data.records):
        path = tmp_path / f"{number:03d}.png"
        path.write_bytes(bytes([number]))  # all of one size
        records.append(row._replace(image=str(path)))
    on_disk = data._replace(records=tuple(records))
    found = pools.divide(on_disk, "none", 0, seed=0, num_normal=1)
    files = [tmp_path / f"{n:03d}.png" for n in range(len(records))]
    unseen = [file for n, file in enumerate(files) if n not in found.normal]
    assert len(unseen) == len(files) - 2
    pools.check_unseen(on_disk, found, unseen)
    copied = tmp_path / "copy.jpg"
    copied.write_bytes(files[found.normal[1]].read_bytes())
    with pytest.raises(ValueError, match=r"copy\.jpg was trained on \(it equals"):
        pools.check_unseen(on_disk, found, [*unseen, copied])
    # Rendered images are no files.
    pools.check_unseen(data, found, files)
