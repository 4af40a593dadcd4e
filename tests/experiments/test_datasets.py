"""Which examples are kept, in which order they come, and how often each class does."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import small_config

import keras_ldam
from keras_ldam.experiments import datasets
from keras_ldam.experiments.datasets import imbalance, sampling
from keras_ldam.experiments.datasets.data import Data, Ragged, Split
from keras_ldam.experiments.datasets.sampling import Batches, EpochClock


@pytest.fixture(scope="module")
def digits():
    return datasets.load(small_config())


def test_digits_are_long_tailed_with_a_balanced_test_split(digits):
    assert digits.counts.tolist() == keras_ldam.long_tailed_counts(10, 124, 20).tolist()
    assert np.bincount(digits.test.labels).tolist() == [50] * 10
    assert digits.train.examples.shape[1:] == (8, 8, 1)
    assert digits.train.examples.dtype == np.uint8


def test_no_training_image_is_a_test_image(digits):
    train = {image.tobytes() for image in digits.train.examples}
    assert not any(image.tobytes() in train for image in digits.test.examples)


def test_the_seed_changes_the_training_part_and_not_the_test_part(digits):
    other = datasets.load(small_config(seed=1))
    assert not np.array_equal(other.train.examples, digits.train.examples)
    np.testing.assert_array_equal(other.test.examples, digits.test.examples)


def test_validation_comes_out_of_the_kept_training_examples(digits):
    split = datasets.load(small_config(validation_fraction=0.2))
    assert split.test_name == "validation"
    assert len(split.train) + len(split.test) == len(digits.train)
    kept = {image.tobytes() for image in digits.train.examples}
    assert all(image.tobytes() in kept for image in split.test.examples)


def test_the_subset_is_that_of_the_official_rule():
    # One generator, classes in label order, file-order indices shuffled in place, the first n.
    labels = np.array([1, 0, 1, 0, 2, 0, 1, 2, 0, 1])
    generator = np.random.RandomState(0)
    expected = []
    for label, count in enumerate([3, 2, 1]):
        indices = np.where(labels == label)[0]
        generator.shuffle(indices)
        expected += indices[:count].tolist()
    assert imbalance.imbalanced_indices(labels, [3, 2, 1], seed=0).tolist() == expected


def test_a_class_with_too_few_examples_gets_a_sentence():
    with pytest.raises(ValueError, match="Received: 2 for class 1, which has 1 examples"):
        imbalance.imbalanced_indices(np.array([0, 0, 1]), [1, 2], seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imbalance_ratio": 200.0}, "without an example"),
        ({"imbalance": "step", "imbalance_ratio": 1000.0}, "without an example"),
    ],
)
def test_an_imbalance_that_empties_a_class_gets_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        datasets.load(small_config(**changes))


def test_labels_outside_the_classes_and_empty_classes_get_a_sentence():
    fine = Split(np.zeros((2, 1)), np.array([0, 1]))
    wrong = Split(np.zeros((2, 1)), np.array([0, 2]))
    with pytest.raises(ValueError, match="training example 1 has label 2"):
        Data("made", ("a", "b"), train=wrong, test=fine)
    with pytest.raises(ValueError, match=r"class 2 \(c\) has no training example"):
        Data("made", ("a", "b", "c"), train=fine, test=fine)
    with pytest.raises(ValueError, match="made has no validation example"):
        Data("made", ("a", "b"), train=fine, test=fine.take(np.arange(0)), test_name="validation")
    with pytest.raises(ValueError, match="made has 1 classes"):
        Data("made", ("a",), train=fine, test=fine)


def test_every_example_comes_once_in_order_and_sequences_from_short_to_long(rng):
    images = Split(rng.integers(0, 256, (37, 4), dtype=np.uint8), rng.integers(0, 3, 37))
    seen = list(images.batches(10))
    assert [len(labels) for _, labels in seen] == [10, 10, 10, 7]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in seen]), images.examples)
    np.testing.assert_array_equal(np.concatenate([y for _, y in seen]), images.labels)

    lengths = rng.integers(1, 20, size=37)
    texts = Split(Ragged.from_sequences([np.full(n, n) for n in lengths]), lengths)
    seen = list(texts.batches(10))
    assert all(x.shape[1] == y.max() and (x[:, 0] == y).all() for x, y in seen)
    assert np.concatenate([y for _, y in seen]).tolist() == sorted(lengths)


def test_what_a_dataset_declares_is_known_without_its_data_and_without_tensorflow():
    code = """
