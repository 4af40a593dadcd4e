"""scikit-learn's digits, made long-tailed: 124 images of 0 down to 6 of 9.

Trains in seconds on a CPU, and shows what the method is for: the rare digits.

    bin/train --dataset digits --method erm
    bin/train --dataset digits --method ldam_drw

`make demo` trains three seeds of both in demo/; results/digits.json is what `bin/report demo/*-?`
makes of them.
"""

from keras_ldam.experiments.config import Config


def config(method: str) -> Config:
    return Config(
        dataset="digits",
        method=method,
        imbalance_ratio=20.0,
        epochs=40,
        batch_size=32,
        optimizer="adam",
        learning_rate=1e-3,
        drop_factor=0.1,
    )
