# ruff: noqa: E402
"""LDAM-DRW against cross-entropy in networks that it was not made for.

    python benchmarks/networks.py [--networks NAME …] [--rows ROW …] [--seeds 0 1 2]
    python benchmarks/networks.py --cause

What somebody types who has a network of his own: `Dense(K)` becomes `CosineDense(K)`, the loss
`LDAM(counts)`, and `DRW` comes on after three quarters of the epochs. Optimizer, learning rate,
batch size and epochs are the network's own and the same for all rows; nothing is tuned for one row.
ResNet-32 alone has a warm-up and a drop of the learning rate (×0.1, when DRW comes on). The rows:

- CE and CE-DRW: a plain `Dense` head and cross-entropy, without and with deferred weights;
- LDAM-DRW, official: the head without bias, whole margins from the first step, scale 30;
- LDAM-DRW: the defaults.

The data are real, made long-tailed, and the test sets have as many examples of each class: IMDB
and CIFAR from tensorflow-datasets (prepared beforehand; nothing is downloaded), digits and breast
cancer from scikit-learn. Networks and data are cut so that a run takes 3 to 50 seconds on one core
of an AMD EPYC (AVX-512), which leaves accuracies far below what the networks can do; the rows of
one network can be compared, and nothing else. Optimizers are Adam, AdamW and SGD with momentum,
batches 16 to 256 (16 images of 1,024 pixels in the U-Net), classes 2, 5, 10 and 100; a network has
one of each.

MobileNet is there twice: with 24 epochs in place of 8 only CE-DRW and LDAM-DRW were run, with the
seeds 0 to 9, to see whether the difference between the two is one of training time.

Every run is written to `networks.json` as soon as it is done, and what is there is not run again.
It has the balanced accuracy and the AUC (one against the rest, mean over classes) of the last epoch
on the test set, the first epoch whose balanced accuracy is 5 points above chance (`leaves`, none if
it never is), processor seconds, and under `facts` what a guard could have seen on 128 training
examples after 50 and 200 steps and at the end, in training mode (with dropout) and in test mode:

- `one_class`: share of the class predicted most;
- `spread`: standard deviation of a class's scores over the examples, mean over classes;
- `resultant`: length of the mean of the features, each scaled to length 1: 1 where all agree;
- `zero`: share of features that are zero; `norm` and `norm_1%`: their median and smallest length;
- `gap_90%`: how far the label's score is ahead of the best other one, 90th percentile.

`warnings` are those of the library's guards at the end; runs of before there were guards have none.

With `--held_out` runs are judged by examples of the training split that the training set leaves
out, from which defaults can be chosen; breast cancer has too few benign ones left for it.

`networks_tried.json` has what was tried on the way to the defaults, failures included; it is not
made by this program. `--cause` writes `networks_cause.json`: what happens step by step in the
first 200 steps.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import keras
import numpy as np
from keras import layers

import keras_ldam
from keras_ldam import evaluation, hardware

CACHE = Path(os.environ.get("NETWORKS_CACHE", Path.home() / ".cache" / "keras_ldam_networks"))
RESULTS, CAUSE = HERE / "networks.json", HERE / "networks_cause.json"
LAST = 0.75
"""Share of the epochs after which the class weights come on."""

# ------------------------------------------------------------------------------------- data


HELD_OUT = False
"""Whether runs are judged by examples that the training set leaves out, to choose by."""


def cached(make):
    """Keeps what `make` returns, a dict of arrays, in a file of its name."""

    @functools.cache
    @functools.wraps(make)
    def read():
        path = CACHE / f"{make.__name__}{'_held_out' if HELD_OUT else ''}.npz"
        if not path.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, **make())
        with np.load(path) as file:
            return tuple(file[key] for key in ("x", "y", "test_x", "test_y"))

    return read


def tail(x, y, counts, seed=0, after=None):
    """The first counts[j] examples of each class j in a random order, shuffled.

    Args:
        after: So many of each class are left out before.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    x, y = x[order], y[order]
    after = [0] * len(counts) if after is None else after
    kept = np.concatenate(
        [
            np.flatnonzero(y == j)[a : a + n]
            for j, (a, n) in enumerate(zip(after, counts, strict=True))
        ]
    )
    kept = np.random.default_rng(seed + 1).permutation(kept)
    return x[kept], y[kept]


