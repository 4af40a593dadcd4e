"""Heads on a pretrained text encoder: imbalanced IMDB with vectors that lie inside a package.

    pip install --no-deps wordllama
    python benchmarks/pretrained.py

Writes `benchmarks/pretrained.json`, and `benchmarks/README.md` from it and its like (see
`readme.py`).

The package wordllama (MIT) brings static vectors of 256 numbers for 32,000 pieces of words. A Keras
model is made of those that are whole words in lower case: it splits a text into words and averages
their vectors. Nothing of IMDB went into it. It is an encoder of the cheapest kind, without the
order of words. The package itself is not imported.

Features are computed once, and heads are trained on them: 30 epochs, batches of 128, Adam from 0.01
by half a cosine, DRW from epoch 24 on. Nothing was tuned, on any data; errors are those of the last
epoch on the whole test split. The seed chooses the negative reviews that are kept, and
everything else.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import readme

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
SEEDS, EPOCHS, BATCH, RATIO = 3, 30, 128, 10.0
HEADS = {
    "erm": ("cross_entropy", False),
    "ce_drw": ("cross_entropy", True),
    "la": ("logit_adjusted", False),
    "ldam_drw": ("ldam", True),
    "ldam_drw, random start": ("ldam", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(HERE / "pretrained.json"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args()
    from keras_ldam import hardware

    results = {
        "command": "python benchmarks/pretrained.py",
        "hardware": hardware.describe(),
        "versions": {**hardware.versions(), "wordllama": version("wordllama")},
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "seeds": given.seeds,
        "imbalance_ratio": RATIO,
    }
    model = encoder()
    results["words"] = int(model.get_layer("vectors").input_dim) - 2
    results["found"] = compared(model, given.seeds)
    Path(given.output).write_text(json.dumps(results, indent=1) + "\n")
    if given.output == parser.get_default("output"):
        readme.write()


def encoder():
    """A Keras model from texts to the mean of their words' vectors."""
    import keras

    found = importlib.util.find_spec("wordllama")
    if found is None:
        raise SystemExit("pretrained: the vectors are those of the package wordllama: pip install.")
    home = Path(found.submodule_search_locations[0])
    pieces = json.loads((home / "tokenizers" / "l2_supercat_tokenizer_config.json").read_text())
    words = {
        piece[1:]: row
        for piece, row in pieces["model"]["vocab"].items()
        if piece.startswith("▁") and piece[1:].isalpha() and piece[1:].islower()
    }
    rows = tensor(home / "weights" / "l2_supercat_256.safetensors")[list(words.values())]
    split = keras.layers.TextVectorization(vocabulary=list(words), name="words")
    vectors = keras.layers.Embedding(len(words) + 2, rows.shape[1], mask_zero=True, name="vectors")
    model = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            split,
            vectors,
            keras.layers.GlobalAveragePooling1D(name="mean"),
        ]
    )
    # No word, and an unknown one.
    vectors.set_weights([np.concatenate([np.zeros_like(rows[:2]), rows])])
    return model


def tensor(path: Path) -> np.ndarray:
    """The only tensor of a safetensors file: a length, a header in JSON, the numbers."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    (entry,) = (entry for name, entry in header.items() if name != "__metadata__")
    first, last = (start + offset for offset in entry["data_offsets"])
    dtype = {"F16": np.float16, "F32": np.float32}[entry["dtype"]]
    return np.frombuffer(data[first:last], dtype).reshape(entry["shape"]).astype(np.float32)


def features(model, texts) -> np.ndarray:
    import tensorflow as tf

    batches = [tf.constant(texts[i : i + 500]) for i in range(0, len(texts), 500)]
    return np.concatenate([model.predict_on_batch(batch) for batch in batches])


def compared(model, seeds: int) -> dict:
    from keras_ldam.counts import step_counts
    from keras_ldam.experiments.config import Config
    from keras_ldam.experiments.datasets import imbalance, imdb, prepared

    source = prepared.builder("imdb_reviews", "")
    (x, y), (x_test, y_test) = (
        (features(model, texts), labels)
        for texts, labels in (imdb._read(source, split) for split in ("train", "test"))
    )
    print("features", x.shape, x_test.shape, flush=True)
    found: dict[str, list] = {}
    for seed in range(seeds):
        config = Config(dataset="imdb", imbalance_ratio=RATIO, seed=seed).resolve()
        kept, _ = imbalance.select(y, step_counts(2, 12_500, RATIO)[::-1], config)
        for way in HEADS:
            guesses = trained(way, x[kept], y[kept], seed).predict(x_test, verbose=0).argmax(-1)
            found.setdefault(way, []).append(errors(guesses, y_test))
            print(seed, way, found[way][-1], flush=True)
    return found


def trained(way: str, x, y, seed: int):
    import keras

    import keras_ldam
    from keras_ldam.experiments.config import Config
    from keras_ldam.losses import LOSSES

    keras.utils.set_random_seed(seed)
    loss, weighted = HEADS[way]
    counts = np.bincount(y)
    if LOSSES[loss].wants_cosines:
        head = keras_ldam.CosineDense(2, use_bias=False)
    else:
        head = keras.layers.Dense(2)
    model = keras.Sequential([keras.Input(x.shape[1:]), head])
    if LOSSES[loss].wants_cosines and "random" not in way:
        keras_ldam.start_from_means(model, (x, y))
    rate = keras.optimizers.schedules.CosineDecay(0.01, EPOCHS * -(-len(x) // BATCH))
    settings = dataclasses.asdict(Config(dataset="imdb").resolve())
    model.compile(keras.optimizers.Adam(rate), loss=LOSSES[loss].make(counts, settings))
    callbacks = [keras_ldam.DRW(start=0.8, weights="inverse", verbose=0)] if weighted else []
    model.fit(x, y, BATCH, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return model


def errors(guesses: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    each = [float(100 * np.mean(guesses[labels == j] != j)) for j in (0, 1)]
    return {"negative": round(each[0], 4), "positive": round(each[1], 4)} | {
        "mean_error": round(sum(each) / 2, 4)
    }


if __name__ == "__main__":
    main()
