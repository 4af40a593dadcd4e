"""Arithmetic on class counts."""

import collections

import numpy as np
import pytest

import keras_ldam

CIFAR10_LT100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
CIFAR10_LT10 = [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]


@pytest.mark.parametrize(
    ("num_classes", "max_count", "ratio", "total"),
    [
        (10, 5000, 100, 12406),
        (10, 5000, 10, 20431),
        (10, 5000, 50, 13996),
        (100, 500, 100, 10847),
        (100, 500, 10, 19573),
        (100, 500, 50, 12608),
    ],
)
def test_long_tailed_counts_have_the_published_totals(num_classes, max_count, ratio, total):
    counts = keras_ldam.long_tailed_counts(num_classes, max_count, ratio)
    assert counts.sum() == total
    assert (np.diff(counts) <= 0).all()


def test_long_tailed_counts_are_the_published_vectors():
    assert keras_ldam.long_tailed_counts(10, 5000, 100).tolist() == CIFAR10_LT100
    assert keras_ldam.long_tailed_counts(10, 5000, 10).tolist() == CIFAR10_LT10


class Series:
    """What pandas' `value_counts()` looks like from outside: sorted by frequency."""

    def __init__(self, **counts):
        self.counts = {int(name[1:]): count for name, count in counts.items()}

    def items(self):
        return self.counts.items()


@pytest.mark.parametrize(
    "counts",
    [
        collections.Counter([1] * 90 + [2] * 24 + [0] * 6),
        {2: 24, 0: 6, 1: 90},
        Series(_1=90, _2=24, _0=6),
    ],
)
def test_counts_with_keys_are_put_into_class_order(counts):
    assert keras_ldam.LDAM(counts).counts.tolist() == [6, 90, 24]
    assert keras_ldam.advise(counts).counts.tolist() == [6, 90, 24]
    assert keras_ldam.class_weights(counts, kind="inverse").argmax() == 0


@pytest.mark.parametrize("counts", [{"cat": 90, "dog": 6}, {1: 90, 2: 6}, {}])
def test_counts_with_other_keys_are_refused(counts):
    with pytest.raises(ValueError, match=r"must have as keys the classes 0 … |shape \(0,\)"):
        keras_ldam.LDAM(counts)


def test_step_counts_are_the_published_vectors():
    assert keras_ldam.step_counts(10, 5000, 100).tolist() == [5000] * 5 + [50] * 5
    assert keras_ldam.step_counts(100, 500, 10).tolist() == [500] * 50 + [50] * 50
    assert keras_ldam.step_counts(4.0, 500, 100).tolist() == [500, 500, 5, 5]
    assert keras_ldam.step_counts(2, 98, 49).tolist() == [98, 2]  # 98 · (1/49) is 1.99….


def test_margins_are_the_published_ones():
    expected = [0.1581, 0.1797, 0.2042, 0.2321, 0.2638, 0.2998, 0.3407, 0.3872, 0.4405, 0.5]
    np.testing.assert_allclose(keras_ldam.margins(CIFAR10_LT100), expected, atol=5e-5)
    np.testing.assert_allclose(keras_ldam.margins([1250, 12500]), [0.5, 0.2812], atol=5e-5)


def test_margin_times_fourth_root_of_count_is_the_constant_c():
    constant = keras_ldam.margins(CIFAR10_LT100, max_margin=0.5) * np.array(CIFAR10_LT100) ** 0.25
    np.testing.assert_allclose(constant, 1.3296, atol=5e-5)


def test_equal_counts_give_equal_margins_and_weights_of_one():
    assert keras_ldam.margins([7] * 4, max_margin=0.3).tolist() == pytest.approx([0.3] * 4)
    for kind in ("effective", "inverse"):
        assert keras_ldam.class_weights([7] * 4, kind=kind).tolist() == pytest.approx([1] * 4)


def test_exponent_zero_gives_uniform_margins():
    assert keras_ldam.margins(CIFAR10_LT100, exponent=0).tolist() == [0.5] * 10


def test_a_test_prior_like_the_training_prior_gives_uniform_margins():
    margins = keras_ldam.margins(CIFAR10_LT100, test_prior=CIFAR10_LT100)
    np.testing.assert_allclose(margins, 0.5, rtol=1e-6)


def test_effective_number_weights_are_the_published_ones():
    expected = [0.0506, 0.0769, 0.1211, 0.1950, 0.3188, 0.5246, 0.8683, 1.4426, 2.4092, 3.9927]
    np.testing.assert_allclose(keras_ldam.class_weights(CIFAR10_LT100), expected, atol=5e-5)
    np.testing.assert_allclose(keras_ldam.class_weights([12500, 1250]), [0.2828, 1.7172], atol=5e-5)


def test_inverse_weights_are_one_over_n_with_mean_one():
    np.testing.assert_allclose(
        keras_ldam.class_weights([100, 10], kind="inverse"), [2 / 11, 20 / 11]
    )


def test_effective_number_goes_from_equal_weights_to_inverse_counts_with_beta():
    counts = [1000, 10]
    np.testing.assert_allclose(keras_ldam.class_weights(counts, beta=0.0), 1)
    np.testing.assert_allclose(
        keras_ldam.class_weights(counts, beta=1 - 1e-12),
        keras_ldam.class_weights(counts, kind="inverse"),
        rtol=1e-3,
    )


