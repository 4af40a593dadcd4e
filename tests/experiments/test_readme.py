"""The tables of the README are those that bin/report prints."""

from pathlib import Path

import pytest

from keras_ldam.experiments import tables

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("dataset", ["imdb", "cifar10", "cifar100"])
def test_readme_has_the_table_of_the_results(dataset):
    runs = tables.gather([ROOT / "results" / f"{dataset}.json"])
    printed = tables.markdown(tables.headline(runs, only_ours=True))
    table = "\n".join(line for line in printed.splitlines() if line.startswith("|"))
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
