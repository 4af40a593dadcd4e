"""Balanced draws: their frequencies, and that seed and epoch alone decide them."""

import concurrent.futures
import tracemalloc

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam.sampling import BalancedFiles, class_chances
from keras_ldam.sampling import files as sampling_files
from keras_ldam.sampling.sources import Arrays

COUNTS = np.array([890, 100, 10])
LABELS = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], COUNTS))
IDS = np.arange(1000)


class Stored(keras.utils.PyDataset):
    """The examples in batches of 60, as from files."""

    def __init__(self, labels=LABELS, **kwargs):
        super().__init__(**kwargs)
        self.y, self.reads = labels, 0

    def __len__(self):
        return 17

    def __getitem__(self, index):
        self.reads += 1
        some = slice(60 * index, 60 * (index + 1))
        return {"id": IDS[some]}, self.y[some]

    def on_epoch_end(self):
        raise AssertionError("would change the order of the examples")


def draws(batches):
    """The ids of an epoch, and how often each class came."""
    ids = np.concatenate([np.ravel(keras.tree.flatten(batches[i])[0]) for i in range(len(batches))])
    return ids, np.bincount(LABELS[ids], minlength=3)


def stream(labels=LABELS):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((IDS, labels))


def streamed(dataset):
    ids = np.concatenate([parts[0] for parts in dataset.batch(1000).as_numpy_iterator()])
    return ids, np.bincount(LABELS[ids], minlength=3)


def balanced(data, counts=None, **kwargs):
    return keras_ldam.balanced(data, counts, verbose=0, **kwargs)


def assert_binomial(drawn, chances):
    n = drawn.sum()
    deviations = np.abs(drawn - n * chances) / np.sqrt(n * chances * (1 - chances))
    assert (deviations < 4).all(), drawn


@pytest.mark.parametrize(
    "power, expected",
    [(0, [0.9, 0.1]), (0.5, [0.75, 0.25]), (1, [0.5, 0.5]), (2, [0.1, 0.9])],
)
def test_a_class_is_drawn_by_a_power_of_its_count(power, expected):
    np.testing.assert_allclose(class_chances([900, 100], power), expected)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_realized_frequencies_are_within_binomial_bounds(power):
    batches = balanced((IDS, LABELS), power=power)
    drawn = sum(batches.class_counts(epoch) for epoch in range(20))
    assert_binomial(drawn, class_chances(COUNTS, power))
    ids, in_batches = draws(batches)
    assert len(batches) == 32 and len(ids) == 1000
    assert in_batches.tolist() == batches.class_counts(0).tolist()


def test_power_0_is_every_example_once_shuffled():
    ids, _ = draws(balanced((IDS, LABELS), power=0))
    assert sorted(ids) == IDS.tolist() and ids.tolist() != IDS.tolist()


def test_power_may_change_with_the_epoch():
    batches = balanced((IDS, LABELS), power=lambda epoch: epoch / 9)
    assert batches.class_counts(0).tolist() == COUNTS.tolist()
    assert_binomial(batches.class_counts(9), np.full(3, 1 / 3))
    rarest = [batches.class_counts(epoch)[2] for epoch in (0, 3, 6, 9)]
    assert rarest == sorted(rarest)


@pytest.mark.parametrize("data", [(IDS, LABELS), Stored()], ids=["arrays", "PyDataset"])
def test_seed_and_epoch_decide_the_draws(data):
    order = balanced(data, seed=3).order(5).tolist()
    assert order == balanced(data, seed=3).order(5).tolist()
    assert order != balanced(data, seed=4).order(5).tolist()
    assert order != balanced(data, seed=3).order(6).tolist()


@pytest.mark.filterwarnings("ignore:The 17 batches of `data` are read")
@pytest.mark.parametrize("workers", [1, 4])
def test_threads_get_the_batches_that_one_gets(workers):
    alone = balanced((IDS, LABELS), batch_size=50), balanced(Stored(), buffer=200)
    several = balanced((IDS, LABELS), batch_size=50), balanced(Stored(workers=4), buffer=200)
    for one, many in zip(alone, several, strict=True):
        indices = np.random.default_rng(0).permutation(len(one)).tolist()
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for index, batch in zip(indices, pool.map(many.__getitem__, indices), strict=True):
                keras.tree.map_structure(np.testing.assert_array_equal, batch, one[index])


def test_keras_own_workers_are_not_used_for_they_keep_batches_of_an_earlier_epoch():
    assert balanced(Stored(workers=4)).workers == 1


