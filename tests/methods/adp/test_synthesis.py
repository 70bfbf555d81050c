import numpy as np
import pytest

from jaxanom.methods.adp import acceptance, bank, regions, synthesis

RNG = np.random.default_rng(9)


def product(size=64):
    """A dark disc on a bright ground."""
    rows, columns = np.ogrid[:size, :size]
    disc = (rows - size / 2) ** 2 + (columns - size / 2) ** 2 < (size / 4) ** 2
    noise = np.random.default_rng(size).normal(0, 0.01, (size, size, 3))
    image = np.where(disc[..., None], 0.2, 0.9) + noise
    return np.clip(image, 0, 1).astype(np.float32), disc


def test_saliency_finds_a_product_on_a_plain_ground_and_all_of_a_texture():
    image, disc = product()
    found = regions.saliency(image)
    assert (found & disc).sum() / (found | disc).sum() > 0.9
    texture = RNG.uniform(size=(64, 64, 3)).astype(np.float32)
    assert regions.saliency(texture).all()


def test_regions_lie_on_the_product_within_their_areas():
    _, disc = product()
    areas = []
    for seed in range(60):
        mask = regions.draw(disc, np.random.default_rng(seed))
        assert mask.any() and not (mask.astype(bool) & ~disc).any()
        areas.append(mask.mean())
    assert min(areas) >= 0.5 * regions.AREAS[0] and max(areas) <= 1.5 * regions.AREAS[1]
    assert np.std(np.log(areas)) > 0.3  # small and large ones


def plan(count=12, num_shots=2):
    shots = np.stack([product()[0] for _ in range(num_shots)])
    return synthesis.plan(shots, count, count, num_defects=2, seed=0)


def test_sources_take_turns_and_shots_are_left_out():
    rows = plan()
    assert np.bincount(rows.source).tolist() == [12, 4, 4, 4]
    free = np.array([kind == "normal: free" for kind in rows.kind])
    assert (rows.left_out[free] == bank.NOBODY).all()
    assert set(rows.left_out[~free].tolist()) <= {0, 1}
    assert (rows.level[free] == -1).all() and (rows.level[~free] > 0).all()
    assert rows.context.max() < 4 + 2 + len(synthesis.WRONG_WORDS)
    assert rows.region[rows.source == 0].min() == 1
    assert (plan(num_shots=1).left_out == bank.NOBODY).all()


def test_a_plan_is_a_function_of_its_seed():
    for first, second in zip(plan()[:-1], plan()[:-1], strict=True):
        np.testing.assert_array_equal(first, second)


def test_pasting_changes_the_region_alone():
    rows = plan()
    pasted = np.array([kind == "anomaly: pasted" for kind in rows.kind])
    change = np.abs(rows.base - rows.view).max(-1)
    assert (change[~pasted] == 0).all()
    assert (change[pasted] * (1 - rows.region[pasted])).max() == 0
    assert (change[pasted] * rows.region[pasted]).max((1, 2)).min() > 0.02


def judged(change_inside, change_outside, probability=0.2, distance=0.1):
    rows = plan()
    change = np.where(rows.region > 0, change_inside, change_outside)
    drawn = synthesis.Drawn(rows.view, change.astype(np.float32))
    count = len(rows.source)
    verdict = acceptance.judge(
        rows, drawn, np.full(count, probability), np.full(count, distance), 0.3, 0.1
    )
    return rows, verdict


def test_anomalies_are_kept_where_the_region_changed_at_least_twice_as_much():
    rows, verdict = judged(0.2, 0.05)
    assert verdict.kept.all() and verdict.rates["anomaly: pasted"] == 1.0
    defect = rows.source > 0
    np.testing.assert_array_equal(verdict.mask[defect], rows.region[defect])
    assert not verdict.mask[~defect].any()
    _, weak = judged(0.09, 0.05)
    assert not weak.kept[defect].any()
    _, faint = judged(0.03, 0.0)  # below what counts as drawn
    assert not faint.kept[defect].any()


@pytest.mark.parametrize(("probability", "distance"), [(0.9, 0.1), (0.2, 0.16)])
def test_normals_that_look_damaged_or_foreign_are_dropped(probability, distance):
    rows, verdict = judged(0.2, 0.05, probability, distance)
    assert not verdict.kept[rows.source == 0].any()
