import numpy as np
import pytest

from jaxanom.data import catalog, splits


def make_dataset(counts, num_train=20, category="nut", extra=()):
    """Returns a dataset of records only; `counts` is defect type -> images."""
    records = list(extra)

    def add(split, kind, number):
        name = f"{category}/{split}/{kind}/{number:03d}.png"
        records.append(catalog.Record(name, None, category, kind, split, name))

    for k in range(num_train):
        add("train", "good", k)
    for k in range(4):
        add("test", "good", k)
    for kind, count in counts.items():
        for k in range(count):
            add("test", kind, k)
    return catalog.from_records("made", records, (4, 4))


def kinds(dataset, numbers):
    found = [dataset.records[n].defect_type for n in numbers]
    return {kind: found.count(kind) for kind in set(found)}


@pytest.mark.parametrize("shots", [1, 4, 20])
def test_support_images_are_distinct_normal_training_images(shots):
    dataset = make_dataset({"crack": 5})
    numbers = splits.few_shot(dataset, "nut", shots, seed=3)
    assert len(set(numbers)) == shots and list(numbers) == sorted(numbers)
    drawn = [dataset.records[n] for n in numbers]
    assert {(r.split, r.defect_type) for r in drawn} == {("train", "good")}


def test_a_support_set_is_repeatable_and_the_seed_matters():
    dataset = make_dataset({})
    drawn = [splits.few_shot(dataset, "nut", 4, seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_every_normal_image_is_as_likely_in_a_support_set():
    dataset = make_dataset({}, num_train=10)
    counts = np.zeros(10)
    for seed in range(400):
        counts[list(splits.few_shot(dataset, "nut", 2, seed))] += 1
    # Binomial(400, 0.2): sigma 8; four sigma.
    assert np.abs(counts - 80).max() < 32


def test_fewer_shots_are_part_of_more():
    dataset = make_dataset({"crack": 9})
    few = splits.few_shot(dataset, "nut", 2, 0)
    more = splits.few_shot(dataset, "nut", 8, 0)
    assert set(few) < set(more)
    few = splits.drawn_defects(dataset, "nut", "shots_per_type", 2)
    more = splits.drawn_defects(dataset, "nut", "shots_per_type", 5)
    assert set(few) < set(more)


def test_a_selection_does_not_depend_on_the_other_categories():
    alone = make_dataset({"crack": 9, "hole": 9})
    extra = make_dataset({"rust": 3}, category="bolt").records
    beside = make_dataset({"crack": 9, "hole": 9}, extra=extra)
    for dataset in (alone, beside):
        assert len(dataset.records) == 42 + (27 if dataset is beside else 0)

    def names(dataset, numbers):
        return [dataset.records[n].name for n in numbers]

    first, second = (splits.few_shot(data, "nut", 4, 0) for data in (alone, beside))
    assert names(alone, first) == names(beside, second)
    for rule in ("shots", "shots_per_type"):
        first = splits.drawn_defects(alone, "nut", rule, 3)
        second = splits.drawn_defects(beside, "nut", rule, 3)
        assert names(alone, first) == names(beside, second)


@pytest.mark.parametrize("shots", [0, 21, -1])
def test_shots_that_do_not_exist_are_an_error(shots):
    with pytest.raises(ValueError, match=f"shots={shots}, but 'nut' has 20 normal"):
        splits.few_shot(make_dataset({}), "nut", shots, 0)


RULES = [
    ("first_third", None),
    ("shots_per_type", 3),
    ("shots_per_type", 1),
    ("shots", 1),
    ("shots", 10),
    ("shots", 25),
]


@pytest.mark.parametrize(("rule", "shots"), RULES)
def test_drawn_defects_are_distinct_test_images_and_never_good(rule, shots):
    dataset = make_dataset({"crack": 10, "hole": 3, "dent": 12})
    drawn = splits.drawn_defects(dataset, "nut", rule, shots, seed=5)
    assert drawn and list(drawn) == sorted(set(drawn))
    assert set(drawn) < set(catalog.select(dataset, "test"))
    assert "good" not in kinds(dataset, drawn)


def test_first_third_takes_exactly_the_floor_by_file_number():
    dataset = make_dataset({"crack": 10, "hole": 3, "dent": 2})
    drawn = splits.drawn_defects(dataset, "nut", "first_third")
    assert [dataset.records[n].name for n in drawn] == [
        "nut/test/crack/000.png",
        "nut/test/crack/001.png",
        "nut/test/crack/002.png",  # floor(10 / 3) = 3: index 3 is already test
        "nut/test/hole/000.png",  # ... and none of two dents
    ]


def test_shots_per_type_takes_that_many_of_each():
    dataset = make_dataset({"crack": 10, "hole": 3})
    drawn = splits.drawn_defects(dataset, "nut", "shots_per_type", 3)
    assert kinds(dataset, drawn) == {"crack": 3, "hole": 3}
    with pytest.raises(ValueError, match="'hole' of 'nut' has 3 images; wanted 1 to 3"):
        splits.drawn_defects(dataset, "nut", "shots_per_type", 4)


@pytest.mark.parametrize(
    ("shots", "counts"), [(3, [1, 1, 1]), (8, [2, 3, 3]), (21, [2, 9, 10])]
)
def test_total_shots_are_as_equal_over_the_types_as_there_are_images(shots, counts):
    dataset = make_dataset({"crack": 10, "hole": 2, "dent": 12})
    drawn = splits.drawn_defects(dataset, "nut", "shots", shots)
    assert sorted(kinds(dataset, drawn).values()) == counts
    with pytest.raises(ValueError, match="'nut' has 24 defective images"):
        splits.drawn_defects(dataset, "nut", "shots", 25)


def test_which_type_gets_a_single_shot_depends_on_the_seed():
    dataset = make_dataset({"crack": 5, "hole": 5, "dent": 5})
    found = set()
    for seed in range(30):
        drawn = splits.drawn_defects(dataset, "nut", "shots", 1, seed)
        found |= set(kinds(dataset, drawn))
    assert found == {"crack", "hole", "dent"}


def test_what_cannot_be_divided_is_named():
    dataset = make_dataset({"crack": 2})
    with pytest.raises(ValueError, match="unknown category 'nit'; did you mean 'nut'"):
        splits.few_shot(dataset, "nit", 1, 0)
    with pytest.raises(ValueError, match="unknown rule 'shot'; did you mean 'shots'"):
        splits.drawn_defects(dataset, "nut", "shot", 1)
    with pytest.raises(ValueError, match="takes no image of 'nut'"):
        splits.drawn_defects(dataset, "nut", "first_third")
    with pytest.raises(ValueError, match="takes no shots, got shots=2"):
        splits.drawn_defects(dataset, "nut", "first_third", 2)
    with pytest.raises(ValueError, match="rule 'shots' needs shots"):
        splits.drawn_defects(dataset, "nut", "shots")
    with pytest.raises(ValueError, match="'nut' has no defective images"):
        splits.drawn_defects(make_dataset({}), "nut", "shots", 1)
