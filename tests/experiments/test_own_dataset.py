"""A user's own dataset file: from `train` to `predict`, and a sentence for each fault of it."""

import contextlib
import dataclasses
import json
import textwrap
from pathlib import Path

import pytest
from conftest import without_graphs

from keras_ldam.experiments import cli, datasets, exporting, models
from keras_ldam.experiments.config import DATASETS, Config
from keras_ldam.experiments.recipes import load_recipe
from keras_ldam.experiments.run_folder import RunFolder

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_dataset.py"

VECTORS = '''
"""Breast cancer in scikit-learn, long-tailed: vectors of 30 numbers."""

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import Split, imbalanced

TITLE = "Breast cancer"


def load(config):
    x, y = load_breast_cancer(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.5, stratify=y, random_state=0)
    return imbalanced(config, ["malignant", "benign"], Split(x, y), Split(x_test, y_test))


def recipe(method):
    return Config(
        imbalance_ratio=5.0, epochs=8, batch_size=16, optimizer="adam", learning_rate=0.01
    )
'''

SEQUENCES = """
import numpy as np
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import Data, Ragged, Split

def load(config):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [40, 10])
    ids = [rng.integers(1 + 4 * y, 5 + 4 * y, size=rng.integers(1, 9)) for y in labels]
    split = Split(Ragged.from_sequences(ids), labels)
    return Data(config.dataset_name, ("low", "high"), train=split, test=split)

def recipe(method):
    return Config(imbalance="none", epochs=2, start_epoch=1, units=4, embedding_dim=4)
"""

FINE = """
import numpy as np
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import Data, Split

def load(config):
    labels = np.array([0, 0, 1])
    split = Split(np.zeros((3, 8, 8, 1), np.uint8), labels)
    return Data(config.dataset_name, ("a", "b"), train=split, test=split)

def recipe(method):
    return Config(imbalance="none", epochs=1, start_epoch=0)
"""