def test_a_resumed_fit_sees_the_batches_of_its_epochs():
    class Recording(keras.Sequential):
        def train_step(self, *args):
            x, _ = args[-1]
            self.seen += np.ravel(keras.ops.convert_to_numpy(x)).astype(int).tolist()
            return super().train_step(*args)

    def seen(first):
        model = Recording([keras.layers.Dense(3)])
        model.seen = []
        model.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        batches = balanced((IDS[:, None], LABELS), batch_size=250)
        clock = keras_ldam.EpochClock(batches)
        model.fit(
            batches, epochs=3, initial_epoch=first, callbacks=[clock], shuffle=False, verbose=0
        )
        return model.seen

    whole = seen(0)
    assert len(whole) == 3000 and whole[2000:] != whole[1000:2000]
    assert seen(2) == whole[2000:]


def test_batches_without_a_clock_go_on_by_themselves():
    batches = balanced((IDS, LABELS))
    first = draws(batches)[0].tolist()
    batches.on_epoch_end()
    assert draws(batches)[0].tolist() != first
    assert draws(balanced((IDS, LABELS), initial_epoch=1))[0].tolist() == batches.order(1).tolist()


def test_one_hot_and_column_labels_are_drawn_like_numbers():
    expected = balanced((IDS, LABELS)).order(0).tolist()
    for labels in (np.eye(3)[LABELS], LABELS[:, None], LABELS.astype("float32"), LABELS.tolist()):
        assert balanced((IDS, labels)).order(0).tolist() == expected
    assert balanced((IDS, {"other": LABELS}), labels=LABELS).order(0).tolist() == expected


def test_inputs_and_weights_keep_their_form():
    batches = balanced(({"a": IDS, "b": np.stack([IDS, IDS], 1)}, LABELS, IDS / 2), batch_size=10)
    x, y, weights = batches[0]
    assert x["b"].shape == (10, 2)
    np.testing.assert_array_equal(x["a"], x["b"][:, 1])
    np.testing.assert_array_equal(weights, x["a"] / 2)
    np.testing.assert_array_equal(y, LABELS[x["a"]])


def test_weights_of_none_are_none():
    with_none, without = balanced((IDS, LABELS, None)), balanced((IDS, LABELS))
    assert len(with_none[0]) == 2
    np.testing.assert_array_equal(draws(with_none)[0], draws(without)[0])


# ----------------------------------------------------------------------------- PyDataset


def test_weights_come_in_every_batch_or_in_none():
    class Some(Stored):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            return (x, y, np.ones(len(y))) if index == 3 else (x, y, None)

    batches = balanced(Some(), batch_size=1000)
    with pytest.raises(ValueError, match="sample weights in every batch or in none"):
        batches[0]


def test_each_batch_of_a_dataset_is_read_once_an_epoch():
    stored = Stored()
    batches = balanced(stored, buffer=180)
    assert stored.reads == 17  # For the labels.
    ids, drawn = draws(batches)
    assert stored.reads == 2 * 17
    assert len(batches) == 17 and ids.tolist() == batches.order(0).tolist()
    assert drawn.sum() == 1000 and np.abs(drawn - 1000 / 3).max() < 30
    # Each example as often as its class asks for, rounded down or up.
    times, rates = np.bincount(ids, minlength=1000), (1000 / 3 / COUNTS)[LABELS]
    assert ((times == np.floor(rates)) | (times == np.ceil(rates))).all()


def test_reading_in_another_order_than_that_of_the_draws_is_told():
    class Small(Stored):
        def __len__(self):
            return 200

        def __getitem__(self, index):
            some = slice(5 * index, 5 * (index + 1))
            return IDS[some], LABELS[some]

    batches = balanced(Small(), buffer=40)
    draws(batches)
    with pytest.warns(UserWarning, match="The 200 batches of `data` are read more.*shuffle=False"):
        for index in np.random.default_rng(0).permutation(200):
            batches[index]


@pytest.mark.parametrize("data", [(IDS, LABELS), Stored()])
def test_power_0_is_every_example_once_whatever_counts_are_given(data):
    ids, _ = draws(balanced(data, [1000, 100, 13], power=0))
    assert sorted(ids.tolist()) == IDS.tolist()


def test_labels_that_are_given_are_not_read():
    stored = Stored()
    batches = balanced(stored, labels=LABELS)
    assert stored.reads == 2  # How long the first and the last are.
    assert batches.order(0).tolist() == balanced(Stored()).order(0).tolist()
    for number in (900, 999, 1001):
        sentence = f"{number} labels, 17 batches of 60, the last of 40"
        with pytest.raises(ValueError, match=sentence):
            balanced(Stored(), labels=np.resize(LABELS, number))


