"""Mixtures with partners drawn by class: pixels, labels, shares and draws, and what is refused."""

import tracemalloc

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam.sampling.mixing import mix, one_hot, soft_labels

COUNTS = [300, 90, 10]
LABELS = np.repeat([0, 1, 2], COUNTS)
IMAGES = np.random.default_rng(0).integers(0, 256, (400, 6, 4, 3), dtype="uint8")


def mixed(how, data=(IMAGES, LABELS), **changes):
    return keras_ldam.mixed(data, how, **{"batch_size": 100, "verbose": 0, **changes})


def pairs(batches, index=0):
    """A batch, and the two that it is made of."""
    return batches[index], batches.first[index], batches.partners[index]


def test_mixup_is_what_keras_own_layer_computes_for_the_same_pairs_and_weights():
    (x, y), (first, a), (second, b) = pairs(mixed("mixup", seed=3))
    # The share of the first is read off the label, where the classes differ.
    differ = a != b
    shares = y[np.arange(100), a][differ]
    layer = keras.layers.MixUp()
    both = np.concatenate([first[differ], second[differ]]).astype("float32")
    n = len(shares)
    how = {"mix_weight": np.tile(shares, 2), "permutation_order": np.roll(np.arange(2 * n), -n)}
    expected = keras.ops.convert_to_numpy(layer.transform_images(both, how))[:n]
    assert x.dtype == np.uint8
    np.testing.assert_allclose(x[differ], expected, atol=0.501)
    np.testing.assert_array_equal(y[~differ], np.eye(3)[a[~differ]])


def test_cutmix_pastes_one_rectangle_whose_area_is_the_partners_share():
    first, second = np.zeros((500, 6, 4, 1), "uint8"), np.ones((500, 6, 4, 1), "uint8")
    x, shares = mix("cutmix", first, second, np.random.default_rng(1))
    for image, share in zip(x[..., 0], shares, strict=True):
        rows, columns = image.any(1), image.any(0)
        np.testing.assert_array_equal(image, np.outer(rows, columns))
        for side in (rows, columns):  # Without a gap.
            assert np.abs(np.diff(side.astype(int), prepend=0, append=0)).sum() in (0, 2)
        assert share == pytest.approx(1 - image.mean())
    assert (shares == 1).any() and (shares < 0.2).any()


def test_a_rectangle_has_the_share_that_was_drawn_unless_it_is_cut_off():
    first, second = np.zeros((2000, 64, 64, 1), "uint8"), np.ones((2000, 64, 64, 1), "uint8")
    drawn = np.random.default_rng(1).beta(2, 2, 2000)
    x, shares = mix("cutmix", first, second, np.random.default_rng(1), alpha=2.0)
    edges = [x[:, i].any((1, 2)) for i in (0, -1)] + [x[:, :, i].any((1, 2)) for i in (0, -1)]
    whole = ~np.any(edges, axis=0)
    assert whole.sum() > 200
    np.testing.assert_allclose(shares[whole], drawn[whole], atol=0.03)
    assert (shares[~whole] > drawn[~whole] - 0.03).all()


def test_shares_follow_the_beta_distribution():
    x = np.zeros((20_000, 1), "float32")
    for alpha in (0.2, 1.0, 3.0):
        _, shares = mix("mixup", x, x, np.random.default_rng(0), alpha=alpha)
        assert shares.mean() == pytest.approx(0.5, abs=0.01)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.04)
    _, shares = mix("mixup", x, x, np.random.default_rng(0), probability=0.3, majority=True)
    assert (shares < 1).mean() == pytest.approx(0.3, abs=0.02)
    assert shares.min() >= 0.5
    assert shares[shares < 1].mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_partners_come_by_the_power_of_their_counts_and_the_first_as_they_are(power):
    batches = mixed("mixup", power=power)
    drawn = np.zeros(3)
    for epoch in range(10):
        batches.epoch = epoch
        assert batches.first.class_counts(epoch).tolist() == COUNTS
        drawn += batches.partners.class_counts(epoch)
    chances = np.array(COUNTS) ** (1.0 - power)
    np.testing.assert_allclose(drawn / drawn.sum(), chances / chances.sum(), atol=0.03)
    orders = [batches.first.order(epoch).tolist() for epoch in range(3)]
    assert batches.partners.order(0).tolist() not in orders


def test_each_example_comes_once_whatever_counts_are_given():
    batches = mixed("mixup", counts=[1000, 350, 40])
    assert sorted(batches.first.order(0).tolist()) == list(range(400))


def test_seed_epoch_and_batch_decide_the_mixtures():
    batches, again = mixed("cutmix", seed=1), mixed("cutmix", seed=1)
    for other in (batches, again):
        other.epoch = 2
    first, second = batches[1], again[1]
    keras.tree.map_structure(np.testing.assert_array_equal, first, second)
    for other in (mixed("cutmix", seed=2), again):
        other.epoch = 2 if other is not again else 3
        assert (other[1][0] != first[0]).any()


