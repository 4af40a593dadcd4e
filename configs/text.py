"""Texts of your own with two bidirectional LSTMs.

    bin/train --dataset text --data_dir tickets.csv --label_column queue
    bin/train --dataset text --data_dir tickets.csv --label_column queue --method erm
    bin/train --dataset text --data_dir tickets.csv --pretrained PATH --learning_rate 5e-5

The file is CSV, TSV, JSONL or Parquet with a column of texts and one of labels, and may say in a
column `split` which rows are for training and which for test; or a folder has train.csv and
test.csv, or one sub-folder of .txt files for each class. Where nothing is named, a fifth of each
class is held out, the same for every seed, and evaluated. The imbalance is that of the texts;
`--imbalance longtail` makes balanced ones imbalanced, for experiments.

This recipe is our choice and unpublished: the first one of our runs on IMDB, with more epochs for
fewer texts. With many texts fewer epochs are enough, `--epochs 5 --drop_at 0.6`, and what IMDB's
present recipe has may lower the errors, at twice the time: `--projection 64 --adversarial 1`. PATH
is a pretrained network, which takes the place of the LSTMs; docs/datasets.md says of which forms.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    return Config(
        imbalance="none",
        epochs=20,
        drop_at=(0.6, 0.8),
        batch_size=64,
        optimizer="adam",
        learning_rate=2e-3,
        clipnorm=1.0,
        drop_factor=0.1,
        weighting="inverse",
    )
