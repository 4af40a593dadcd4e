"""A table of your own with a perceptron.

    bin/train --dataset table --data_dir churn.csv --label_column churned
    bin/train --dataset table --data_dir churn.csv --label_column churned --method erm

The file is CSV, TSV, JSONL or Parquet, with a row for each example: numbers, categories and dates,
some of them missing. It may say in a column `split` which rows are for training and which for test;
or a folder has train.csv and test.csv; else a fifth of each class is held out, the same for every
seed, and evaluated. The imbalance is that of the rows; `--imbalance longtail` makes balanced tables
imbalanced, for experiments.

This recipe is our choice and unpublished, and meant for a few thousand rows; with many more, fewer
epochs are enough: `--epochs 6`. benchmarks/table.json compares it with gradient boosting.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    return Config(
        imbalance="none",
        epochs=30,
        batch_size=64,
        optimizer="adam",
        learning_rate=2e-3,
        drop_factor=0.1,
        weighting="inverse",
    )
