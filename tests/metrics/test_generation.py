import numpy as np
import pytest

from jaxanom.metrics import generation


def gaussian(seed, num, mean, scale, dim=3):
    rng = np.random.default_rng(seed)
    return mean + rng.normal(size=(num, dim)) * scale


def image_distance(first, second):
    return np.abs(first - second).mean(axis=(1, 2, 3))


def constant_images(levels, side=4):
    levels = np.asarray(levels, np.float32)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), side, side, 3))


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
    mean, spread = generation.kernel_distance(first, second)
    assert mean == pytest.approx(expected, rel=1e-12)
    assert spread == 0


def test_kernel_distance_is_centred_on_zero_for_equal_laws_and_positive_otherwise():
    draws = [
        generation.kernel_distance(
            gaussian(seed, 30, 0.0, 1.0), gaussian(seed + 100, 30, 0.0, 1.0)
        )[0]
        for seed in range(60)
    ]
    # Unbiased: the mean of 60 draws lies within 3 standard errors of 0.
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(60)
    assert min(draws) < 0
    far = generation.kernel_distance(
        gaussian(0, 30, 0.0, 1.0), gaussian(1, 30, 1.0, 1.0)
    )
    assert far[0] > max(draws)  # negative control: a shift is seen


def test_subsets_are_seeded_and_agree_with_the_whole():
    first, second = gaussian(9, 200, 0.0, 1.0), gaussian(10, 200, 1.0, 1.0)
    options = {"num_subsets": 20, "subset_size": 50}
    one = generation.kernel_distance(first, second, **options)
    assert one == generation.kernel_distance(first, second, **options)
    assert one != generation.kernel_distance(first, second, **options, seed=1)
    whole = generation.kernel_distance(first, second)[0]
    assert abs(one[0] - whole) < 3 * one[1] / np.sqrt(20)  # 3 standard errors


def test_cluster_diversity_has_the_value_counted_by_hand():
    real = constant_images([0.0, 1.0])
    generated = constant_images([0.0, 0.1, 0.3, 0.9, 0.7])
    result = generation.cluster_diversity(generated, real, image_distance)
    # Around 0: |0-.1|, |0-.3|, |.1-.3| have mean 0.2; around 1: |.9-.7| = 0.2.
    assert result["cluster_diversity"] == pytest.approx(0.2, abs=1e-6)  # float32 images
    assert result["nearest_distance"] == pytest.approx(
        (0.0 + 0.1 + 0.3 + 0.1 + 0.3) / 5, abs=1e-6
    )
    assert result["num_clusters"] == 2


def test_copies_of_the_training_images_have_no_diversity():
    real = constant_images([0.0, 0.5, 1.0])
    copies = np.concatenate([real, real])
    result = generation.cluster_diversity(copies, real, image_distance)
    assert result["cluster_diversity"] == 0 == result["nearest_distance"]
    # Negative control: without clusters the set looks diverse.
    pairs = [image_distance(copies[:1], copies[k : k + 1])[0] for k in range(6)]
    assert np.mean(pairs) > 0.3


def test_cluster_size_is_capped_and_lone_members_are_undefined():
    real = constant_images([0.0])
    generated = constant_images([0.1, 0.2, 0.9])
    capped = generation.cluster_diversity(generated, real, image_distance, 2)
    assert capped["cluster_diversity"] == pytest.approx(0.1, abs=1e-6)
    lone = generation.cluster_diversity(generated[:1], real, image_distance)
    assert np.isnan(lone["cluster_diversity"]) and lone["num_clusters"] == 0


def test_batches_have_one_size_and_do_not_change_the_result():
    sizes = []

    def extract(images):
        sizes.append(len(images))
        return images.reshape(len(images), -1)

    images = np.random.default_rng(0).random((7, 2, 2, 3))
    features = generation.extract_features(extract, images, batch_size=3)
    assert sizes == [3, 3, 3]
    np.testing.assert_array_equal(features, images.reshape(7, -1))
    real = images[:2]
    small = generation.cluster_diversity(images, real, image_distance, batch_size=2)
    assert small == generation.cluster_diversity(images, real, image_distance)


def test_too_few_samples_and_unlike_features_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        generation.frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="same network"):
        generation.kernel_distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="choose 2 to 4"):
        generation.kernel_distance(np.zeros((4, 3)), np.zeros((5, 3)), subset_size=5)
    with pytest.raises(ValueError, match="0 images"):
        generation.extract_features(lambda x: x, np.zeros((0, 2, 2, 3)))
