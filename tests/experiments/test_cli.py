"""The programs as a user types them: what they print, and their answers to wrong input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keras_ldam.experiments import cli
from keras_ldam.experiments.config import DATASETS
from keras_ldam.extras import MissingExtraError

ROOT = Path(__file__).parents[2]


def test_the_answer_is_on_standard_output_and_the_rest_is_not(tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["--smoke", "--method=erm", "--seed=3", f"--run_dir={run}"]
    assert cli.main("train", arguments) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert (answer["method"], answer["seed"], answer["run_dir"]) == ("erm", 3, str(run))
    assert "digits: 417 training examples in 10 classes" in printed.err
    assert cli.main("evaluate", [f"--run_dir={run}"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["per_class_error"] == answer["last"]["per_class_error"]


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("train", ["--dataset=mnist"], "`dataset` must be one of digits, imdb"),
        ("train", ["--method=magic"], "`method` must be one of erm, rs"),
        ("train", ["--loss=magic"], "`loss` must be one of cross_entropy, focal"),
        ("train", ["--rule=magic"], "`rule` must be one of none, rs"),
        ("train", ["--network=magic"], "`network` must be one of small_cnn, whitened_cnn"),
        ("train", ["--epoch=3"], "unknown flag --epoch"),
        ("train", ["--epochs=many"], "epochs"),
        ("train", ["--left_out=x"], "flag --left_out=x: must be true or false"),
        ("train", ["--epochs=0"], "`epochs` must be from 1"),
        ("train", ["--drop_at=soon"], "--drop_at must be numbers separated by commas"),
        ("train", ["--start_epoch=90", "--epochs=20"], "start_epoch=90"),
        ("train", ["digits"], "does not take the argument 'digits'"),
        ("train", ["--imbalance_ratio=0.5"], "`imbalance_ratio` must be from 1"),
        ("train", ["--dataset=table", "--imbalance_ratio=9"], "--imbalance_ratio needs --imbalanc"),
        ("advise", [], "give either --counts FILE or --dataset NAME"),
        ("advise", ["--counts=nowhere.csv"], "nowhere.csv cannot be read: No such file"),
        ("advise", ["--counts=c", "--imbalance_ratio=9"], "--imbalance_ratio goes with --dataset"),
        ("advise", ["--dataset=mnist"], "`dataset` must be one of digits, imdb"),
        ("evaluate", [], "--run_dir is needed"),
        ("evaluate", ["--run_dir=nowhere"], "no such folder"),
    ],
)
def test_wrong_input_ends_with_one_sentence_and_code_2(
    verb, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(verb, arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith(f"{verb}: ")
    assert len(printed.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["train", "samples"])
def test_a_place_that_cannot_be_written_gets_a_sentence(verb, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    place = "run_dir" if verb == "train" else "output_dir"
    smoke = ["--smoke"] if verb == "train" else []
    assert cli.main(verb, [f"--{place}={tmp_path / 'file' / 'x'}", *smoke]) == 2
    assert capsys.readouterr().err.endswith(
        f"{verb}: {tmp_path / 'file' / 'x'}: Not a directory.\n"
    )


@pytest.mark.parametrize(
    ("verb", "said"), [("train", "; the same command resumes"), ("export", "")]
)
def test_an_interruption_says_what_to_do_where_there_is_something_to_do(
    verb, said, monkeypatch, capsys
):
    def interrupt(values):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, verb, cli.VERBS[verb]._replace(run=interrupt))
    assert cli.main(verb, []) == 130
    assert capsys.readouterr().err == f"{verb}: interrupted{said}.\n"


def test_a_folder_of_another_config_is_refused_by_the_first_field_that_differs(
    finished_run, capsys
):
    before = {file.name: file.read_bytes() for file in finished_run.glob("*.*")}
    assert cli.main("train", ["--method=erm", f"--run_dir={finished_run}"]) == 2
    assert "with method='ldam_drw', not 'erm'" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in finished_run.glob("*.*")} == before


def test_advice_is_text_or_json_and_the_same_for_a_dataset_and_for_its_counts(tmp_path, capsys):
    assert cli.main("advise", ["--dataset=digits"]) == 0
    text = capsys.readouterr().out
    assert "ratio 20.67, imbalance strong" in text and "max_margin = 0.5" in text
    assert cli.main("advise", ["--dataset=digits", "--imbalance_ratio=5", "--json"]) == 0
    of_dataset = json.loads(capsys.readouterr().out)
    assert cli.main("advise", ["--dataset=digits", "--epochs=1"]) == 0
    assert "epoch" in capsys.readouterr().out
    file = tmp_path / "counts.txt"
    file.write_text(" ".join(map(str, of_dataset["counts"])))
    assert cli.main("advise", [f"--counts={file}", "--epochs=40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == of_dataset
    assert of_dataset["counts"][0] / of_dataset["counts"][-1] < 6


def test_flags_stand_over_the_recipe_and_the_recipe_over_defaults():
    import absl.flags

    values = absl.flags.FlagValues()
    cli.VERBS["train"].define(values)
    values(["train", "--dataset=digits", "--epochs=7", "--drop_at=0.2,0.6"])
    config = cli.config_from(values)
    assert (config.epochs, config.drop_at) == (7, (0.2, 0.6))
    assert config.optimizer == "adam"  # The recipe's.
    assert config.beta == 0.9999  # The default.


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_smoke_run_reaches_the_deferred_rule_on_every_dataset(dataset):
    import absl.flags

    values = absl.flags.FlagValues()
    cli.VERBS["train"].define(values)
    values(["train", f"--dataset={dataset}", "--method=ldam_drw", "--smoke"])
    config = cli.config_from(values)
    assert (config.start_epoch, config.epochs) == (1, 2)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_help_explains_every_flag_with_examples(verb, capsys):
    assert cli.main(verb, ["--help"]) == 0
    printed = capsys.readouterr().out
    assert f"bin/{verb}" in printed
    if verb == "train":
        assert "--method" in printed
        assert "one of: erm, rs" in printed


def test_help_may_be_read_in_part(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main("train", ["--help"]) == 0


def test_a_python_without_keras_gets_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", ROOT / "bin" / "train"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("train: keras is not installed for ")
    assert len(done.stderr.splitlines()) == 1


def test_every_verb_has_its_file_and_the_console_command_knows_them_all(capsys):
    names = {file.name for file in (ROOT / "bin").iterdir() if file.is_file()}
    assert set(cli.VERBS) <= names
    assert cli.main(None, []) == 2
    assert cli.main(None, ["help"]) == 0
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in cli.VERBS)


def test_an_error_of_a_program_is_one_line(capsys):
    assert cli.main("train", ["--epochs=0"]) == 2
    told = "train: `epochs` must be from 1 to 100000. Received: epochs=0\n"
    assert capsys.readouterr() == ("", told)


def test_a_program_runs_from_any_folder_and_begins_with_our_line_and_none_of_tensorflow(tmp_path):
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("TensorFlow's notes about a GPU are left where there is one")
    done = subprocess.run(
        [sys.executable, ROOT / "bin" / "train", "--smoke", f"--run_dir={tmp_path}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert done.stderr.startswith("digits: 417 training examples")


def test_cifars_four_columns_need_no_run_dir(tmp_path, monkeypatch, capsys):
    from keras_ldam.experiments import training

    folders = []

    def note(config, run_dir, **options):
        folders.append(run_dir)
        raise ValueError("noted")

    monkeypatch.setattr(training, "train", note)
    for imbalance in ("longtail", "step"):
        for ratio in (100, 10):
            flags = [f"--imbalance={imbalance}", f"--imbalance_ratio={ratio}"]
            assert cli.main("train", ["--dataset=cifar10", *flags]) == 2
    assert folders == [
        "runs/cifar10-longtail-100-ldam_drw-0",
        "runs/cifar10-longtail-10-ldam_drw-0",
        "runs/cifar10-step-100-ldam_drw-0",
        "runs/cifar10-step-10-ldam_drw-0",
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            MissingExtraError(
                "dataset digits needs sklearn, which is not installed: pip install …"
            ),
            "dataset digits needs sklearn, which is not installed: pip install …",
        ),
        (ModuleNotFoundError("No module named 'kserve'"), "No module named 'kserve'"),
    ],
)
def test_a_missing_package_gets_a_sentence(error, said, monkeypatch, capsys):
    def fail(values):
        raise error

    monkeypatch.setitem(cli.VERBS, "serve", cli.VERBS["serve"]._replace(run=fail))
    assert cli.main("serve", []) == 2
    assert capsys.readouterr().err == f"serve: {said}\n"


def test_without_scikit_learn_digits_say_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert cli.main("train", [f"--run_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("which is not installed: pip install 'keras_ldam[experiments]'.")
    assert not (tmp_path / "run").exists()
