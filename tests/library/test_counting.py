"""Counts of labels in every form in which labels come. Runs on every backend."""

import keras
import numpy as np
import pytest

import keras_ldam
from keras_ldam import counting

LABELS = np.array([0, 2, 1, 0, 0, 2, 0])
COUNTS = [4, 1, 2]
ANSWERS = np.array([[1, 0, -1], [1, 1, 0], [0, 0, 0], [1, -1, 0]])
SIDES = [[1, 3], [2, 1], [3, 0]]


class Batches(keras.utils.PyDataset):
    def __init__(self, labels, batches=3):
        super().__init__()
        self.labels, self.batches = labels, batches

    @property
    def num_batches(self):
        return self.batches

    def __getitem__(self, i):
        part = self.labels[i * 3 : i * 3 + 3]
        return np.zeros((len(part), 2)), part


def series(labels):
    return pytest.importorskip("pandas").Series(labels, index=np.arange(len(labels))[::-1])


def loader(labels):
    data = pytest.importorskip("torch.utils.data")
    torch = pytest.importorskip("torch")
    x = torch.zeros(len(labels), 2)
    return data.DataLoader(data.TensorDataset(x, torch.tensor(labels)), batch_size=3)


def tf_data(labels):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((np.zeros((len(labels), 2)), labels))


def test_a_label_to_ignore_that_a_type_cannot_hold_is_no_other_label():
    labels = np.array([0, 44, 44, 255], "uint8")  # 300 - 256 is 44, and -1 + 256 is 255.
    for ignored in (300, -1, 2**40):
        found = keras_ldam.count(labels, 256, ignore_class=ignored)
        assert found[[0, 44, 255]].tolist() == [1, 2, 1]
    guesses = np.array([0, 0, 44, 255])
    scores = keras.ops.one_hot(guesses, 256)
    for ignored, y_pred, error in (
        (None, scores, 1 / 4), (300, scores, 1 / 4), (300, guesses[:, None], 1 / 4), (44, scores, 0)
    ):  # fmt: skip
        metric = keras_ldam.ClassErrors([5] * 256, ignore_class=ignored)
        metric.update_state(keras.ops.convert_to_tensor(labels), y_pred)
        assert float(metric.result()["error"]) == error


@pytest.mark.parametrize(
    "given",
    [
        lambda y: y,
        list,
        lambda y: y.astype("uint8")[:, None],
        lambda y: y.astype("float32"),
        lambda y: keras.ops.convert_to_tensor(y),
        series,
        lambda y: np.eye(3)[y],
        lambda y: np.eye(3, dtype=bool)[y].tolist(),
        lambda y: list(map(tuple, np.eye(3, dtype=int)[y].tolist())),
        lambda y: tf_data(y).batch(2),
        lambda y: tf_data(y).map(lambda x, y: y),
        lambda y: tf_data(np.eye(3)[y]).batch(4),
        lambda y: tf_data(y).batch(2).map(lambda x, y: (x, y, x)),
        Batches,
        loader,
        lambda y: ((np.zeros((len(part), 3)), part) for part in (y[:3], y[3:3], y[3:])),
        lambda y: [(np.zeros((len(part), 3)), part) for part in (y[:3], y[3:])],
        lambda y: [([0] * len(part), part.tolist()) for part in (y[:3], y[3:])],
        lambda y: iter([y[:3], y[3:]]),
        lambda y: (np.arange(len(y)), y),
        lambda y: (np.arange(len(y)), y.tolist(), np.ones(len(y))),
        lambda y: iter([[np.zeros((len(part), 2)), part] for part in (y[:3], y[3:])]),
    ],
)
def test_labels_are_counted_wherever_they_come_from(given):
    found = keras_ldam.count(given(LABELS))
    assert found.dtype == np.int64 and found.tolist() == COUNTS


@pytest.mark.parametrize(
    "given",
    [lambda y: y, lambda y: y.astype("float32").tolist(), lambda y: Batches(y, 2), loader],
)
def test_answers_for_several_labels_are_counted_by_label_and_side(given):
    found = keras_ldam.count(given(ANSWERS), multi_label=True, ignore_class=-1)
    assert found.tolist() == SIDES


@pytest.mark.parametrize("kind", ["uint8", "int64", "float32"])
def test_pixels_of_masks_and_volumes_are_counted(kind, rng):
    masks = rng.integers(0, 4, size=(5, 6, 7, 8))
    masks[masks == 3] = 255
    expected = np.bincount(masks.ravel(), minlength=256)[:3].tolist()
    for given in (masks, masks[..., None], iter(masks)):
        batches = given.astype(kind) if isinstance(given, np.ndarray) else given
        assert keras_ldam.count(batches, 3, ignore_class=255).tolist() == expected


