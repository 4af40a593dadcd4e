"""Imbalanced IMDB: 12,500 positive and 1,250 negative training reviews, the paper's Table 1.

    bin/train --dataset imdb --method erm
    bin/train --dataset imdb --method ldam_drw

Two bidirectional LSTMs read the last 200 words; word vectors are initialized from counts in the
kept training reviews. The class weights are 1/n, as in the table.

The methods need different training lengths, so each has its own epochs and drop of the learning
rate. They are chosen among the same three (SHORT, MIDDLE, LONG) by the last epoch's mean error on a
fifth of the kept training reviews (250 negative ones, seed 0, so a standard error of about 1.4
points):

    bin/train --dataset imdb --method rw --validation_fraction 0.2 --epochs 4 --drop_at 0.5

Where the shortest or the longest was best, one beyond it was tried too (SHORTEST, LONGER).
`results/tuning/imdb.json` has all results, and those of single changes for LDAM-DRW, none of which
was better: scales of 10, 20 and 60, 400 words, a drop of the learning rate to 0.3, dropout of 0.5,
smaller margins. All else was chosen earlier, for LDAM-DRW only, on a smaller validation part.
"""

from keras_ldam.experiments.config import Config

SHORTEST = {"epochs": 2, "drop_at": (0.5,)}
SHORT = {"epochs": 3, "drop_at": (1 / 3,)}
MIDDLE = {"epochs": 4, "drop_at": (0.5,)}
LONG = {"epochs": 5, "drop_at": (0.6,)}
LONGER = {"epochs": 8, "drop_at": (0.5,)}
SCHEDULES = {
    "ce_drw": LONG,
    "crt": LONGER,  # Of their first stage, erm.
    "erm": LONGER,
    "ldam": LONG,
    "ldam_drw": LONG,
    "lws": LONGER,
    "rs": SHORTEST,
    "rw": MIDDLE,
}


def recipe(method: str) -> Config:
    return Config(
        imbalance_ratio=10.0,
        max_tokens=200,
        batch_size=64,
        optimizer="adam",
        learning_rate=2e-3,
        clipnorm=1.0,
        drop_factor=0.1,
        weighting="inverse",
        **SCHEDULES.get(method, SHORT),
    )
