"""How fast the network for reviews trains, against PyTorch's nn.LSTM and plain Keras.

    python benchmarks/recurrence.py --torch_python PYTHON

PYTHON is that of an environment with torch; without it PyTorch is left out. Writes
`benchmarks/recurrence.json`, and `benchmarks/README.md` from it and its like (see `readme.py`).

Every contestant trains two bidirectional LSTMs by the recipe of `configs/text.py`: 65 numbers a
word, 48 units a direction, 20,000 words, at most 200 of a review, batches of 64, dropout in three
places, LDAM, Adam, clipping by the global norm; float32. They take turns as in `rounds.py`.

Two kinds of batches: one batch of random reviews padded to 200 words, again and again; and batches
from our pipeline, which puts reviews of like length together. Everyone gets the same, ready in
memory; `ours_from_pipeline` makes them anew each turn, `pipeline_alone` only makes them.

PyTorch runs in four ways, of which the fastest counts: padded, by its oneDNN kernel; padded,
without oneDNN; packed; and padded with threads that wait without spinning ("patient"), which halves
the rate on a quiet machine, and saves it where anything else runs. Padded, its backward direction
begins in the padding, which spares it what the others do to avoid that.

The reviews are the real training reviews where they have been prepared; elsewhere random words in
reviews of such lengths. The memory is the peak of `bin/train` over a whole epoch of real data, by
the same recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import readme
from rounds import (
    ENVIRONMENT,
    PATIENT,
    ROUNDS,
    WARM,
    Process,
    cached_batch,
    command,
    fitted,
    rate,
    run,
    serve,
    spread,
    take_turns,
    untuned,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
COUNTS, WORDS = (1250, 12_500), 20_000
STEPS = 11
"""Of a turn on one batch."""
BATCHES = 18
"""Of a turn on real lengths."""
MEDIAN_LENGTH, SPREAD_OF_LOGARITHM = 175, 0.6
"""Of made reviews; the real ones have a median of 176, and 42 % of them have 200 words or more."""

CONTESTANTS = {
    "ours_one_batch": "ours",
    "ours_real_lengths": "ours",
    "ours_from_pipeline": "ours",
    "pipeline_alone": "ours",
    "keras_one_batch": "keras",
    "torch_padded_one_batch": "torch",
    "torch_plain_one_batch": "torch",
    "torch_packed_one_batch": "torch",
    "torch_padded_real_lengths": "torch",
    "torch_patient_one_batch": "torch_patient",
    "torch_patient_real_lengths": "torch_patient",
    "torch_packed_real_lengths": "torch",
}
"""Which process each contestant lives in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="Python of an environment with torch")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--made", action="store_true", help="made reviews, even if there are real")
    parser.add_argument("--process", help=argparse.SUPPRESS)
    parser.add_argument("--reviews", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process == "prepare":
        print(json.dumps(prepare(given.reviews, given.made)))
    elif given.process:
        serve(PROCESSES[given.process](given.reviews))
    else:
        (HERE / "recurrence.json").write_text(json.dumps(measure(given), indent=1) + "\n")
        readme.write()


# ----------------------------------------------------------------------------- the rounds


def measure(given: argparse.Namespace) -> dict:
    """All measurements."""
    from keras_ldam import hardware

    pythons = dict.fromkeys(("ours", "keras"), sys.executable)
    if given.torch_python:
        pythons["torch"] = pythons["torch_patient"] = given.torch_python
    names = [(n, p) for n, p in CONTESTANTS.items() if p in pythons]
    with tempfile.TemporaryDirectory() as folder:
        reviews = str(Path(folder) / "reviews.npz")
        made = ["--made"] if given.made else []
        prepared = json.loads(
            run(sys.executable, __file__, "--process", "prepare", "--reviews", reviews, *made)
        )
        processes = {
            name: Process(
                python,
                __file__,
                *("--process", name, "--reviews", reviews),
                environment=PATIENT if name == "torch_patient" else None,
            )
            for name, python in pythons.items()
        }
        found, about, load = take_turns(processes, names, given.rounds)
    rates = {name: spread(values) for name, values in found.items()}
    return {
        "command": command("benchmarks/recurrence.py", given.rounds),
        "reviews": prepared,
        "reviews_per_second": rates,
        "ratios": ratios({name: of["median"] for name, of in rates.items()}),
        "peak_memory_gb": None if given.made else peak_memory(),
        "rounds": given.rounds,
        "steps_a_turn": {"one_batch": STEPS - WARM, "real_lengths": BATCHES - WARM},
        "load_average": load,
        "hardware": hardware.describe(),
        "instructions": instructions(),
        "versions": {**hardware.versions(), **about.get("torch", {})},
    }


def ratios(rates: dict) -> dict:
    """The comparisons that the table is about, as far as there is something to compare."""
    rates = dict(rates)
    for kind in ("one_batch", "real_lengths"):
        ways = [rate for name, rate in rates.items() if name.startswith("torch") and kind in name]
        if ways:
            rates[f"torch_{kind}"] = max(ways)
    pairs = {
        "one_batch_to_torch": ("ours_one_batch", "torch_one_batch"),
        "real_lengths_to_torch": ("ours_real_lengths", "torch_real_lengths"),
        "real_lengths_to_torch_one_batch": ("ours_real_lengths", "torch_one_batch"),
        "one_batch_to_keras": ("ours_one_batch", "keras_one_batch"),
        "real_lengths_to_keras_one_batch": ("ours_real_lengths", "keras_one_batch"),
        "pipeline_to_memory": ("ours_from_pipeline", "ours_real_lengths"),
    }
    return {n: round(rates[a] / rates[b], 2) for n, (a, b) in pairs.items() if b in rates}


def peak_memory() -> float | None:
    """GB that a run of the recipe needs at its peak; None where the reviews are not prepared."""
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, str(HERE.parent / "bin" / "train")]
        recipe = "--dataset imdb --method ldam_drw --epochs 1 --start_epoch 0 --max_tokens 200"
        recipe += " --projection 0 --adversarial 0"
        child = subprocess.Popen(
            [*program, *recipe.split(), "--run_dir", folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        _, status, used = os.wait4(child.pid, 0)
    return None if status else round(used.ru_maxrss * 1024 / 1e9, 2)


def instructions() -> list[str]:
    """What this processor has of the instructions that decide which kernels run."""
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return [flag for flag in known if flag in flags]


# ----------------------------------------------------------------------------- the reviews


def recipe():
    """The recipe of IMDB, with reviews of 200 words and one pass a step."""
    from keras_ldam.experiments.recipes import load_recipe

    usual = load_recipe("imdb", "ldam_drw")
    changes = {"max_tokens": 200, "projection": 0, "adversarial": 0.0}
    return dataclasses.replace(usual, **changes).resolve()


def prepare(file: str, made: bool) -> dict:
    """Writes reviews and batches for all processes; returns what is to be told about them."""
    import numpy as np

    from keras_ldam.experiments import datasets

    config, name = recipe(), "IMDB's training reviews"
    try:
        train = made_reviews(config) if made else datasets.load(config).train
    except ValueError:
        made, train = True, made_reviews(config)
    if made:
        name = "made: random words, lengths as of IMDB's"
    window = window_of(train, config)
    batches = [window[i] for i in range(len(window))]
    # The first reviews of the window, in random order; each such batch has one of 200 words.
    first = window.split.examples[np.arange(config.batch_size)]
    padded = np.zeros((config.batch_size, config.max_tokens), np.int32)
    padded[:, : first.shape[1]] = first
    np.savez(
        file,
        values=train.examples.values,
        lengths=train.examples.lengths,
        labels=train.labels,
        padded=padded,
        padded_labels=window.split.labels[: config.batch_size],
        **{f"words{i}": words for i, (words, _) in enumerate(batches)},
        **{f"labels{i}": labels for i, (_, labels) in enumerate(batches)},
    )
    lengths = train.examples.lengths
    return {
        "source": name,
        "number": len(lengths),
        "median_length": float(np.median(lengths)),
        "mean_length": round(float(lengths.mean()), 1),
        "cut_percent": round(100 * float((lengths == config.max_tokens).mean()), 1),
        "mean_padded_length": round(float(np.mean([w.shape[1] for w, _ in batches])), 1),
        "batch": config.batch_size,
        "batches": len(batches),
    }


def made_reviews(config):
    """As many reviews as the recipe keeps, of random words, with lengths as real ones have."""
    import numpy as np

    from keras_ldam.experiments.datasets.data import Ragged, Split

    generator = np.random.default_rng(0)
    number = sum(COUNTS)
    lengths = generator.lognormal(np.log(MEDIAN_LENGTH), SPREAD_OF_LOGARITHM, number)
    lengths = lengths.round().clip(1, config.max_tokens).astype(np.int64)
    # Words as frequent as their rank tells (Zipf's law).
    chances = 1 / (3 + np.arange(WORDS))
    words = 2 + generator.choice(WORDS, lengths.sum(), p=chances / chances.sum())
    labels = generator.permutation(np.repeat([0, 1], COUNTS)).astype(np.int32)
    return Split(Ragged(words.astype(np.int32), lengths), labels)


def window_of(train, config):
    """The pipeline over some of the reviews, random ones."""
    import numpy as np

    from keras_ldam.experiments.datasets.sampling import Batches

    order = np.random.default_rng(1).permutation(len(train))[: BATCHES * config.batch_size]
    return Batches(train.take(order), config.batch_size, seed=0)


# ----------------------------------------------------------------------------- contestants


def batches_of(file):
    """The one padded batch, and those of real lengths."""
    import numpy as np

    with np.load(file) as saved:
        several = [(saved[f"words{i}"], saved[f"labels{i}"]) for i in range(BATCHES)]
        return (saved["padded"], saved["padded_labels"]), several


def in_memory(batches):
    """A dataset that has all of its batches once it has been read."""
    import tensorflow as tf

    signature = (tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None,), tf.int32))
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    return untuned(dataset.cache())