def test_the_probability_may_change_with_the_epoch():
    batches = mixed("mixup", probability=lambda epoch: float(epoch > 0))
    (x, y), (first, labels), _ = pairs(batches)
    np.testing.assert_array_equal(x, first)
    np.testing.assert_array_equal(y, np.eye(3)[labels])
    batches.on_epoch_end()
    assert batches.epoch == batches.partners.epoch == 1
    assert (batches[0][1].max(1) < 1).any()


class Stored(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        some = slice(index, None, 4)
        return {"a": IMAGES[some] / 255.0}, np.eye(3)[LABELS[some]]


def test_structures_in_a_dataset_with_one_hot_labels_are_mixed():
    (x, y), (first, a), (second, b) = pairs(mixed("mixup", Stored(), batch_size=None))
    unlike = a.argmax(1) != b.argmax(1)
    shares = np.where(unlike, (y * a).sum(1), np.nan)
    expected = (
        shares[:, None, None, None] * first["a"] + (1 - shares)[:, None, None, None] * second["a"]
    )
    np.testing.assert_allclose(x["a"][unlike], expected[unlike], atol=1e-6)


@pytest.mark.parametrize("loss", ["LDAM", "LDAMHinge", "CrossEntropy", "LogitAdjusted"])
def test_the_loss_of_a_mixture_of_labels_is_the_mixture_of_the_losses(loss):
    scores = np.random.default_rng(2).uniform(-1, 1, (4, 3)).astype("float32")
    a, b, shares = np.array([0, 1, 2, 0]), np.array([2, 1, 0, 1]), np.array([0.9, 0.3, 0.5, 0.0])
    made = getattr(keras_ldam, loss)(COUNTS, reduction=None)
    both = made(soft_labels(np.eye(3)[a], np.eye(3)[b], shares), scores)
    expected = shares * np.array(made(a, scores)) + (1 - shares) * np.array(made(b, scores))
    np.testing.assert_allclose(both, expected, rtol=1e-5)


def test_labels_of_very_many_classes_take_the_memory_of_their_batch_alone():
    tracemalloc.start()
    assert one_hot([1, 4_999], 5_000).sum() == 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000 * 100


def test_a_dataset_is_read_once_for_its_labels():
    read = []

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            read.append(index)
            return tuple(part[100 * index :][:100] for part in (IMAGES, LABELS))

    batches = mixed("cutmix", Batches())
    assert read == [0, 1, 2, 3]
    assert batches[0][0].shape == (100, 6, 4, 3)


def test_fit_takes_them():
    model = keras.Sequential(
        [keras.Input((6, 4, 3)), keras.layers.Flatten(), keras_ldam.CosineDense(3)]
    )
    model.compile("sgd", loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
    batches = mixed("cutmix", power=2.0)
    clock = keras_ldam.EpochClock(batches)
    history = model.fit(batches, epochs=2, verbose=0, callbacks=[clock]).history
    assert np.isfinite(history["loss"]).all()
    assert batches.epoch == 2  # It has been told of epoch 1, and goes on.


@pytest.mark.parametrize(
    ("how", "changes", "message"),
    [
        ("blend", {}, "`how` must be one of mixup, cutmix. Received: how='blend'"),
        ("mixup", {"alpha": 0.0}, r"`alpha` must be a number in \(0, 100\]. Received: 0.0"),
        ("mixup", {"alpha": float("nan")}, "`alpha` must be a number"),
        ("mixup", {"majority": "no"}, "`majority` must be True or False. Received: 'no'"),
        ("mixup", {"probability": lambda epoch: 1.5}, r"`probability` must be .* Received: 1.5"),
        ("mixup", {"probability": 1.5}, r"`probability` must be a number in \[0, 1\]"),
        ("mixup", {"power": 3}, r"`power` must be a number in \[0, 2\]"),
        ("mixup", {"data": (IMAGES, LABELS, LABELS)}, "Received: sample weights"),
        (
            "mixup",
            {"data": keras_ldam.balanced((IMAGES, LABELS, LABELS), verbose=0), "batch_size": None},
            "without sample weights. Received: 3 parts",
        ),
        ("mixup", {"data": (LABELS, LABELS)}, "needs pixels in uint8 or floats.* Received: int64"),
        (
            "cutmix",
            {"data": (IMAGES[:, 0], LABELS)},
            r"needs images .*Received: shape \(100, 4, 3\)",
        ),
    ],
)
def test_what_cannot_be_mixed_is_refused(how, changes, message):
    with pytest.raises(ValueError, match=message):
        mixed(how, **changes)[0]