def test_a_test_prior_with_keys_is_read_by_class_and_not_by_place():
    expected = keras_ldam.margins([10] * 3, test_prior=[2000, 10, 100])
    given = keras_ldam.margins([10] * 3, test_prior={0: 2000, 2: 100, 1: 10})
    np.testing.assert_array_equal(given, expected)
    assert given.argmax() == 0 and given.argmin() == 1


def test_shot_groups_of_cifar100_are_35_35_30():
    groups = keras_ldam.shot_groups(keras_ldam.long_tailed_counts(100, 500, 100))
    assert [len(groups[name]) for name in ("many", "medium", "few")] == [35, 35, 30]


@pytest.mark.parametrize(
    "counts",
    [[10, 0], [10, -1], [10, 1.5], [10, np.nan], [10, np.inf], ["a", "b"], [10], [[1, 2, 3]]],
)
def test_bad_counts_get_a_sentence(counts):
    with pytest.raises(ValueError, match="`counts` must be"):
        keras_ldam.margins(counts)


def test_the_error_names_the_class_at_fault():
    with pytest.raises(ValueError, match="Received: 0 for class 2"):
        keras_ldam.class_weights([5, 5, 0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keras_ldam.margins([5, 5], max_margin=-0.1), "max_margin"),
        (lambda: keras_ldam.margins([5, 5], max_margin=2.5), "max_margin"),
        (lambda: keras_ldam.margins([5, 5], max_margin="wide"), "max_margin"),
        (lambda: keras_ldam.margins([5, 5], max_margin=float("nan")), "max_margin"),
        (lambda: keras_ldam.margins([5, 5], test_prior=[1]), "test_prior"),
        (lambda: keras_ldam.class_weights([5, 5], kind="cubic"), "available: effective, inverse"),
        (lambda: keras_ldam.class_weights([5, 5], beta=1.0), "beta"),
        (lambda: keras_ldam.long_tailed_counts(10, 5000, 0.5), "at least 1"),
        (lambda: keras_ldam.long_tailed_counts(10, 50, 100), "without an example"),
        (lambda: keras_ldam.long_tailed_counts(1, 50, 100), "num_classes"),
        (lambda: keras_ldam.step_counts(5, 500, 10), "even"),
        (lambda: keras_ldam.step_counts(4, 5, 10), "without an example"),
    ],
)
def test_bad_arguments_get_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keras_ldam.margins([5, 5], exponent=1.5), "exponent"),
        (lambda: keras_ldam.margins([5, 5], test_prior=[1, 0]), "test_prior"),
        (lambda: keras_ldam.class_weights([5, 5], beta=-0.1), "beta"),
        (lambda: keras_ldam.long_tailed_counts(10, 0, 10), "max_count"),
        (lambda: keras_ldam.long_tailed_counts(10, 50.5, 10), "max_count"),
        (lambda: keras_ldam.long_tailed_counts(2.5, 50, 10), "num_classes"),
        (lambda: keras_ldam.long_tailed_counts(10, 50, float("inf")), "`imbalance_ratio` is"),
        (lambda: keras_ldam.long_tailed_counts(10, 50, 10**400), "`imbalance_ratio` is"),
        (lambda: keras_ldam.long_tailed_counts(10, 50, "10"), "`imbalance_ratio` is.*: '10'"),
        (lambda: keras_ldam.step_counts(10, 50, None), "`imbalance_ratio` is.*: None"),
        (lambda: keras_ldam.shot_groups([50, 5], many=10, few=100), r"`few` .* in \[0, 11\]"),
        (lambda: keras_ldam.shot_groups([50, 5], many="10"), "`many` must be a finite number"),
    ],
)
def test_arguments_out_of_range_get_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.9, 0.09, 0.01], "not shares of them"),
        ([1.0, 0.0, 0.0, 0.004], "not shares of them"),
        ([90.5, 9.0, 0.5], "not shares of them"),
        ([90.5, 9.0, 10.0], "whole numbers .* Received: 90.5 for class 0"),
        ([0, 0, 1, 1, 2, 0, 1], "count them: keras_ldam.count"),
        ([[0], [1], [1]], "count them: keras_ldam.count"),
        ([[1, 0], [0, 1], [0, 1]], r"add them up: labels.sum\(axis=0\)"),
    ],
)
def test_shares_and_labels_in_the_place_of_counts_get_a_hint(given, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.LDAM(given)


def test_a_count_of_zero_is_told_by_the_name_of_its_class():
    with pytest.raises(ValueError, match=r"Received: 0 for class 1 \(dog\)"):
        keras_ldam.advise({"cat": 5, "dog": 0})


def test_a_class_of_100_or_20_examples_is_medium():
    groups = keras_ldam.shot_groups([101, 100, 20, 19])
    assert {name: classes.tolist() for name, classes in groups.items()} == {
        "many": [0],
        "medium": [1, 2],
        "few": [3],
    }


@pytest.mark.parametrize("count", [2**54, 2**63, 2**64, 10**400, np.inf])
def test_a_count_that_no_float_holds_is_refused(count):
    with pytest.raises(ValueError, match="`counts` must be whole numbers"):
        keras_ldam.margins([count, 3])