def judges(train, test, counts, each):
    """So many examples of each class to judge by, of the test set or left out of training."""
    if HELD_OUT:
        return tail(*train, [each] * len(counts), after=counts)
    return tail(*test, [each] * len(counts), 2)


def words_of(text):
    """The words of a review."""
    return re.findall(r"[a-z']+", text.decode().lower().replace("<br />", " "))


def _reviews(words, last):
    import tensorflow_datasets as tfds

    splits = {}
    for split in ("train", "test"):
        data = tfds.load("imdb_reviews", split=split, download=False, batch_size=-1)
        data = tfds.as_numpy(data)
        splits[split] = np.array(data["text"], dtype=object), np.array(data["label"])
    texts, y = tail(*splits["train"], (632, 6000))
    test_texts, test_y = judges(splits["train"], splits["test"], (632, 6000), 1500)
    texts, test_texts = [[words_of(text) for text in some] for some in (texts, test_texts)]
    common = collections.Counter(word for text in texts for word in text).most_common(9998)
    number = {word: i + 2 for i, (word, _) in enumerate(common)}

    def encode(texts):
        encoded = np.zeros((len(texts), words), "int32")
        for row, text in zip(encoded, texts, strict=True):
            text = text[-words:] if last else text[:words]
            row[: len(text)] = [number.get(word, 1) for word in text]
        return encoded

    return {"x": encode(texts), "y": y, "test_x": encode(test_texts), "test_y": test_y}


@cached
def reviews():
    """IMDB: 632 negative, 6,000 positive reviews; their first 200 words of the 10,000 commonest."""
    return _reviews(200, last=False)


@cached
def short_reviews():
    """The same reviews, their last 48 words."""
    return _reviews(48, last=True)


def _cifar(name, counts, each):
    import tensorflow_datasets as tfds

    train, test = (
        (part["image"], part["label"])
        for part in tfds.as_numpy(
            tfds.load(name, split=["train", "test"], download=False, batch_size=-1)
        )
    )
    x, y = tail(*train, counts)
    test_x, test_y = judges(train, test, counts, each)
    x, test_x = (
        x.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4)).astype("float32") / 127.5 - 1
        for x in (x, test_x)
    )
    return {"x": x, "y": y, "test_x": test_x, "test_y": test_y}


@cached
def cifar10():
    """CIFAR-10 at 16×16 pixels, 600 of the first class to 12 of the last."""
    return _cifar("cifar10", keras_ldam.long_tailed_counts(10, 600, 50), 200)


@cached
def cifar100():
    """CIFAR-100 at 16×16 pixels, 150 of the first class to 15 of the last."""
    return _cifar("cifar100", keras_ldam.long_tailed_counts(100, 150, 10), 20)


@cached
def digits():
    """scikit-learn's digits as a table of 64 columns, 120 of the first class to 6 of the last."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], y[order]
    counts = keras_ldam.long_tailed_counts(10, 120, 20)
    train_x, train_y = tail(x[:1300], y[:1300], counts)
    test_x, test_y = x[1300:], y[1300:]
    if HELD_OUT:
        test_x, test_y = tail(x[:1300], y[:1300], [100] * 10, after=counts)
    return {"x": train_x, "y": train_y, "test_x": test_x, "test_y": test_y}


@cached
def cancer():
    """scikit-learn's breast cancer, standardised: 200 benign, 16 malignant to learn from."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = x[order], 1 - y[order]
    train_x, train_y = tail(x[:330], y[:330], (200, 16))
    mean, std = train_x.mean(0), train_x.std(0)
    train_x, test_x = (((x - mean) / std).astype("float32") for x in (train_x, x[330:]))
    return {"x": train_x, "y": train_y, "test_x": test_x, "test_y": y[330:]}