def test_a_class_that_does_not_occur_is_counted_where_the_number_is_given():
    assert keras_ldam.count([0, 1, 0], 4).tolist() == [2, 1, 0, 0]
    assert keras_ldam.count(np.zeros((1, 3)), 3).tolist() == [0, 0, 0]  # A row without a label.


@pytest.mark.parametrize("kind", ["float16", "uint8", "bool"])
def test_counts_of_one_hot_rows_are_exact_in_every_type(kind):
    rows = np.repeat(np.eye(2, dtype=kind), [9000, 3001], axis=0)
    assert keras_ldam.count(rows).tolist() == [9000, 3001]


def test_counts_are_exact_in_parts(monkeypatch, rng):
    monkeypatch.setattr(counting, "_PART", 8)
    labels = rng.integers(0, 3, size=(11, 5))
    assert keras_ldam.count(labels, 3).tolist() == np.bincount(labels.ravel()).tolist()
    one_hot = np.eye(3)[labels[:, 0]]
    assert keras_ldam.count(one_hot).tolist() == np.bincount(labels[:, 0], minlength=3).tolist()


def test_a_pass_that_takes_long_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(counting, "_PATIENCE", -1.0)
    assert keras_ldam.count(Batches(LABELS)).tolist() == COUNTS
    assert "3/3" in capsys.readouterr().out
    keras_ldam.count(Batches(LABELS), verbose=0)
    assert capsys.readouterr().out == ""


def test_what_is_counted_makes_margins_and_weights():
    loss = keras_ldam.LDAM(keras_ldam.count(LABELS))
    assert loss.counts.tolist() == COUNTS and loss.margins.argmax() == 1


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        ([0, 0.5], {}, r"whole numbers\. Received: 0.5; count labels before they are smoothed"),
        ([0, np.nan], {}, r"whole numbers\. Received: nan"),
        ([0, np.inf], {"num_classes": 3}, r"whole numbers in 0 … 2.*Received: inf"),
        ([0, -1], {}, r"at least 0\. Received: -1; `ignore_class=-1` leaves it out"),
        ([0, 3], {"num_classes": 3}, r"in 0 … 2, since there are 3 classes\. Received: 3"),
        ([7, 10**12], {}, r"Received: 1000000000000, which looks like an ID"),
        (["cat", "dog"], {}, r"whole numbers in an array\. Received: \['cat', 'dog'\]; number"),
        ([[0, 1], [0]], {}, "rows of equal length"),
        ([None, 1], {}, "Received: nan"),
        ({"a": [0, 1]}, {}, "of several outputs pass the labels of one. Received: dict"),
        ("labels.csv", {}, "must be an array or a dataset. Received: str|of one. Received: str"),
        (3, {}, "must be an array or a dataset. Received: int"),
        ([], {}, "no labels to count"),
        ([0, 1], {"num_classes": 0}, "`num_classes` must be a whole number of at least 1"),
        ([0, 1], {"num_classes": "2"}, "`num_classes` must be a whole number .* Received: '2'"),
        ([0, 1], {"num_classes": np.nan}, "`num_classes` must be a whole number of at least 1"),
        ([[0, 1, 1], [1, 0, 0]], {}, "may be one-hot, answers for several labels, or a mask"),
        ([[0, 1, 1], [1, 0, 0]], {"num_classes": 3}, "pass `multi_label=True` for several"),
        ([[0.7, 0.3]], {}, r"Received: 0.7; count labels before they are smoothed"),
        ([0, 1], {"multi_label": True}, r"shape \(…, num_labels\). Received: shape \(2,\)"),
        ([[0, 2]], {"multi_label": True}, "Answers must be 0 or 1. Received: 2"),
        ([[0, -1]], {"multi_label": True}, "Received: -1; `ignore_class=-1` leaves it out"),
        ([[0, np.nan]], {"multi_label": True}, "Received: nan; write -1 for unknown answers"),
        ([[0, 1]], {"multi_label": True, "num_classes": 3}, r"shape \(…, 3\)"),
        ([(np.zeros((2, 3)),)], {}, "alone. Received: a tuple of 1"),
        ([(np.zeros((2, 3)), {"a": [0]})], {}, r"counted one by one: .*labels by name \(a\)"),
        ([(np.zeros(5), np.eye(3)[0])], {}, "must be batched alike"),
        (iter([np.eye(3), np.ones((2, 3))]), {}, "One-hot rows must hold a single 1, or zeros"),
        (Batches(LABELS, batches=None), {}, "must end"),
    ],
)
def test_what_cannot_be_counted_gets_a_sentence(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.count(labels, **arguments)


def test_an_endless_dataset_gets_a_sentence():
    with pytest.raises(ValueError, match="must end; take a part of it"):
        keras_ldam.count(tf_data(LABELS).repeat())
