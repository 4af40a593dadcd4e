"""Imbalanced IMDB: 12,500 positive and 1,250 negative training reviews.

bin/train --dataset imdb --method erm
bin/train --dataset imdb --method ldam_drw
"""

from keras_ldam.config import Config


def config(method: str) -> Config:
    return Config(
        dataset="imdb",
        method=method,
        imbalance_ratio=10.0,
        epochs=4,
        batch_size=64,
        optimizer="adam",
        learning_rate=1e-3,
        clipnorm=1.0,
        drop_at=(0.5,),
        drop_factor=0.1,
        weighting="inverse",
    )