import json, sys
from keras_ldam.experiments import datasets
from keras_ldam.experiments.config import DATASETS
found = {name: datasets.declared(name) for name in DATASETS}
print(json.dumps({
    "cores": [name for name, values in found.items() if values.DIVIDES_CORES],
    "titles": [values.TITLE for values in found.values()],
    "networks": [values.NETWORK for values in found.values()],
    "columns": {name: len(values.COLUMNS) for name, values in found.items() if values.COLUMNS},
    "loaded": sorted({"tensorflow", "tensorflow_datasets"} & set(sys.modules)),
}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"KERAS_BACKEND": "jax", "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "cores": ["imdb", "text"],
        "titles": [
            "Long-tailed digits", "Imbalanced IMDB", "Imbalanced CIFAR-10", "Imbalanced CIFAR-100",
            "iNaturalist 2018", "folder", "Texts",
            "Table",
        ],
        "networks": [
            "small_cnn", "bilstm", "resnet32", "resnet32", "resnet50", "resnet50", "bilstm",
            "table_mlp",
        ],
        "columns": {"cifar10": 4, "cifar100": 4},
        "loaded": [],
    }  # fmt: skip


LABELS = np.repeat([0, 1, 2], [900, 90, 10])


def frequencies(batches, epoch):
    return np.bincount(batches.split.labels[batches.order(epoch)], minlength=3) / len(batches.split)


def batches(**settings):
    split = Split(np.arange(1000)[:, None], LABELS)
    return Batches(split, 128, seed=0, counts=np.array([900, 90, 10]), **settings)


def test_without_a_rule_every_example_comes_once():
    assert sorted(batches().order(3).tolist()) == list(range(1000))


def test_re_sampling_really_changes_the_class_frequencies():
    np.testing.assert_allclose(frequencies(batches(resample="inverse"), 0), 1 / 3, atol=0.05)
    # The effective number with this beta is between 1/n and nothing.
    weights = keras_ldam.class_weights([900, 90, 10], kind="effective", beta=0.99) * [900, 90, 10]
    expected = weights / weights.sum()
    assert expected[0] > 0.5
    measured = np.mean(
        [frequencies(batches(resample="effective", beta=0.99), e) for e in range(20)], axis=0
    )
    np.testing.assert_allclose(measured, expected, atol=0.01)


def test_deferred_re_sampling_starts_at_its_epoch():
    deferred = batches(resample="inverse", start_epoch=2)
    assert frequencies(deferred, 1).tolist() == [0.9, 0.09, 0.01]
    np.testing.assert_allclose(frequencies(deferred, 2), 1 / 3, atol=0.05)


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    np.testing.assert_array_equal(batches().order(5), batches().order(5))
    assert not np.array_equal(batches().order(5), batches().order(6))


def test_the_last_partial_batch_is_kept():
    loader = batches()
    sizes = [len(loader[i][1]) for i in range(len(loader))]
    assert sizes == [128] * 7 + [104]


def test_an_epoch_of_few_steps_is_the_beginning_of_the_whole_one():
    split = Split(np.arange(70), np.zeros(70, "int32"))
    whole = Batches(split, 32, seed=0)
    short = Batches(split, 32, seed=0, steps=2)
    assert (len(whole), len(short)) == (3, 2)
    for index in range(2):
        np.testing.assert_array_equal(short[index][0], whole[index][0])
    assert len(Batches(split, 32, seed=0, steps=9)) == 3


def test_sequences_come_in_batches_of_like_length(rng):
    lengths = rng.integers(1, 200, size=1000)
    order = rng.permutation(1000)
    plan = sampling.batches_by_length(order, lengths, 50, seed=0, epoch=0)
    assert sorted(np.concatenate(plan).tolist()) == list(range(1000))
    padded = sum(len(b) * lengths[b].max() for b in plan)
    assert padded < 1.1 * lengths.sum()


def test_ragged_sequences_are_padded_at_their_ends():
    ragged = Ragged.from_sequences([np.array([5]), np.array([7, 8, 9]), np.zeros(0, int)])
    assert ragged[np.array([1, 0, 2])].tolist() == [[7, 8, 9], [5, 0, 0], [0, 0, 0]]
    taken = Split(ragged, np.array([0, 1, 0])).take(np.array([1, 2]))
    assert taken.examples[np.array([0, 1])].tolist() == [[7, 8, 9], [0, 0, 0]]


def test_ragged_sequences_are_padded_to_a_multiple_where_each_shape_is_compiled():
    sequences = [np.ones(length, int) for length in (0, 1, 4, 5, 8)]
    split = Split(Ragged.from_sequences(sequences, 4), np.zeros(5, int))
    assert [split.examples[np.array([i])].shape[1] for i in range(5)] == [4, 4, 4, 8, 8]
    taken = split.take(np.array([3, 1])).examples
    assert taken[np.array([0, 1])].tolist() == [[1] * 5 + [0] * 3, [1] + [0] * 7]


def test_an_unavailable_dataset_names_the_place_and_two_ways_out(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    config = small_config(dataset="imdb", method="erm", data_dir=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"imdb_reviews is unavailable: .*no route to host.*--data_dir"
    ):
        datasets.load(config)


def test_dropout_masks_depend_on_seed_and_epoch_alone():
    inner = keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5)])
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5), inner])
    split = Split(np.zeros((4, 1)), np.array([0, 1, 0, 1]))

    def masks(seed, epoch):
        clock = EpochClock(Batches(split, 2, seed=seed))
        clock.set_model(model)
        clock.on_epoch_begin(epoch)
        draws = [model(np.ones((1, 64), np.float32), training=True) for _ in range(2)]
        return [keras.ops.convert_to_numpy(draw).tolist() for draw in draws]

    first, second = masks(0, 3)
    assert first != second
    assert masks(0, 3) == [first, second]
    assert masks(0, 4)[0] != first
    assert masks(1, 3)[0] != first