def ours(file):
    import numpy as np

    from keras_ldam import hardware
    from keras_ldam.experiments import feeding, training
    from keras_ldam.experiments.datasets.data import Data, Ragged, Split
    from keras_ldam.experiments.datasets.sampling import EpochClock

    config = recipe()
    hardware.divide_cores()  # As bin/train does.
    with np.load(file) as saved:
        train = Split(Ragged(saved["values"], saved["lengths"]), saved["labels"])
    data = Data(
        name="imdb",
        class_names=("negative", "positive"),
        train=train,
        test=train.take(np.arange(1)),
        vocabulary=tuple(str(i) for i in range(WORDS)),
    )
    model = training.compiled_model(config, data)
    one, several = batches_of(file)
    window, size = window_of(train, config), config.batch_size
    clock = [EpochClock(window)]
    pipeline = feeding.feed(window)

    def alone():
        begun = time.perf_counter()
        made = sum(len(labels) for _, labels in pipeline)
        return made / (time.perf_counter() - begun)

    return {}, {
        "pipeline_alone": alone,
        "ours_one_batch": fitted(model, cached_batch(*one, STEPS), size),
        "ours_real_lengths": fitted(model, in_memory(several), size, clock),
        "ours_from_pipeline": fitted(model, pipeline, size, clock),
    }