@pytest.fixture
def write(tmp_path):
    """Writes a dataset file; returns its path."""

    def write(text, name="mine.py"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write


def test_the_example_is_trained_evaluated_exported_and_predicted_by_the_programs(
    tmp_path, monkeypatch, capsys
):
    assert len(EXAMPLE.read_text().splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    flags = [f"--dataset={EXAMPLE}", "--epochs=4", "--drop_at=0.5", "--noprogress"]
    assert cli.main("train", flags) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["run_dir"] == "runs/my_dataset-ldam_drw-0"
    assert results["dataset"] == "my_dataset"
    assert results["last"]["per_class_error"][1] < 50
    assert cli.main("evaluate", [f"--run_dir={results['run_dir']}"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["per_class_error"] == results["last"]["per_class_error"]
    assert cli.main("export", [f"--run_dir={results['run_dir']}", "--output=exports/eights"]) == 0
    capsys.readouterr()
    assert cli.main("samples", [f"--dataset={EXAMPLE}", "--number=4"]) == 0
    files = capsys.readouterr().out.split()
    assert files[1] == "samples/1-eight.png"
    assert cli.main("predict", ["--model=exports/eights", *files]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(answer["label"] in file for answer, file in zip(answers, files, strict=True)) >= 3


def test_samples_have_names_of_files_and_are_of_the_classes_that_there_are(
    write, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    text = FINE.replace("[0, 0, 1]", "[0, 1, 2]").replace('("a", "b")', '("a", "AC/DC", "unseen")')
    seen = "Split(split.examples[:2], labels[:2])"
    file = write(text.replace("test=split", f"test={seen}"))
    assert cli.main("samples", [f"--dataset={file}", "--number=3"]) == 0
    files = capsys.readouterr().out.split()
    assert files == ["samples/0-a.png", "samples/1-AC_DC.png", "samples/2-a.png"]
    assert all(Path(file).exists() for file in files)
    assert cli.main("samples", ["--dataset=table"]) == 2
    assert "table has no images in memory" in capsys.readouterr().err


def test_vectors_get_a_perceptron_and_sequences_two_lstms(write, tmp_path, capsys):
    for text, name, network in ((VECTORS, "cells.py", "mlp"), (SEQUENCES, "ids.py", "bilstm")):
        run = tmp_path / name.removesuffix(".py")
        path = write(text, name)
        with without_graphs() if network == "bilstm" else contextlib.nullcontext():
            assert cli.main("train", [f"--dataset={path}", f"--run_dir={run}", "--noprogress"]) == 0
        results = json.loads(capsys.readouterr().out)
        assert results["last"]["mean_error"] < (20 if network == "mlp" else 101)
        assert RunFolder(run).load_model().name == network
    assert datasets.declared(str(tmp_path / "cells.py")).TITLE == "Breast cancer"
    assert datasets.declared(str(tmp_path / "ids.py")).TITLE == "ids"
    data = datasets.load(Config(dataset=str(tmp_path / "cells.py"), imbalance_ratio=5.0).resolve())
    assert data.counts.tolist() == [106, 21]
    assert data.name == "cells"


def test_what_cannot_be_mixed_leaves_no_folder(write, tmp_path, capsys):
    path, run = write(VECTORS, "cells.py"), tmp_path / "run"
    assert cli.main("train", [f"--dataset={path}", f"--run_dir={run}", "--mix=cutmix"]) == 2
    assert "`cutmix` needs images of shape" in capsys.readouterr().err
    assert not run.exists()


def test_a_file_may_build_its_own_network(write):
    path = write(
        FINE
        + """
        def network(config, data, head):
            import keras
            images = keras.Input(data.train.examples.shape[1:])
            return keras.Model(images, head(keras.layers.Flatten()(images)), name="flat")
        """.replace("\n        ", "\n")
    )
    config = load_recipe(path, "ldam").resolve()
    model = models.build(config, datasets.load(config))
    assert model.name == "flat" and model.layers[-1].name == "cosines"
    assert not model.layers[-1].use_bias  # As in the paper.
    with_bias = dataclasses.replace(config, head_bias=True)
    assert models.build(with_bias, datasets.load(with_bias)).layers[-1].use_bias
    config = load_recipe(path, "erm").resolve()
    assert models.build(config, datasets.load(config)).layers[-1].name == "logits"


def test_a_file_that_changes_is_run_again(write, tmp_path):
    assert load_recipe(write(FINE), "erm").epochs == 1
    assert load_recipe(write(FINE.replace("epochs=1", "epochs=2222")), "erm").epochs == 2222


@pytest.mark.parametrize("name", DATASETS)
def test_a_users_file_does_not_take_a_known_name(write, name):
    with pytest.raises(ValueError, match=rf"{name}\.py has the name of a dataset of this package"):
        datasets.declared(write(FINE, f"{name}.py"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("def load(", "def lode(", r"mine\.py has no function `load\(config\)`"),
        ("def recipe(", "def receipt(", r"mine\.py has no function `recipe\(method\)`"),
        ("return Config(", "return dict(", r"mine\.py: `recipe` must return a Config. Received: {"),
        ("return Data(", "return str(", r"mine\.py, line 9: TypeError: "),
        ("return Data(", "return split or Data(", r"`load` must return a Data. Received: Split"),
        ("[0, 0, 1]", "[0, 0, 2]", r"mine\.py, line 9: .*example 2 has label 2, outside 0 … 1"),
        ("[0, 0, 1]", "[0, 0, 0]", r"mine\.py, line 9: .*class 1 \(b\) has no training example"),
        ("[0, 0, 1]", "[0, 1]", r"mine\.py, line 8: `labels` must .* Received: .*shape \(2,\)"),
        ("[0, 0, 1]", "['a', 'a', 'b']", r"`labels` must be .* whole numbers.* Received: .*<U1"),
        ("[0, 0, 1]", "[0.0, 0.5, 1]", r"`labels` must be .* whole numbers.* Received: .*float64"),
        ('("a", "b")', '("a", "a")', "two classes have the name 'a'"),
        ('("a", "b")', '("a", "\\udcff")', r"class name '\\udcff' is not UTF-8"),
        ("epochs=1,", "epochs=0,", "`epochs` must be from 1 to 100000"),
        ("epochs=1,", "network='vgg', epochs=1,", "`network` must be one of small_cnn"),
        ("epochs=1,", "network='mlp', epochs=1,", r"one of small_cnn, .* for images, as in mine"),
        ("epochs=1,", "speed=3, epochs=1,", r"mine\.py, line 12: TypeError: .*'speed'"),
        ("import numpy", "import numpie", r"mine\.py, line 2: ModuleNotFoundError: No module"),
        ("labels = ", "labels == ", r"mine\.py, line 7: NameError"),
        ("(3, 8, 8, 1), np.uint8", "(3, 8, 8, 1)", "must be uint8 images .* Received: float64"),
        ("def load(config):", "def load(config)", r"mine\.py, line 6: SyntaxError: expected ':'"),
    ],
)
def test_a_faulty_file_ends_the_program_with_one_sentence(
    write, tmp_path, capsys, old, new, message
):
    assert FINE.count(old) == 1
    path = write(FINE.replace(old, new))
    run = tmp_path / "run"
    assert cli.main("train", [f"--dataset={path}", f"--run_dir={run}", "--noprogress"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("train: ")
    assert not run.exists()
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)


def test_a_file_that_does_not_exist_is_named(tmp_path, capsys):
    assert cli.main("train", [f"--dataset={tmp_path / 'none.py'}"]) == 2
    error = capsys.readouterr().err
    assert error == f"train: {tmp_path / 'none.py'} is not an existing Python file.\n"


def test_vectors_with_gaps_are_refused_by_example(write):
    path = write(VECTORS.replace("    x, x_test", "    x[7, 3] = float('nan')\n    x, x_test"))
    config = load_recipe(path, "erm").resolve()
    with pytest.raises(ValueError, match=r"must be finite numbers\. Received: nan for feature 3"):
        models.build(config, datasets.load(config))


@pytest.mark.usefixtures("eagerly")
def test_a_run_folder_knows_its_file_from_other_folders_and_after_both_have_moved(
    write, tmp_path, monkeypatch, capsys
):
    first = tmp_path / "first"
    first.mkdir()
    write(FINE, "first/mine.py")
    monkeypatch.chdir(first)
    assert cli.main("train", ["--dataset=mine.py", "--run_dir=run", "--noprogress"]) == 0
    monkeypatch.chdir(tmp_path)
    assert cli.main("evaluate", [f"--run_dir={first / 'run'}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["split"] == "test"

    second = first.rename(tmp_path / "second")
    flags = [f"--dataset={second / 'mine.py'}", f"--run_dir={second / 'run'}"]
    assert cli.main("train", flags) == 0
    assert "already complete" in capsys.readouterr().err
    assert RunFolder(second / "run").read_config().dataset == str(second / "mine.py")
    exported = exporting.export(second / "run", second / "export")
    assert exported["config"]["dataset"] == str(second / "mine.py")

    other = tmp_path / "other"
    other.mkdir()
    write(FINE.replace("epochs=1", "epochs=1 "), "other/mine.py")
    assert cli.main("train", [f"--dataset={other / 'mine.py'}", flags[1]]) == 2
    assert "belongs to a run with dataset=" in capsys.readouterr().err
