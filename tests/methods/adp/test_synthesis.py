import numpy as np
import pytest

from jaxanom.data import regions
from jaxanom.diffusion import walks
from jaxanom.methods.adp import complete, model
from jaxanom.methods.adp.channels import generative
from jaxanom.methods.adp.tuning import draw, pairs
from jaxanom.models.features import patches

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


def plan(num_pairs=18, num_shots=2):
    shots = np.stack([product()[0] for _ in range(num_shots)])
    return pairs.plan(shots, num_pairs, 2, seed=0)


def test_sources_take_turns_and_shots_are_left_out():
    rows = plan()
    assert np.bincount(rows.source).tolist() == [0, 6, 6, 6]
    # A detector must not learn which defects come on which bases.
    met = set(zip(rows.kind.tolist(), rows.source.tolist(), strict=True))
    assert met == {(kind, source) for kind in range(3) for source in (1, 2, 3)}
    assert rows.is_free.sum() == 6
    assert (rows.left_out[rows.is_free] == patches.NOBODY).all()
    assert set(rows.left_out[~rows.is_free].tolist()) <= {0, 1}
    assert (rows.base.level[rows.is_free] == -1).all()
    kept = rows.kind == pairs.BASES.index("kept")
    assert (rows.base.level[kept] == 0).all()
    assert (rows.base.level[~rows.is_free & ~kept] > 0).all()
    assert rows.defect.context.max() < 4 + 2 + len(pairs.WRONG_WORDS)
    # One shot is in the memory whichever view of it is shown.
    assert (plan(num_shots=1).left_out == patches.NOBODY).all()


def test_a_plan_is_a_function_of_its_seed():
    first, second = plan(), plan()
    for one, other in zip(first._replace(base=0, defect=0), second, strict=True):
        if not isinstance(one, int):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.defect.level, second.defect.level)


def test_a_patch_shows_on_the_product_it_comes_from():
    rows = plan()
    inside = rows.region > 0
    for view, patch, where in zip(rows.view, rows.patch, inside, strict=True):
        assert np.abs(view - patch)[where].mean() > 0.05
    # A shot as it is, turned or not, would leave a flat one unseen: the light differs.
    flat = np.full((2, 64, 64, 3), 0.5, np.float32)
    rows = pairs.plan(flat, 12, 2, seed=0)
    apart = np.abs(rows.patch - 0.5).max((1, 2, 3))
    assert apart.min() > 0.04 and np.ptp(rows.patch, axis=(1, 2)).max() < 1e-6


def judged(change_inside, change_outside, probability=0.2, distance=0.1):
    rows = plan()
    change = np.where(rows.region > 0, change_inside, change_outside)
    count = len(rows.source)
    verdict = pairs.judge(
        rows,
        change.astype(np.float32),
        np.full(count, probability),
        np.full(count, distance),
        0.3,
        0.1,
    )
    return rows, verdict


def test_anomalies_are_kept_where_the_region_changed_at_least_twice_as_much():
    rows, verdict = judged(0.2, 0.05)
    assert verdict.normal.all() and verdict.anomalous.all()
    assert len(verdict.rates) == 6 and set(verdict.rates.values()) == {1.0}
    np.testing.assert_array_equal(verdict.mask, rows.region)
    _, weak = judged(0.09, 0.05)
    assert weak.normal.all() and not weak.anomalous.any()
    _, faint = judged(0.03, 0.0)  # below what counts as drawn
    assert not faint.anomalous.any() and not faint.mask.any()


@pytest.mark.parametrize(("probability", "distance"), [(0.9, 0.1), (0.2, 0.16)])
def test_a_pair_whose_normal_looks_damaged_or_foreign_is_dropped(probability, distance):
    _, verdict = judged(0.2, 0.05, probability, distance)
    assert not verdict.normal.any() and not verdict.anomalous.any()
    assert verdict.rates["anomaly: pasted"] == 1.0  # its change was large enough


