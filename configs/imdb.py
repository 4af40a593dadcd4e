"""Imbalanced IMDB: 12,500 positive and 1,250 negative training reviews, the paper's Table 1.

    bin/train --dataset imdb --method erm
    bin/train --dataset imdb --method ldam_drw

Hardly tuned: one of six prototypes, which were compared by balanced error for LDAM-DRW alone, on
one validation part and with one seed; two others could not be told apart from it. It is the same
for every method but for its loss and rule, and none of the others was tuned for itself.

Two LSTMs in either direction read the last 200 words; word vectors start from what counting the
kept training reviews tells. The weights are 1/n, as in the table.
"""

from keras_ldam.config import Config


def config(method: str) -> Config:
    return Config(
        dataset="imdb",
        method=method,
        imbalance_ratio=10.0,
        max_tokens=200,
        epochs=5,
        batch_size=64,
        optimizer="adam",
        learning_rate=2e-3,
        clipnorm=1.0,
        drop_at=(0.6,),
        drop_factor=0.1,
        weighting="inverse",
    )