@cached
def canvases():
    """Digits written on CIFAR-10 images; each pixel is background or a stroke of 0, 1, 2 or 3.

    Three digits of 8×8 pixels on an image of 32×32; 3 is 27 times as rare as 0 in training and
    as frequent in the test set.
    """
    import tensorflow_datasets as tfds
    from sklearn.datasets import load_digits

    images = tfds.load("cifar10", split="train[:1400]", download=False, batch_size=-1)
    images = tfds.as_numpy(images)["image"].astype("float32") / 255
    strokes, names = load_digits(return_X_y=True)
    strokes = (strokes / 16).reshape(-1, 8, 8).astype("float32")

    def draw(images, pool, shares, rng):
        x, y = images.copy(), np.zeros(images.shape[:3], "int32")
        for image, target in zip(x, y, strict=True):
            corners = [(r, c) for r in (1, 12, 22) for c in (1, 12, 22)]
            for place in rng.permutation(len(corners))[:3]:
                digit = rng.choice(4, p=shares)
                stroke = strokes[rng.choice(pool[digit])]
                row, column = np.array(corners[place]) + rng.integers(0, 2, 2)
                rows, columns = slice(row, row + 8), slice(column, column + 8)
                cover = stroke[..., None]
                ink = rng.uniform(0, 1, 3).astype("float32")
                image[rows, columns] = image[rows, columns] * (1 - cover) + ink * cover
                target[rows, columns] = np.where(stroke > 0.4, digit + 1, 0)
        return x * 2 - 1, y

    rng = np.random.default_rng(0)
    pools = [rng.permutation(np.flatnonzero(names == j)) for j in range(4)]
    shares = 3.0 ** -np.arange(4)
    x, y = draw(images[:500], [pool[:120] for pool in pools], shares / shares.sum(), rng)
    if HELD_OUT:  # Other images, and the digits of training.
        images, pools = images[500:700], [pool[:120] for pool in pools]
    else:
        images, pools = images[1000:1200], [pool[120:] for pool in pools]
    test_x, test_y = draw(images, pools, np.full(4, 0.25), rng)
    return {"x": x, "y": y, "test_x": test_x, "test_y": test_y}


# --------------------------------------------------------------------------------- networks