def plain_keras(file):
    """The network from Keras' own layers with its own masks, as one writes it."""
    import keras
    from keras import layers

    config = recipe()

    def lstm():
        return layers.Bidirectional(layers.LSTM(config.units, return_sequences=True))

    words = keras.Input((config.max_tokens,), dtype="int32")
    vectors = layers.Embedding(WORDS + 2, config.embedding_dim, mask_zero=True)(words)
    x = lstm()(layers.SpatialDropout1D(config.dropout)(vectors))
    x = lstm()(layers.Dropout(config.dropout)(x))
    mean = layers.GlobalAveragePooling1D()
    x = layers.Concatenate()([mean(x), layers.GlobalMaxPooling1D()(x), mean(vectors)])
    x = layers.Dropout(config.head_dropout)(layers.BatchNormalization()(x))
    model = keras.Model(words, layers.Dense(2)(x))
    model.compile(
        keras.optimizers.Adam(config.learning_rate, global_clipnorm=config.clipnorm),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    one, _ = batches_of(file)
    return {}, {"keras_one_batch": fitted(model, cached_batch(*one, STEPS), config.batch_size)}


def torch_model():
    import torch
    from torch import nn
    from torch.nn import functional
    from torch.nn.utils import rnn

    units, size = 48, 65

    class Reviews(nn.Module):
        def __init__(self):
            super().__init__()
            self.vectors = nn.Embedding(WORDS + 2, size, padding_idx=0)
            self.lstm = nn.LSTM(
                size, units, num_layers=2, dropout=0.3, bidirectional=True, batch_first=True
            )
            self.features = nn.BatchNorm1d(4 * units + size, affine=False)
            self.classes = nn.Parameter(torch.randn(4 * units + size, 2))

        def forward(self, words, packed):
            real = (words != 0)[:, :, None]
            lengths = real.sum(1)
            vectors = self.vectors(words)
            # Word dropout: components of the vectors, each for a whole review.
            kept = functional.dropout(torch.ones(len(words), 1, size), 0.3, self.training)
            if packed:
                x = rnn.pack_padded_sequence(
                    vectors * kept, lengths[:, 0], batch_first=True, enforce_sorted=False
                )
                x, _ = rnn.pad_packed_sequence(
                    self.lstm(x)[0], batch_first=True, total_length=words.shape[1]
                )
            else:
                x, _ = self.lstm(vectors * kept)
            x = torch.cat(
                [
                    (x * real).sum(1) / lengths,
                    x.masked_fill(~real, -1e4).amax(1),
                    (vectors * real).sum(1) / lengths,
                ],
                dim=1,
            )
            x = functional.dropout(self.features(x), 0.5, self.training)
            return functional.normalize(x) @ functional.normalize(self.classes, dim=0)

    return Reviews()


def pytorch(process, file):
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    margins = torch.tensor(COUNTS, dtype=torch.float32) ** -0.25
    margins *= 0.5 / margins.max()
    weights = torch.ones(len(COUNTS))
    one, several = batches_of(file)

    def tensors(words, labels):
        return torch.from_numpy(words), torch.from_numpy(labels).long()

    feeds = {"one_batch": [tensors(*one)] * STEPS, "real_lengths": [tensors(*b) for b in several]}

    def contestant(feed, packed, onednn):
        model = torch_model()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3, eps=1e-7, fused=True)

        def turn():
            ends = []
            with torch.backends.mkldnn.flags(enabled=onednn):
                for words, labels in feed:
                    lowered = model(words, packed) - functional.one_hot(labels, 2) * margins
                    loss = functional.cross_entropy(30 * lowered, labels, weight=weights)
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    ends.append(time.perf_counter())
            return rate(ends, len(labels))

        return turn

    about = {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    ways = {"padded": (False, True), "plain": (False, False), "packed": (True, True)}
    ways["patient"] = ways["padded"]
    return about, {
        f"torch_{way}_{kind}": contestant(feed, *choice)
        for kind, feed in feeds.items()
        for way, choice in ways.items()
        if CONTESTANTS.get(f"torch_{way}_{kind}") == process
    }


PROCESSES = {
    "ours": ours,
    "keras": plain_keras,
    "torch": functools.partial(pytorch, "torch"),
    "torch_patient": functools.partial(pytorch, "torch_patient"),
}

if __name__ == "__main__":
    main()
