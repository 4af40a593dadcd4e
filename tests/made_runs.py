"""Runs as an evaluation would leave them, of random scores: for the tests of reports."""

import keras
import numpy as np

from keras_ldam import evaluation, report


def diagnosed(counts, *, seed=0, better=0.0):
    """Errors, diagnosis and margins by split of a model whose scores are random.

    Args:
        counts: Training examples per class.
        seed: Of the scores.
        better: How much higher the label's score is than that of a middling model.
    """
    rng = np.random.default_rng([seed, len(counts)])
    num_classes = len(counts)
    labels = np.repeat(np.arange(num_classes), 6)
    scores = rng.normal(0, 0.1, (len(labels), num_classes))
    scores[np.arange(len(labels)), labels] += 0.2 + better
    model = keras.Sequential([keras.Input((num_classes,)), keras.layers.Identity()])
    errors, diagnosis = evaluation.diagnose(model, [(scores, labels)], counts, scale=10.0)
    train = np.repeat(np.arange(num_classes), counts)
    margins = {
        "train": evaluation.class_margins(
            rng.normal(0.2 + better, 0.3, len(train)), train, num_classes, unit="cosine"
        ),
        "test": {**diagnosis["margins"], "unit": "cosine"},
    }
    return errors, {**diagnosis, "margins": margins["test"]}, margins


def names(num_classes):
    """Names of classes that no page and no figure may take for its own signs."""
    return tuple(f"c <{j}> $^$" for j in range(num_classes))


def made_up_run(counts, title="ERM", seed=0, *, better=0.0, **changes):
    """A record with everything that figures show."""
    errors, diagnosis, margins = diagnosed(counts, seed=seed + len(title), better=better)
    values = {
        "title": title,
        "class_names": names(len(counts)),
        "errors": errors,
        "seed": seed,
        "counts": [int(n) for n in counts],
        "history": [{"loss": 3.0 / (1 + epoch), "error": 50.0 - epoch} for epoch in range(5)],
        "margins": margins,
        "diagnosis": diagnosis,
    }
    return report.Run(**{**values, **changes})