def test_each_epoch_of_a_fit_comes_in_its_own_order():
    loader = batches(resample="inverse", start_epoch=1)
    clock = EpochClock(loader)
    clock.set_model(keras.Sequential([keras.Input((1,))]))
    for epoch in (0, 1, 2, 0):
        clock.on_epoch_begin(epoch)
        seen = np.concatenate([loader[i][0][:, 0] for i in range(len(loader))])
        np.testing.assert_array_equal(seen, loader.order(epoch))


def test_another_seed_gives_another_order():
    split = Split(np.arange(1000)[:, None], LABELS)
    first, second = (Batches(split, 128, seed=s).order(5) for s in (0, 1))
    assert not np.array_equal(first, second)


def test_batches_of_like_length_come_in_an_order_drawn_for_each_epoch(rng):
    lengths, order = rng.integers(1, 200, size=1000), np.arange(1000)

    def longest(seed, epoch):
        plan = sampling.batches_by_length(order, lengths, 50, seed=seed, epoch=epoch)
        return [int(lengths[batch].max()) for batch in plan]

    assert longest(0, 0) == longest(0, 0) != sorted(longest(0, 0))
    assert longest(0, 0) != longest(0, 1)
    assert longest(0, 0) != longest(1, 0)


def test_two_layers_that_draw_do_not_draw_the_same():
    outer, inner = keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)
    nested = keras.Sequential([keras.Input((64,)), inner])
    model = keras.Sequential([keras.Input((64,)), outer, nested])
    clock = EpochClock(Batches(Split(np.zeros((4, 1)), np.zeros(4, int)), 2, seed=0))
    clock.set_model(model)
    clock.on_epoch_begin(0)
    states = [keras.ops.convert_to_numpy(d.seed_generator.state) for d in (outer, inner)]
    assert not np.array_equal(*states)


def test_layers_inside_others_start_each_epoch_from_the_seed_too():
    inputs = keras.Input((4, 8))
    attention = keras.layers.MultiHeadAttention(2, 4, dropout=0.5)
    recurrent = keras.layers.Bidirectional(keras.layers.LSTM(3, dropout=0.5))
    outputs = keras.layers.Dropout(0.5)(recurrent(attention(inputs, inputs)))
    model = keras.Sequential([keras.Model(inputs, outputs), keras.layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"])
    clock = EpochClock(Batches(Split(np.zeros((4, 1)), np.zeros(4, int)), 2, seed=0))
    clock.set_model(model)
    x, y = np.ones((2, 4, 8)), np.zeros((2, 2))
    weights = model.get_weights()
    losses = []
    for _ in range(2):
        clock.on_epoch_begin(0)
        losses.append(model.train_on_batch(x, y))
        model.set_weights(weights)
        model.reset_metrics()
    assert losses[0] == losses[1]


@pytest.mark.parametrize("fraction", [0.01, 0.4, 0.99])
def test_each_class_keeps_an_example_and_gives_one_for_validation(fraction):
    labels = np.repeat([0, 1, 2], [10, 2, 5])
    train, held = imbalance.hold_out(labels, fraction, seed=0)
    assert sorted([*train, *held]) == list(range(17))
    assert np.bincount(labels[train], minlength=3).min() >= 1
    assert np.bincount(labels[held], minlength=3).min() >= 1
    if fraction == 0.4:
        assert np.bincount(labels[held]).tolist() == [4, 1, 2]


def test_what_is_held_out_depends_on_the_seed():
    labels = np.repeat([0, 1], [50, 50])
    first, again, second = (imbalance.hold_out(labels, 0.2, seed=s)[1].tolist() for s in (0, 0, 1))
    assert first == again != second
    counts = np.array([50, 50])  # Everything is kept, so that the split alone can differ.
    held = [
        set(imbalance.select(labels, counts, small_config(seed=s, validation_fraction=0.2))[1])
        for s in (0, 1)
    ]
    kept = [imbalance.imbalanced_indices(labels, counts, s) for s in (0, 1)]
    expected = [
        set(each[imbalance.hold_out(labels[each], 0.2, s)[1]]) for s, each in enumerate(kept)
    ]
    assert held == expected


@pytest.mark.parametrize("label", [2**31, 2**32 + 1, -1])
def test_labels_beyond_whole_numbers_of_32_bits_are_refused(label):
    with pytest.raises(ValueError, match=f"`labels` must be from 0 to 2147483647.*{label}"):
        Split(np.zeros((2, 1)), np.array([0, label]))


def test_folds_hold_out_every_example_once():
    labels = np.repeat([0, 1, 2, 3], [7, 8, 12, 13])  # A part has no whole number of examples.
    held = [imbalance.hold_out(labels, 0.2, seed=3, fold=fold)[1] for fold in range(5)]
    assert sorted(np.concatenate(held)) == list(range(40))
    labels = np.repeat([0, 1], [10, 25])
    folds = [imbalance.hold_out(labels, 0.2, seed=3, fold=fold) for fold in range(5)]
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(35))
    for train, held in folds:
        assert sorted([*train, *held]) == list(range(35))
        assert np.bincount(labels[held]).tolist() == [2, 5]
    config = small_config(seed=3, validation_fraction=0.2, validation_fold=4)
    kept = imbalance.imbalanced_indices(labels, np.array([10, 25]), 3)
    expected = kept[imbalance.hold_out(labels[kept], 0.2, 3, fold=4)[1]]
    np.testing.assert_array_equal(imbalance.select(labels, [10, 25], config)[1], expected)


def test_a_single_example_cannot_be_held_out():
    with pytest.raises(ValueError, match="class 1 has a single example"):
        imbalance.hold_out(np.array([0, 0, 1]), 0.5, seed=0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("none", [30, 20, 25, 40]), ("longtail", [20, 9, 4, 2]), ("step", [20, 20, 2, 2])],
)
def test_a_profile_begins_at_what_the_smallest_class_has(kind, expected):
    labels = np.repeat([0, 1, 2, 3], [30, 20, 25, 40])
    assert imbalance.profile(kind, labels, 4, 10.0).tolist() == expected