class Uneven(Stored):
    """The same in batches of some sizes."""

    def __init__(self, *sizes):
        super().__init__()
        self.ends = np.cumsum([0, *sizes])

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, index):
        some = slice(*self.ends[index : index + 2])
        return IDS[some], self.y[some]


def test_labels_that_are_given_are_those_of_the_examples_beside_them():
    batches = balanced(Uneven(300, 300, 400), labels=LABELS)
    for x, y in map(batches.__getitem__, range(len(batches))):
        np.testing.assert_array_equal(LABELS[x], y)
    with pytest.raises(ValueError, match=r"must have 300 examples\. Received: [24]00 in batch"):
        draws(balanced(Uneven(300, 200, 400, 100), labels=LABELS))


def test_weights_that_are_none_are_no_part_of_the_data():
    expected = balanced((IDS, LABELS))[0]
    for found in (balanced((IDS, LABELS, None))[0], balanced((IDS, None), labels=LABELS)[0]):
        np.testing.assert_array_equal(found[0], expected[0])
    with pytest.raises(ValueError, match="`data` must hold labels"):
        balanced((IDS, None))


def test_a_dataset_that_changes_its_batches_is_refused():
    stored = Stored()
    batches = balanced(stored)
    stored.y = LABELS[::-1]
    with pytest.raises(ValueError, match="must stay the same from epoch to epoch"):
        batches[0]


# ----------------------------------------------------------------------------- tf.data


def test_a_stream_repeats_each_example_as_its_class_asks():
    ids, drawn = streamed(balanced(stream()))
    assert drawn.sum() == 1000 and np.abs(drawn - 1000 / 3).max() < 30
    times, rates = np.bincount(ids, minlength=1000), (1000 / 3 / COUNTS)[LABELS]
    assert ((times == np.floor(rates)) | (times == np.ceil(rates))).all()
    assert (np.diff(ids) != 0).mean() > 0.9  # Repetitions are apart.


def test_a_stream_resumes_at_an_epoch_whatever_the_global_seed():
    keras.utils.set_random_seed(11)
    dataset = balanced(stream(), COUNTS, seed=7)
    first, second = streamed(dataset)[0].tolist(), streamed(dataset)[0].tolist()
    assert first != second
    keras.utils.set_random_seed(12)
    resumed = balanced(stream(), COUNTS, seed=7, initial_epoch=1)
    assert streamed(resumed)[0].tolist() == second


def test_counts_that_are_not_those_of_a_stream_get_a_sentence():
    import tensorflow as tf

    sentence = "`counts` must be those of the examples in `data`, class by class. Received: "
    with pytest.raises(ValueError, match=sentence + "1090 examples in place of 1000"):
        balanced(stream(), [890, 100, 100])
    unknown = stream().filter(lambda x, y: True)
    for data, counts in (
        (unknown, [890, 100, 100]),
        (unknown, [890, 10, 10]),
        (stream(), [800, 100, 100]),
        (stream(), [980, 10, 10]),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="those of the examples in `data`"):
            streamed(balanced(data, counts))


def test_labels_of_a_stream_may_be_one_hot_or_come_from_a_function():
    both = stream({"class": LABELS, "hot": np.eye(3, dtype="float32")[LABELS]})
    ids = [
        streamed(balanced(both, labels=label_of))[0].tolist()
        for label_of in (lambda x, y: y["class"], lambda x, y: y["hot"])
    ]
    assert ids[0] == ids[1]


def test_smoothed_rows_of_a_stream_are_refused_where_they_are_read():
    tf = pytest.importorskip("tensorflow")
    rows = np.tile([[0.9, 0.1], [0.1, 0.9]], (500, 1)).astype("float32")
    drawn = balanced(stream(rows), [500, 500])
    with pytest.raises(tf.errors.InvalidArgumentError, match="must hold a single 1 in each row"):
        next(iter(drawn))
    ones = np.ones((1000, 257), np.uint8)  # Whose sum in their own type is 1.
    with pytest.raises(tf.errors.InvalidArgumentError, match="must hold a single 1 in each row"):
        next(iter(balanced(stream(ones), [744] + [1] * 256)))


def test_machines_share_out_one_stream_of_draws():
    import tensorflow as tf

    machines = [balanced(stream(), COUNTS) for _ in range(2)]
    policy = machines[0].options().experimental_distribute.auto_shard_policy
    assert policy == tf.data.experimental.AutoShardPolicy.DATA
    # By that policy each keeps every second one of draws that are the same on both.
    assert streamed(machines[0])[0].tolist() == streamed(machines[1])[0].tolist()


# ----------------------------------------------------------------------------- what is said


