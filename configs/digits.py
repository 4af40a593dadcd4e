"""scikit-learn's digits, made long-tailed: 124 images of 0 down to 6 of 9.

Trains in seconds on a CPU, and shows the purpose of the method: the rare digits.

    bin/train --dataset digits --method erm
    bin/train --dataset digits --method ldam_drw

`make demo` trains three seeds of both in demo/, and `bin/report demo/*-?` makes results/digits.json
of them and of the runs that docs/losses.md compares.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    return Config(
        imbalance_ratio=20.0,
        epochs=40,
        batch_size=32,
        optimizer="adam",
        learning_rate=1e-3,
        drop_factor=0.1,
    )