def text_cnn(head):
    words = keras.Input((200,), dtype="int32")
    x = layers.Embedding(10_000, 64)(words)
    x = layers.Conv1D(64, 7, strides=3, activation="relu")(x)
    x = layers.Conv1D(64, 7, strides=3, activation="relu")(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(64, activation="relu")(x)
    return keras.Model(words, head(layers.Dropout(0.5)(x)))


def mean_embedding(head):
    words = keras.Input((200,), dtype="int32")
    x = layers.Embedding(10_000, 32, mask_zero=True)(words)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(words, head(layers.Dropout(0.2)(x)))


def bilstm(head):
    words = keras.Input((48,), dtype="int32")
    x = layers.Embedding(10_000, 32)(words)
    x = layers.Bidirectional(layers.LSTM(24))(x)
    return keras.Model(words, head(layers.Dropout(0.5)(x)))


class Positions(layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="uniform", name="positions")

    def call(self, inputs):
        return inputs + self.table


def transformer(head):
    words = keras.Input((48,), dtype="int32")
    x = Positions()(layers.Embedding(10_000, 32)(words))
    attended = layers.MultiHeadAttention(2, 16)(x, x)
    x = layers.LayerNormalization()(x + layers.Dropout(0.1)(attended))
    wide = layers.Dense(32)(layers.Dense(32, activation="relu")(x))
    x = layers.LayerNormalization()(x + layers.Dropout(0.1)(wide))
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(20, activation="relu")(layers.Dropout(0.1)(x))
    return keras.Model(words, head(layers.Dropout(0.1)(x)))


def table_mlp(head, columns, width, dropout):
    x = inputs = keras.Input((columns,))
    for _ in range(2):
        x = layers.Dense(width, activation="relu")(x)
        x = layers.Dropout(dropout)(x)
    return keras.Model(inputs, head(x))


def normalised_mlp(head, columns=64, width=128):
    x = inputs = keras.Input((columns,))
    for _ in range(2):
        x = layers.Dense(width, use_bias=False)(x)
        x = layers.Dropout(0.3)(layers.ReLU()(layers.BatchNormalization()(x)))
    return keras.Model(inputs, head(x))


def resnet32(head):
    def convolve(x, filters, strides=1):
        x = layers.Conv2D(
            filters, 3, strides, "same", use_bias=False, kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(1e-4),
        )(x)  # fmt: skip
        return keras_ldam.FusedBatchNormalization(momentum=0.9)(x)

    images = keras.Input((16, 16, 3))
    x = layers.ReLU()(convolve(images, 16))
    for filters in (16, 32, 64):
        for block in range(5):
            strides = 2 if filters > 16 and block == 0 else 1
            y = convolve(layers.ReLU()(convolve(x, filters, strides)), filters)
            if strides == 2:
                x = layers.AveragePooling2D(1, 2)(x)
                x = layers.Concatenate()([x, layers.Rescaling(0.0)(x)])
            x = layers.ReLU()(x + y)
    return keras.Model(images, head(layers.GlobalAveragePooling2D()(x)))


def mobilenet(head):
    def normalise(x):
        return layers.ReLU(6.0)(keras_ldam.FusedBatchNormalization(momentum=0.9)(x))

    images = keras.Input((16, 16, 3))
    x = normalise(layers.Conv2D(16, 3, padding="same", use_bias=False)(images))
    for filters, strides in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        x = normalise(layers.DepthwiseConv2D(3, strides, "same", use_bias=False)(x))
        x = normalise(layers.Conv2D(filters, 1, use_bias=False)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, head(layers.Dropout(0.2)(x)))


def plain_cnn(head):
    x = images = keras.Input((16, 16, 3))
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    return keras.Model(images, head(layers.Dropout(0.5)(x)))


def unet(head):
    def twice(x, filters):
        for _ in range(2):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        return x

    images = keras.Input((32, 32, 3))
    first = twice(images, 12)
    second = twice(layers.MaxPooling2D()(first), 24)
    x = twice(layers.MaxPooling2D()(second), 32)
    x = twice(layers.Concatenate()([layers.UpSampling2D()(x), second]), 24)
    x = twice(layers.Concatenate()([layers.UpSampling2D()(x), first]), 12)
    return keras.Model(images, head(x))


adam = keras.optimizers.Adam
adamw = keras.optimizers.AdamW
momentum = functools.partial(keras.optimizers.SGD, momentum=0.9)

Network = collections.namedtuple("Network", "data build optimizer batch epochs")
NETWORKS = {
    "text CNN": Network(reviews, text_cnn, lambda: adam(1e-3), 32, 4),
    "text CNN, batch 256": Network(reviews, text_cnn, lambda: adam(1e-3), 256, 8),
    "mean embedding": Network(reviews, mean_embedding, lambda: adam(1e-3), 32, 8),
    "biLSTM": Network(short_reviews, bilstm, lambda: adam(1e-3), 64, 5),
    "transformer": Network(short_reviews, transformer, lambda: adamw(1e-3), 32, 4),
    "MLP, cancer": Network(
        cancer, lambda h: table_mlp(h, 30, 32, 0.2), lambda: momentum(1e-2), 32, 40
    ),
    "MLP, digits": Network(
        digits, lambda h: table_mlp(h, 64, 128, 0.5), lambda: adam(1e-3), 32, 40
    ),
    "MLP with batch norm, digits": Network(digits, normalised_mlp, lambda: adamw(1e-3), 32, 40),
    "plain CNN": Network(cifar10, plain_cnn, lambda: adam(1e-3), 32, 12),
    "ResNet-32": Network(cifar10, resnet32, lambda: momentum(0.1), 64, 12),
    "MobileNet, 100 classes": Network(cifar100, mobilenet, lambda: adamw(2e-3), 64, 8),
    "MobileNet, 100 classes, 24 epochs": Network(cifar100, mobilenet, lambda: adamw(2e-3), 64, 24),
    "U-Net": Network(canvases, unet, lambda: adam(1e-3), 16, 8),
}


# ------------------------------------------------------------------------------------- rows

Row = collections.namedtuple("Row", "head loss deferred")
ROWS = {
    "CE": Row(layers.Dense, keras_ldam.CrossEntropy, False),
    "CE-DRW": Row(layers.Dense, keras_ldam.CrossEntropy, True),
    "LDAM-DRW, official": Row(
        functools.partial(keras_ldam.CosineDense, use_bias=False),
        functools.partial(keras_ldam.LDAM, gradual=False, scale=30.0),
        True,
    ),
    "LDAM-DRW": Row(keras_ldam.CosineDense, keras_ldam.LDAM, True),
}


# -------------------------------------------------------------------------------- measuring


def scores_of(model, x):
    return np.concatenate(
        [np.asarray(model(x[i : i + 500], training=False)) for i in range(0, len(x), 500)]
    )


def balanced_accuracy(scores, y):
    scores, y = scores.reshape(-1, scores.shape[-1]), y.reshape(-1)
    right = scores.argmax(-1) == y
    return float(np.mean([right[y == j].mean() for j in np.unique(y)]))


def auc(scores, y, most=20_000):
    from sklearn.metrics import roc_auc_score

    scores, y = scores.reshape(-1, scores.shape[-1]), y.reshape(-1)
    if len(y) > most:
        some = np.random.default_rng(0).permutation(len(y))[:most]
        scores, y = scores[some], y[some]
    if scores.shape[-1] == 2:
        return float(roc_auc_score(y, scores[:, 1] - scores[:, 0]))
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return float(roc_auc_score(y, p / p.sum(-1, keepdims=True), multi_class="ovr"))


class Facts:
    """What a guard could see: the features and scores of training examples, with dropout."""

    def __init__(self, model, x, y):
        self.head = model.layers[-1]
        self.features = keras.Model(model.input, self.head.input)
        self.x, self.y = x[:128], y[:128].reshape(-1)

    def __call__(self):
        found = {}
        for training in (True, False):
            features = np.asarray(self.features(self.x, training=training))
            features = features.reshape(-1, features.shape[-1])
            scores = np.asarray(self.head(features))
            norms = np.linalg.norm(features, axis=1)
            alive = norms > 1e-6
            unit = features[alive] / norms[alive, None]
            best = np.bincount(scores.argmax(-1), minlength=scores.shape[-1])
            facts = {
                "one_class": float(best.max() / best.sum()),
                "spread": float(scores.std(0).mean()),
                "resultant": float(np.linalg.norm(unit.mean(0))) if alive.any() else None,
                "zero": float(1 - alive.mean()),
                "norm": float(np.median(norms)),
                "norm_1%": float(np.quantile(norms, 0.01)),
            }
            gaps = scores[np.arange(len(self.y)), self.y]
            rest = scores.copy()
            rest[np.arange(len(self.y)), self.y] = -np.inf
            facts["gap_90%"] = float(np.quantile(gaps - rest.max(-1), 0.9))
            found["train" if training else "test"] = facts
        found["width"] = int(features.shape[1])
        found["negative"] = bool((features < 0).any())
        return found


class Watch(keras.callbacks.Callback):
    """Balanced accuracy after each epoch, and the facts after some steps."""

    def __init__(self, test, facts, steps=(50, 200)):
        super().__init__()
        self.test, self.facts, self.steps = test, facts, steps
        self.step, self.epochs, self.found = 0, [], {}

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step in self.steps:
            self.found[str(self.step)] = self.facts()

    def on_epoch_end(self, epoch, logs=None):
        scores = scores_of(self.model, self.test[0])
        shares = np.bincount(scores.argmax(-1).reshape(-1), minlength=scores.shape[-1])
        self.epochs.append(
            {
                "loss": float(logs["loss"]),
                "balanced_accuracy": balanced_accuracy(scores, self.test[1]),
                "one_class": float(shares.max() / shares.sum()),
            }
        )
        self.scores = scores

    def on_train_end(self, logs=None):
        self.found["end"] = self.facts()


def train(network, row, seed):
    """One run: what came out, epoch by epoch."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    x, y, test_x, test_y = network.data()
    counts = np.bincount(y.reshape(-1))
    model = network.build(row.head(len(counts)))
    loss = row.loss(counts)
    optimizer = network.optimizer()
    model.compile(optimizer=optimizer, loss=loss, jit_compile=False)
    start = round(LAST * network.epochs)
    watch = Watch((test_x, test_y), Facts(model, x, y))
    callbacks = [watch]
    if row.deferred:
        callbacks.append(keras_ldam.DRW(start, verbose=0))
    if network.build is resnet32:
        rate = float(optimizer.learning_rate.numpy())

        def dropped(epoch):
            return rate * (min(1.0, (epoch + 1) / 3) if epoch < start else 0.1)

        callbacks.append(keras.callbacks.LearningRateScheduler(dropped))
    began = time.process_time()
    model.fit(x, y, batch_size=network.batch, epochs=network.epochs, verbose=0, callbacks=callbacks)
    leaves = [epoch["balanced_accuracy"] > 1 / len(counts) + 0.05 for epoch in watch.epochs]
    return {
        "balanced_accuracy": watch.epochs[-1]["balanced_accuracy"],
        "auc": auc(watch.scores * getattr(loss, "scale", 1.0), test_y),
        "leaves": leaves.index(True) + 1 if any(leaves) else None,
        "seconds": round(time.process_time() - began, 1),
        "epochs": watch.epochs,
        "facts": watch.found,
        "warnings": warnings_of(model, x, y, counts),
    }


def warnings_of(model, x, y, counts):
    """What the guards of the library say of the trained model, on 1,000 training examples."""
    batches = [(x[i : i + 250], y[i : i + 250]) for i in range(0, min(len(y), 1000), 250)]
    return evaluation.diagnose(model, batches, counts)[1]["warnings"]


# ------------------------------------------------------------------------------------ cause


def trace(network, row, seed=0, steps=200, clip=None, every=10):
    """The first steps: what the gradient, the class vectors and the features do.

    Args:
        clip: Limit of the gradient's global norm, if any.
        every: How many steps lie between two looks at the test set.

    Returns:
        A dict of lists, one value for each step: the loss, the gradient's global norm, the median
        length of the features, the length of the mean of the unit features, the cosine of
        w_rare - w_frequent with the mean feature, and the spread of the scores, with dropout; and
        after every so many steps balanced accuracy and AUC on 600 test examples.
    """
    import tensorflow as tf

    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    x, y, test_x, test_y = network.data()
    counts = np.bincount(y)
    model, loss, optimizer = network.build(row.head(2)), row.loss(counts), network.optimizer()
    optimizer.global_clipnorm = clip
    optimizer.build(model.trainable_variables)
    head = model.layers[-1]
    features = keras.Model(model.input, head.input)

    @tf.function
    def step(batch, labels):
        with tf.GradientTape() as tape:
            seen = features(batch, training=True)
            scores = head(seen)
            value = loss(labels, scores)
        variables = model.trainable_variables
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(value, variables)]
        optimizer.apply(gradients, variables)
        return value, tf.linalg.global_norm(gradients), seen, scores

    found = collections.defaultdict(list)
    batches = np.random.default_rng(seed).permutation(np.tile(np.arange(len(y)), 3))
    rare, frequent = counts.argmin(), counts.argmax()
    for number in range(1, steps + 1):
        some = batches[(number - 1) * network.batch : number * network.batch]
        value, size, seen, scores = (np.asarray(a) for a in step(x[some], y[some]))
        if getattr(head, "use_bias", False) and isinstance(head, keras_ldam.CosineDense):
            vectors = np.vstack([head.kernel.numpy(), head.bias.numpy()[None]])
            seen = np.pad(seen, ((0, 0), (0, 1)), constant_values=1.0)
        else:
            vectors = head.kernel.numpy()
        vectors = vectors / np.linalg.norm(vectors, axis=0)
        apart = vectors[:, rare] - vectors[:, frequent]
        lengths = np.linalg.norm(seen, axis=1)
        mean = (seen / np.maximum(lengths, 1e-9)[:, None]).mean(0)
        resultant = np.linalg.norm(mean)
        found["loss"].append(value)
        found["gradient_norm"].append(size)
        found["feature_length"].append(np.median(lengths))
        found["resultant"].append(resultant)
        found["towards_mean"].append(apart @ mean / (np.linalg.norm(apart) * resultant))
        found["spread"].append(scores.std(0).mean())
        if number % every == 0:
            scores = scores_of(model, test_x[:600])
            found["step"].append(number)
            found["balanced_accuracy"].append(balanced_accuracy(scores, test_y[:600]))
            found["auc"].append(auc(scores, test_y[:600]))
            found["rare_ahead"].append((scores[:, rare] - scores[:, frequent]).mean())
    return {name: [float(f"{v:.4g}") for v in values] for name, values in found.items()}


def show_cause(path=CAUSE):
    """Writes what `trace` finds in two networks under each row, with clipping too."""
    results = load(path)
    cases = [("CE-DRW", None), ("LDAM-DRW, official", None), ("LDAM-DRW, official", 1.0)]
    for name in ("text CNN", "biLSTM"):
        for row, clip in [*cases, ("LDAM-DRW", None)]:
            key = {"network": name, "row": row, "clip": clip, "seed": 0}
            if any(key.items() <= run.items() for run in results["runs"]):
                continue
            results["runs"].append({**key, **trace(NETWORKS[name], ROWS[row], clip=clip)})
            save(path, results)
            print(time.strftime("%H:%M:%S"), name, row, clip, flush=True)


# --------------------------------------------------------------------------------- the bench


def load(path):
    """The results so far."""
    return json.loads(path.read_text()) if path.exists() else {"runs": []}


def save(path, results):
    """Writes results, one run a line, with where they come from, in one go."""
    versions = {name: sys.modules[name].__version__ for name in ("keras", "numpy", "keras_ldam")}
    versions[keras.backend.backend()] = sys.modules[keras.backend.backend()].__version__
    head = {
        "command": "python benchmarks/networks.py",
        "last_run_by": {
            "machine": hardware.describe(),
            "versions": {"python": platform.python_version(), **versions},
        },
    }
    runs = json.loads(json.dumps(results["runs"]), parse_float=lambda text: round(float(text), 5))
    lines = ",\n".join(json.dumps(run) for run in runs)
    text = f'{json.dumps(head, indent=1)[:-2]},\n "runs": [\n{lines}\n]}}\n'
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").replace(path)


def table(results):
    """Markdown: mean over seeds of balanced accuracy and AUC, spread and epoch of leaving."""
    cells = collections.defaultdict(list)
    for run in results["runs"]:
        cells[run["network"], run["row"]].append(run)
    lines = [
        "| network | row | n | balanced accuracy | smallest, largest | AUC | leaves at epoch |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in NETWORKS:
        for row in ROWS:
            runs = cells[name, row]
            if runs:
                accuracies = [run["balanced_accuracy"] for run in runs]
                leaves = ", ".join(str(run["leaves"] or "never") for run in runs)
                lines.append(
                    f"| {name} | {row} | {len(runs)} | {np.mean(accuracies):.3f} | "
                    f"{min(accuracies):.3f}, {max(accuracies):.3f} | "
                    f"{np.mean([run['auc'] for run in runs]):.3f} | {leaves} |"
                )
    return "\n".join(lines)


def main(arguments=None, rows=ROWS):
    """Runs what is asked for and not there yet, then prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--rows", nargs="+", default=list(rows), choices=rows)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--held_out", action="store_true", help="judge by examples that the training set leaves out"
    )
    parser.add_argument("--cause", action="store_true", help="follow the first 200 steps instead")
    options = parser.parse_args(arguments)
    if options.held_out:
        global HELD_OUT
        HELD_OUT = True
        if options.results == RESULTS:
            parser.error("--held_out needs --results: networks.json is judged by the test sets.")
    if options.cause:
        show_cause()
        return
    for seed in options.seeds:
        for name in options.networks:
            for row in options.rows:
                key = {"network": name, "row": row, "seed": seed}
                if any(key.items() <= run.items() for run in load(options.results)["runs"]):
                    continue
                run = {**key, **train(NETWORKS[name], rows[row], seed)}
                results = load(options.results)
                results["runs"].append(run)
                save(options.results, results)
                accuracy, leaves = run["balanced_accuracy"], run["leaves"]
                print(
                    f"{time.strftime('%H:%M:%S')} {name}, {row}, seed {seed}: {accuracy:.3f}, "
                    f"AUC {run['auc']:.3f}, leaves at {leaves}, {run['seconds']} s",
                    flush=True,
                )
    print(table(load(options.results)))


if __name__ == "__main__":
    main()