def test_the_realized_frequencies_are_told(capsys):
    batches = keras_ldam.balanced((IDS, LABELS))
    told = f"of [890 100  10] examples per class, epoch 1 draws {batches.class_counts(0)}."
    assert told in capsys.readouterr().out
    keras_ldam.balanced(stream(), COUNTS)
    assert "an epoch draws about [333 333 333]." in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"power": 2.5}, r"`power` must be a number in \[0, 2\]. Received: 2.5"),
        ({"power": -0.1}, "`power` must be a number"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        ({"data": IDS}, "`data` must hold labels"),
        ({"data": (IDS, {"a": LABELS})}, "labels in a dict"),
        ({"data": (IDS[:5], LABELS)}, "as many examples as labels"),
        (
            {"data": (IDS, LABELS + (LABELS > 0))},
            "each of the 4 classes. Received: none of class 1",
        ),
        ({"counts": [890, 100, 10, 5]}, "each of the 4 classes. Received: none of class 3"),
        ({"counts": [890, 0, 10]}, "Received: 0 for class 1"),
        ({"counts": [890, 100]}, "there are 2 classes. Received: 2"),
        ({"data": (IDS, LABELS - 1)}, "Received: -1"),
        ({"data": (IDS, np.full(1000, "cat"))}, "Labels must be whole numbers"),
        ({"data": (IDS, np.where(IDS == 3, np.nan, 1.0))}, "Received: nan for 1 of 1000 examples"),
        ({"data": (IDS, np.zeros((1000, 3)))}, r"single 1 in each row.*Received: \[0. 0. 0.\]"),
        (
            {"data": (IDS, np.tile([0.9, 0.1], (1000, 1)))},
            r"smooth and mix .*Received: \[0.9 0.1\]",
        ),
        ({"data": (IDS, np.ones((1000, 2), int))}, r"single 1 in each row.*Received: \[1 1\]"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        balanced(**{"data": (IDS, LABELS), **arguments})


@pytest.mark.parametrize(
    "change, arguments, sentence",
    [
        (lambda data: data.batch(10), {}, r"call `unbatch\(\)` first"),
        (lambda data: data.repeat(), {}, "`data` must end; take a part"),
        (lambda data: data.take(0), {}, "no labels to count"),
        (lambda data: data.map(lambda x, y: x), {}, "`data` must hold labels"),
        (lambda data: data, {"batch_size": 5}, "drawn by single examples"),
        (lambda data: data, {"labels": LABELS}, "must be a function"),
        (lambda data: data.filter(lambda x, y: y != 1), {}, "none of class 1"),
    ],
)
def test_bad_streams_get_one_sentence(change, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        balanced(change(stream()), **arguments)


def test_tiny_weights_are_not_taken_for_equal_ones():
    source = Arrays((np.arange(100.0), np.repeat([0, 1], [50, 50])), None)
    order = source.order(np.array([1e-9, 9e-9]), seed=0, epoch=0)
    assert 80 <= np.sum(order >= 50) <= 99


# ----------------------------------------------------------------------------- many files


def files(sizes=(300, 0, 120, 90)):
    """Labels of files, and a reader of their examples: the number of each over all files."""
    generator = np.random.default_rng(3)
    labels = [np.minimum(generator.geometric(0.4, n) - 1, 5).astype("uint16") for n in sizes]
    starts = np.cumsum([0, *sizes])
    asked = []

    def read(file, rows):
        assert np.all(np.diff(rows) > 0) and rows[-1] < sizes[file]
        asked.append(len(rows))
        return {"x": starts[file] + rows, "twice": 2 * (starts[file] + rows)}

    return labels, read, asked


@pytest.mark.parametrize(("part", "power"), [(7, 0.5), (2**16, 2.0)])
def test_draws_from_files_have_their_labels_and_come_as_often_as_they_should(
    part, power, monkeypatch
):
    monkeypatch.setattr(sampling_files, "_PART", part)
    labels, read, _ = files()
    batches = BalancedFiles(labels, read, power=power, batch_size=51, seed=4)
    every, held = np.concatenate(labels), np.bincount(np.concatenate(labels))
    assert len(batches) == 10 and batches.counts.tolist() == held.tolist()
    numbers = []
    for epoch in range(40):
        batches.epoch = epoch
        for x, y in batches:
            np.testing.assert_array_equal(every[x["x"]], y)
            np.testing.assert_array_equal(2 * x["x"], x["twice"])
            numbers.append(x["x"])
    numbers = np.concatenate(numbers)
    expected = len(numbers) * class_chances(held, power)
    assert np.all(np.abs(np.bincount(every[numbers]) - expected) < 4 * np.sqrt(expected))
    # Of a class all examples, equally often.
    rare = np.bincount(numbers, minlength=len(every))[every == held.argmin()]
    assert rare.min() > 0 and np.abs(rare - rare.mean()).max() < 5 * np.sqrt(rare.mean())


def test_two_workers_draw_what_one_draws_and_read_their_part_alone():
    labels, read, asked = files()
    one = BalancedFiles(labels, read, batch_size=32, seed=1)
    two = [BalancedFiles(labels, read, batch_size=32, seed=1, share=(n, 2)) for n in range(2)]
    for batches in (one, *two):
        batches.epoch = 3
    for index in (9, 2):
        x, y = one[index]
        asked.clear()
        parts = [batches[index] for batches in two]
        assert sum(asked) <= 32
        np.testing.assert_array_equal(np.concatenate([part[0]["x"] for part in parts]), x["x"])
        np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), y)
    other = BalancedFiles(labels, read, batch_size=32, seed=2)
    other.epoch = 3
    assert not np.array_equal(other[2][0]["x"], x["x"])


def test_files_take_less_than_16_bytes_an_example():
    size = 2**20
    labels = [np.arange(size // 2, dtype="int32") // (8 * (1 + file)) for file in range(2)]
    tracemalloc.start()
    try:
        BalancedFiles(labels, lambda *_: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * size


def test_files_that_cannot_be_drawn_from_get_a_sentence():
    labels, read, _ = files()
    for given, how, message in (
        (
            [np.array([0, 2, 0])],
            {},
            "an example of each of the 3 classes. Received: none of class 1",
        ),
        ([np.array([0, -1])], {}, "whole numbers of at least 0.*-1 among them"),
        ([np.array([0.0])], {}, "whole numbers of at least 0.*float64"),
        ([], {}, "`labels` must hold examples. Received: none"),
        ([np.array([0, 10**15])], {}, "class 1000000000000000 among 2 examples"),
        (labels[0], {}, "a list with an array of whole numbers for each file"),
        (5, {}, "a list with an array .* Received: 5"),
        (labels, {"read": labels}, "`read` must be a function"),
        (labels, {"share": 2}, "Received: share=2"),
        (labels, {"share": (0, 0.5)}, r"Received: share=\(0, 0.5\)"),
        (labels, {"share": (2, 2)}, r"Received: share=\(2, 2\)"),
        (labels, {"share": (0, 3)}, "a divisor of `batch_size`"),
        (labels, {"counts": [1, 2]}, "one entry for each of the 6 classes.*Received: 2"),
        (labels, {"power": 2.5}, r"`power` must be a number in \[0, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            BalancedFiles(given, **{"read": read, **how})


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda file, rows: np.zeros(300), r"an entry for each row.* Received: shape \(300,\)"),
        (lambda file, rows: None, r"an entry for each row.* Received: shape \(\)"),
        (lambda file, rows: {}, "an entry for each row.* Received: none"),
        (lambda file, rows: np.zeros((len(rows), 1 + file)), "of one structure, and of one shape"),
        (lambda file, rows: {file: rows}, "of one structure, and of one shape"),
    ],
)
def test_what_is_read_must_belong_to_its_rows(read, message):
    with pytest.raises(ValueError, match=message):
        BalancedFiles(files()[0], read)[0]


def test_an_epoch_of_fit_is_one_of_the_batches():
    batches = balanced((IDS[:, None], LABELS), batch_size=100)
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", keras_ldam.CrossEntropy(), run_eagerly=True)
    how = {"callbacks": [keras_ldam.EpochClock(batches)], "verbose": 0}
    with pytest.warns(UserWarning, match="takes 4 of the 10 batches of an epoch"):
        model.fit(batches, steps_per_epoch=4, **how)
    keras_ldam.EpochClock(batches).on_train_begin()  # In a loop of one's own, without `params`.


def test_several_workers_under_a_strategy_are_refused():
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("strategies are TensorFlow's")
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        model = keras.Sequential([keras.layers.Dense(3)])
    model.compile("sgd", keras_ldam.CrossEntropy())
    rows = IDS[:, None].astype("float32")
    batches = BalancedFiles([LABELS], lambda _, some: rows[some], batch_size=100, workers=2)
    with pytest.raises(ValueError, match=r"`workers` must be 1 .* Received: workers=2"):
        model.fit(batches, callbacks=[keras_ldam.EpochClock(batches)], verbose=0)


def test_a_clock_is_for_batches_with_an_epoch():
    with pytest.raises(ValueError, match=r"`batches` must be what .* Received: tuple"):
        keras_ldam.EpochClock((LABELS, LABELS))
