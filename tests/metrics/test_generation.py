import numpy as np
import pytest

from jaxanom.metrics import generation


def gaussian(seed, num, mean, scale, dim=3):
    rng = np.random.default_rng(seed)
    return mean + rng.normal(size=(num, dim)) * scale


def levels(*values):
    """One-dimensional features."""
    return np.asarray(values)[:, None]


def diversity(generated, real, **options):
    to_real, among = (generation.distances(generated, x) for x in (real, generated))
    return generation.cluster_diversity(to_real, among, **options)


def test_frechet_distance_of_gaussians_is_the_closed_form():
    mean, scale = np.array([1.0, -0.5, 2.0]), np.array([0.5, 2.0, 1.5])
    first = gaussian(0, 100_000, 0.0, 1.0)
    second = gaussian(1, 100_000, mean, scale)
    expected = np.sum(mean**2) + np.sum((scale - 1) ** 2)
    # Sampling error of a mean is sigma / sqrt(N) < 0.007; twice that times |gap| 2.3.
    assert generation.frechet_distance(first, second) == pytest.approx(
        expected, abs=0.05
    )


def test_frechet_distance_of_correlated_features_matches_the_matrix_root():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(2)
    first = rng.normal(size=(50, 4)) @ rng.normal(size=(4, 4))
    second = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + 1
    a, b = np.cov(first.T), np.cov(second.T)
    root = linalg.sqrtm(a @ b).real
    gap = first.mean(0) - second.mean(0)
    # Two float64 routes to the root of a well conditioned 4 x 4 matrix.
    assert generation.frechet_distance(first, second) == pytest.approx(
        gap @ gap + np.trace(a + b - 2 * root), rel=1e-8
    )


def test_frechet_distance_to_itself_is_zero_even_when_rank_deficient():
    features = gaussian(3, 5, 0.0, 1.0, dim=20)
    # The root of rounding errors of 1e-16 relative size, in 20 dimensions.
    assert generation.frechet_distance(features, features) < 1e-6
    assert generation.frechet_distance(features, features + 1) == pytest.approx(
        20, abs=1e-6
    )


def test_frechet_distance_is_symmetric_and_ignores_rotations():
    first, second = gaussian(4, 40, 0.0, 1.0), gaussian(5, 50, 1.0, 2.0)
    distance = generation.frechet_distance(first, second)
    rotation = np.linalg.qr(np.random.default_rng(6).normal(size=(3, 3)))[0]
    assert generation.frechet_distance(second, first) == pytest.approx(distance)
    assert generation.frechet_distance(
        first @ rotation, second @ rotation
    ) == pytest.approx(distance)


def test_kernel_distance_equals_the_double_sum():
    first, second = gaussian(7, 6, 0.0, 1.0), gaussian(8, 5, 0.5, 1.0)

    def similarity(x, y):
        return (x @ y / 3 + 1) ** 3

    expected = (
        np.mean([similarity(x, y) for i, x in enumerate(first)
                 for j, y in enumerate(first) if i != j])
        + np.mean([similarity(x, y) for i, x in enumerate(second)
                   for j, y in enumerate(second) if i != j])
        - 2 * np.mean([similarity(x, y) for x in first for y in second])
    )  # fmt: skip
    found = generation.kernel_distance(first, second)
    assert found == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_centred_on_zero_for_equal_laws_and_positive_otherwise():
    draws = [
        generation.kernel_distance(
            gaussian(seed, 30, 0.0, 1.0), gaussian(seed + 100, 30, 0.0, 1.0)
        )
        for seed in range(60)
    ]
    # Unbiased: the mean of 60 draws lies within 3 standard errors of 0.
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(60)
    assert min(draws) < 0
    far = generation.kernel_distance(
        gaussian(0, 30, 0.0, 1.0), gaussian(1, 30, 1.0, 1.0)
    )
    assert far > max(draws)  # negative control: a shift is seen


def test_precision_is_the_share_inside_the_real_set_and_recall_the_other():
    """Worked by hand on a line, with the first neighbour."""
    real = levels(0.0, 1.0, 3.0)  # reach 1, 1 and 2: [-1, 1], [0, 2] and [1, 5]
    generated = levels(4.9, 5.1, -0.9, 9.0)  # reach 0.2, 0.2, 5.8 and 3.9
    precision, recall = generation.precision_recall(generated, real, neighbours=1)
    assert precision == 2 / 4  # 4.9 and -0.9
    assert recall == 1  # all within 5.8 of -0.9
    one_place = levels(2.0, 2.1, 2.2)
    assert generation.precision_recall(one_place, real, 1) == (1, 0)
    assert generation.precision_recall(real, real, 1) == (1, 1)


def test_precision_and_recall_of_equal_laws_are_high_and_of_others_fall():
    real, same = gaussian(0, 200, 0.0, 1.0), gaussian(1, 200, 0.0, 1.0)
    assert min(generation.precision_recall(same, real)) > 0.8
    narrow = generation.precision_recall(gaussian(2, 200, 0.0, 0.1), real)
    assert narrow[0] > 0.9 and narrow[1] < 0.1
    wide = generation.precision_recall(gaussian(3, 200, 0.0, 10.0), real)
    assert wide[0] < 0.1 and wide[1] > 0.8
    far = gaussian(4, 200, 20.0, 1.0)
    assert generation.precision_recall(far, real) == (0, 0)


def test_cluster_diversity_has_the_value_counted_by_hand():
    generated = levels(0.0, 0.1, 0.3, 0.9, 0.7)
    # Around 0: |0-.1|, |0-.3|, |.1-.3| have mean 0.2; around 1: |.9-.7| = 0.2.
    assert diversity(generated, levels(0.0, 1.0)) == pytest.approx(0.2)


def test_copies_of_the_training_images_have_no_diversity():
    real = levels(0.0, 0.5, 1.0)
    copies = np.concatenate([real, real])
    assert diversity(copies, real) == 0
    # Negative control: without clusters the set looks diverse.
    assert generation.distances(copies[:1], copies).mean() > 0.3


def test_cluster_size_is_capped_and_lone_members_are_undefined():
    generated = levels(0.1, 0.2, 0.9)
    capped = diversity(generated, levels(0.0), max_per_cluster=2)
    assert capped == pytest.approx(0.1)
    assert np.isnan(diversity(generated[:1], levels(0.0)))


def test_too_few_samples_and_unlike_features_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        generation.frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="same network"):
        generation.kernel_distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="3 and 5 samples; at least 4"):
        generation.precision_recall(np.zeros((3, 3)), np.zeros((5, 3)))