@pytest.fixture
def reviews(monkeypatch):
    """80 made-up training reviews, each with a word of its own, and six to test on."""
    from keras_ldam.experiments.datasets import imdb

    def made(number):
        labels = np.arange(number, dtype=np.int32) % 2
        return [f"only{i} {'good' if y else 'bad'}".encode() for i, y in enumerate(labels)], labels

    monkeypatch.setattr(imdb.prepared, "builder", lambda name, data_dir: None)
    monkeypatch.setattr(imdb, "_read", lambda source, split: made(80 if split == "train" else 6))


@pytest.mark.parametrize("kind", ["longtail", "step", "none"])
def test_of_the_negative_reviews_few_stay_and_their_words_alone_are_known(kind, reviews):
    config = small_config(dataset="imdb", method="erm", imbalance=kind, imbalance_ratio=4.0)
    data = datasets.load(config)
    negative = 40 if kind == "none" else 10
    assert data.counts.tolist() == [negative, 40]
    assert data.test_name == "test" and data.test.labels.tolist() == [0, 1] * 3
    assert len([word for word in data.vocabulary if word.startswith("only")]) == negative + 40


def test_reviews_that_the_imbalance_leaves_out_may_be_validated_on(reviews):
    how = {"dataset": "imdb", "method": "erm", "imbalance_ratio": 4.0, "validation_fraction": 0.1}
    some, data = (datasets.load(small_config(**how, left_out=left)) for left in (False, True))
    for part, whole in ((some.train, data.train), (some.test, data.test)):
        every = np.arange(len(part))
        np.testing.assert_array_equal(whole.examples[every], part.examples[every])
    assert len(data.train) == len(some.train)
    assert np.bincount(some.test.labels).tolist() == [1, 4]
    assert np.bincount(data.test.labels).tolist() == [1 + 30, 4]  # Of 40 negative ones 10 are kept.


def test_reviews_are_read_in_the_order_of_their_files(monkeypatch):
    import tensorflow_datasets as tfds

    from keras_ldam.experiments.datasets import imdb

    class Source:
        def as_dataset(self, **settings):
            self.settings = settings
            return [(np.array([b"a", b"b"]), np.array([1, 0])), (np.array([b"c"]), np.array([1]))]

    monkeypatch.setattr(tfds, "as_numpy", lambda records: records)
    source = Source()
    texts, labels = imdb._read(source, "train")
    assert (list(texts), labels.tolist(), labels.dtype) == ([b"a", b"b", b"c"], [1, 0, 1], np.int32)
    # Which reviews a seed keeps depends on it.
    assert source.settings["shuffle_files"] is False
    assert source.settings["read_config"].interleave_cycle_length == 1