def test_what_a_defect_adds_is_added_to_the_normal_of_its_pair():
    """Both images of a pair differ by the two decoded ones' difference alone."""
    rows = plan(num_pairs=9)
    rng = np.random.default_rng(0)
    found = {
        name: rng.uniform(0.4, 0.6, (9, 64, 64, 3)).astype(np.float32)
        for name in ("plain", "normal", "anomalous")
    }
    grey = rows._replace(view=np.full_like(rows.view, 0.5))
    drawn = draw._composed(grey, *found.values())
    added = found["anomalous"] - found["normal"]
    np.testing.assert_allclose(drawn.anomalous - drawn.normal, added, atol=1e-6)
    np.testing.assert_allclose(drawn.normal[6], found["normal"][6], atol=1e-6)  # free
    wanted = 0.5 + found["normal"][3] - found["plain"][3]
    np.testing.assert_allclose(drawn.normal[3], wanted, atol=1e-6)  # redrawn


def test_a_free_base_shows_nothing_of_its_view_and_the_others_do(parts):
    """The highest noise level keeps 7 % of what it was made of (alpha 0.0047)."""
    size = parts.towers.size
    rng = np.random.default_rng(3)
    shots = rng.uniform(size=(2, size, size, 3)).astype(np.float32)
    rows = pairs.plan(shots, 9, 2, seed=0)
    steps = draw.drawer(parts.towers, 2)
    length, depth = parts.towers.text_length, model.token_table(parts.params).shape[1]
    contexts = rng.normal(size=(9, length, depth)).astype(np.float32)

    def normals(plan):
        return draw.draw(steps, parts.towers, parts.params, contexts, plan, 0).normal

    shown = normals(rows)
    others = normals(rows._replace(view=1 - rows.view))
    gaps = np.abs(shown - others).max((1, 2, 3))
    # Equal programs on equal input; the control is every other base.
    assert (gaps[rows.is_free] == 0).all() and (gaps[~rows.is_free] > 0.01).all()


def test_rows_are_packed_as_they_would_be_walked_alone(parts):
    """More than a batch has slots: guided ones, plain ones and one that stays."""
    towers, params = parts.towers, parts.params
    rng = np.random.default_rng(5)
    guidance = np.tile([3.0, 1.0, 3.0, 1.5, 3.0], 3).astype(np.float32)
    count, levels = len(guidance), draw.start_levels(towers)
    level = rng.choice([*levels[1:-1], pairs.PURE_NOISE], count).astype(np.int32)
    level[4] = 0
    how = pairs.Walk(level, rng.integers(4, 9, count), guidance)
    length, depth = towers.text_length, model.token_table(params).shape[1]
    contexts = rng.normal(size=(9, length, depth)).astype(np.float32)
    image = rng.uniform(size=(count, towers.size, towers.size, 3)).astype(np.float32)
    latents = np.asarray(model.moments(towers, params, image).mean)
    noise = rng.normal(size=latents.shape).astype(np.float32)
    mask = (rng.random(latents[..., :1].shape) > 0.5).astype(np.float32)
    steps = draw.drawer(towers, 2)
    found = draw._walk(steps, towers, params, contexts, how, latents, noise, mask)

    places = {level: place for place, level in enumerate(levels)}
    places[pairs.PURE_NOISE] = len(levels) - 1
    empty = np.broadcast_to(contexts[generative.EMPTY], (count, length, depth))
    noise_fn = walks.guided(
        lambda z, t, c: towers.unet(params["unet"], z, t, c),
        contexts[how.context],
        empty,
        guidance,
    )
    table = walks.tables(towers.alphas_cumprod, levels, 2)
    which = np.array([places[n] for n in level])
    moves = walks.rows(table, which)
    wanted = np.asarray(walks.denoise(noise_fn, latents, noise, moves, mask))
    # float32, in batches of other sizes
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_array_equal(found[4], latents[4])
    # Negative control: without guidance the guided rows end elsewhere.
    plain = how._replace(guidance=np.ones_like(guidance))
    others = draw._walk(steps, towers, params, contexts, plain, latents, noise, mask)
    gaps = np.abs(others - wanted).max((1, 2, 3))
    assert (gaps[(guidance != 1) & (level != 0)] > 1e-3).all()
    assert (gaps[guidance == 1] < 1e-4).all()


def test_nothing_is_drawn_for_images_finer_than_the_autoencoder(parts):
    size = parts.towers.size
    assert complete.can_draw(parts.towers, size)
    assert not complete.can_draw(parts.towers, size + 1)
