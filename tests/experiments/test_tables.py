"""Tables of runs: run folders and results files in, the paper's tables, pages and figures out."""

import concurrent.futures
import copy
import dataclasses
import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_runs import diagnosed, names

import keras_ldam
from keras_ldam import losses
from keras_ldam.experiments import cli, tables
from keras_ldam.experiments.config import METHODS
from keras_ldam.experiments.tables import collection, paper
from keras_ldam.report.page import SECTIONS
from keras_ldam.report.tables import markdown

ROOT = Path(__file__).parent.parent.parent
RESULTS = sorted((ROOT / "results").glob("*.json"))


def made_up_result(counts, method="erm", seed=0, dataset="digits", *, better=0.0, **config):
    """A run as an evaluation would leave it, of random scores."""
    errors, diagnosis, margins = diagnosed(counts, seed=seed + len(method), better=better)
    loss, rule = METHODS[method][:2]
    config = {
        "loss": loss, "rule": rule, "max_margin": 0.5, "start_epoch": 3, "imbalance": "longtail",
        "imbalance_ratio": 10.0 if dataset == "imdb" else 100.0, **config,
    }  # fmt: skip
    return collection.Result(
        {
            "method": method, "seed": seed, "split": "test", "last": errors, "best": errors,
            "counts": list(counts), "config": config, "seconds": 2.0, "parameters": 7,
            "margins": margins,
        },
        dataset,
        names(len(counts)),
        tuple({"loss": 3.0 / (1 + e), "test_mean_error": 50.0 - e} for e in range(5)),
        {"splits": {"test": diagnosis}},
    )  # fmt: skip


def merge(runs, file):
    """What `tables.write` does with run folders; returns what it shows."""
    shown, *_ = collection.merge(runs, file)
    collection.keep(runs, file)
    return shown


# ----------------------------------------------------------------------------- bin/report


def test_two_runs_give_a_page_with_every_figure_and_the_same_as_png(reported):
    printed, folder = reported
    assert "| ERM | last epoch | **" in printed
    text = (folder / "index.html").read_text("utf-8")
    assert {file.stem for file in folder.glob("*.png")} == set(SECTIONS)
    assert "Not shown" not in text
    assert "ERM: seed 0; LDAM-DRW: seed 0. 500 test examples." in text
    assert "417" in text and "training examples in 10 classes" in text
    assert ">DRW on<" in text and "Δ = C/⁴√n" in text
    kept = json.loads((folder / "digits.json").read_text())
    assert [run["method"] for run in kept["runs"]] == ["erm", "ldam_drw"]
    assert set(kept["runs"][0]["margins"]) == {"train", "test"}


def test_a_results_file_gives_the_figures_that_it_holds(reported, tmp_path, capsys):
    shutil.copytree(reported[1], tmp_path / "first")
    file = tmp_path / "first" / "digits.json"
    before = file.read_bytes()
    tables.write([file], results_dir=tmp_path / "elsewhere", output_dir=tmp_path / "first")
    text = (tmp_path / "first" / "index.html").read_text("utf-8")
    assert text.count("Not shown.") == 3
    left = {png.stem for png in (tmp_path / "first").glob("*.png")}
    assert left == set(SECTIONS) - {"curves", "confusion", "reliability"}
    assert file.read_bytes() == before and not (tmp_path / "elsewhere").exists()
    output = tmp_path / "one"
    arguments = [str(file), "--figures=margins", f"--output_dir={output}"]
    assert cli.main("report", arguments) == 0
    assert [path.name for path in output.iterdir()] == ["margins.png"]
    capsys.readouterr()
    assert cli.main("report", [str(file), "--figures=curves", f"--output_dir={output}"]) == 2
    assert "figure 'curves' is not in these results" in capsys.readouterr().err


def test_one_run_is_reported_on_alone(compared_runs, tmp_path):
    tables.write(compared_runs[:1], results_dir=tmp_path, output_dir=tmp_path / "o")
    assert "Not shown" not in (tmp_path / "o" / "index.html").read_text("utf-8")


def test_a_page_that_is_no_report_is_left_alone(compared_runs, tmp_path):
    folder = tmp_path / "o"
    folder.mkdir()
    (folder / "index.html").write_bytes(b"mine")
    for figures in (None, []):
        with pytest.raises(ValueError, match=r"index\.html exists and is not a report"):
            tables.write(
                compared_runs[:1], results_dir=tmp_path, output_dir=folder, figures=figures
            )
    assert (folder / "index.html").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o"]


def test_results_files_are_shown_beside_run_folders_and_not_copied(compared_runs, tmp_path):
    theirs = tmp_path / "theirs" / "digits.json"
    first = collection.gather(compared_runs)[0]
    run = made_up_result(first.results["counts"], "cb_rs", seed=7)
    merge([dataclasses.replace(run, class_names=first.class_names)], theirs)
    table = tables.write(
        [theirs, *compared_runs],
        results_dir=tmp_path,
        output_dir=tmp_path / "o",
        figures=["errors"],
    )
    assert "CB RS" in table
    written = collection.read_file(tmp_path / "digits.json")
    assert [run.method for run in written] == [
        run.method for run in collection.gather(compared_runs)
    ]


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_the_results_in_the_repository_can_be_reported_on(file, tmp_path):
    table = tables.write([file], output_dir=tmp_path, figures=["errors", "class_errors"])
    assert "last epoch | **" in table
    assert len(list(tmp_path.iterdir())) == 2


def test_the_margins_on_the_first_page_of_the_documents_are_in_the_results(tmp_path):
    file = next(file for file in RESULTS if file.name == "digits.json")
    tables.write([file], output_dir=tmp_path, figures=["margins"])
    runs = {(run.method, run.seed): run for run in collection.read_file(file)}
    assert {("erm", 0), ("ldam_drw", 0)} <= set(runs)
    needed = keras_ldam.margins(runs["erm", 0].counts, max_margin=0.5)
    reached = {
        m: np.array(runs[m, 0].results["margins"]["train"]["min"]) for m in ("erm", "ldam_drw")
    }
    # What the picture is there to show: every class has the margin that LDAM demands, under LDAM.
    assert np.all(reached["ldam_drw"] >= needed)
    assert np.all(reached["erm"][-5:] < needed[-5:])


# ----------------------------------------------------------------------------- the results file


def test_a_run_anew_takes_the_place_of_the_old_and_others_stay(tmp_path):
    file = tmp_path / "digits.json"
    merge([made_up_result([9, 8], seed=4), made_up_result([9, 8], "ldam", seed=0)], file)
    merged = merge([made_up_result([9, 8], seed=4, better=5.0)], file)
    assert [(run.method, run.seed) for run in merged] == [("erm", 4), ("ldam", 0)]
    assert merged[0].results["last"]["mean_error"] == 0.0
    assert [run.key for run in collection.read_file(file)] == [run.key for run in merged]


def test_reports_at_the_same_time_keep_the_runs_of_each_other(tmp_path):
    file = tmp_path / "digits.json"
    runs = [made_up_result([9, 8], seed=seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(len(runs)) as pool:
        for done in [pool.submit(collection.keep, [run], file) for run in runs]:
            done.result()
    assert [run.seed for run in collection.read_file(file)] == list(range(8))
    # What another has written while figures were drawn is no more replaced by a trial.
    trial, result = (made_up_result([9, 8], "ldam", epochs=epochs) for epochs in (2, 200))
    collection.merge([trial], file)
    collection.keep([result], file)
    collection.keep([trial], file)
    kept = {run.key: run for run in collection.read_file(file)}
    assert kept[result.key].config == result.config and len(kept) == 9


def test_a_trial_does_not_take_the_place_of_a_result(tmp_path, capsys):
    file = tmp_path / "digits.json"
    merge([made_up_result([9, 8], epochs=200)], file)
    before = file.read_bytes()
    trial = made_up_result([9, 8], better=5.0, epochs=2)
    (shown,) = merge([trial], file)
    assert shown is trial and file.read_bytes() == before
    told = "erm, seed 0, is shown and not written: the file has it with epochs=200, this run has 2"
    assert told in capsys.readouterr().err
    # Nor beside it, and a setting that the file's config does not know has its default there.
    other_seed = made_up_result([9, 8], seed=1, epochs=2)
    assert len(merge([other_seed], file)) == 2 and file.read_bytes() == before
    assert "seed 0 with epochs=200, this run has 2, and their mean" in capsys.readouterr().err
    # Nor do trials of several seeds let each other in.
    merge([made_up_result([9, 8], seed=seed, epochs=2) for seed in (0, 1)], file)
    assert file.read_bytes() == before
    assert capsys.readouterr().err.count("is shown and not written") == 2
    sharper = made_up_result([9, 8], epochs=200, sharpness=0.5)
    merge([sharper], file)
    assert file.read_bytes() == before
    assert "has it with sharpness=0.0, this run has 0.5" in capsys.readouterr().err
    # What is not about what is learned may differ.
    again = made_up_result([9, 8], better=5.0, epochs=200, evaluate_every=10, jit="on")
    merge([again], file)
    assert collection.read_file(file)[0].results == again.results


def test_a_run_anew_takes_the_place_of_one_whose_config_names_fields_as_they_were(tmp_path):
    file = tmp_path / "digits.json"
    merge([made_up_result([9, 8], network="resnet50", weights="")], file)
    again = made_up_result([9, 8], better=5.0, network="", pretrained="")
    merge([again], file)
    assert collection.read_file(file)[0].results == again.results
    (shown,) = merge([made_up_result([9, 8], network="mlp", pretrained="")], file)
    assert shown.config["network"] == "mlp"
    assert collection.read_file(file)[0].results == again.results


def test_a_run_over_replicas_does_not_take_the_place_of_one_without(tmp_path, capsys):
    file = tmp_path / "digits.json"
    merge([made_up_result([9, 8])], file)
    over = made_up_result([9, 8], better=5.0, strategy="cores")
    (shown,) = merge([over], file)
    assert shown is over and collection.read_file(file)[0].results != over.results
    assert "not written: the file has it with several replicas=False" in capsys.readouterr().err
    assert (
        "Includes runs over several replicas, each of which normalizes its part of a batch: ERM."
        in (" ".join(paper.headline([over, made_up_result([9, 8], "ldam")]).notes))
    )
    # What counts is who computed its epochs, not where it ended.
    for replicas, strategy in (([1, 2], "none"), ([1], "mirrored")):
        run = made_up_result([9, 8], strategy=strategy)
        run.results["replicas"] = replicas
        assert run.replicated == (max(replicas) > 1)


@pytest.mark.parametrize("classes", [("oak", "elm"), ("oak", "elm", "ash")])
def test_results_on_other_images_are_not_mixed(classes, tmp_path):
    file = tmp_path / "folder.json"
    one = dataclasses.replace(made_up_result([9, 8], dataset="folder"), class_names=("cat", "dog"))
    merge([one], file)
    before = file.read_bytes()
    other = made_up_result([9] * len(classes), "ldam", dataset="folder")
    with pytest.raises(ValueError, match="holds results on other classes, or on another split"):
        merge([dataclasses.replace(other, class_names=classes)], file)
    # The same names, but other images.
    for method, seed in (("erm", 0), ("erm", 1), ("ldam", 0)):
        again = made_up_result([9, 7], method, seed, dataset="folder")
        again = dataclasses.replace(again, class_names=("cat", "dog"))
        with pytest.raises(
            ValueError, match=r"on \[9, 7\] examples of the classes, and erm, seed 0"
        ):
            merge([again], file)
        assert file.read_bytes() == before
    (file.parent / "other").mkdir()
    merge([again], file.parent / "other" / "folder.json")
    with pytest.raises(ValueError, match="compare runs on the same data"):
        collection.gather([file, file.parent / "other" / "folder.json"])
    # Under another imbalance there are other numbers of them.
    step = made_up_result([9, 3], dataset="folder", imbalance="none")
    assert len(merge([dataclasses.replace(step, class_names=("cat", "dog"))], file)) == 2


def test_two_runs_of_one_name_and_different_settings_are_not_chosen_from(tmp_path):
    for name, epochs in (("one", 200), ("two", 5)):
        merge([made_up_result([9, 8], epochs=epochs)], tmp_path / f"{name}.json")
    with pytest.raises(ValueError, match="seed 0, with epochs=5, and an earlier source with 200"):
        collection.gather([tmp_path / "one.json", tmp_path / "two.json"])


@pytest.mark.parametrize("change", [{"steps_per_epoch": 5}, {"validation_fraction": 0.1}])
def test_trials_and_errors_on_held_out_examples_are_not_results(tmp_path, change, capsys):
    run = made_up_result([9, 8], **change)
    assert merge([run], tmp_path / "r" / "digits.json") == [run]
    assert not (tmp_path / "r").exists()
    assert "not written" in capsys.readouterr().err
    merge([made_up_result([9, 8], "ldam")], tmp_path / "digits.json")
    shown = merge([run], tmp_path / "digits.json")
    assert [each.method for each in shown] == (["erm"] if run.held_out else ["erm", "ldam"])


def test_the_validation_images_of_a_release_are_what_its_results_are_about(tmp_path):
    run = made_up_result([9, 8], dataset="inaturalist2018")
    run.results["split"] = "validation"
    merge([run], tmp_path / "inaturalist2018.json")
    assert collection.read_file(tmp_path / "inaturalist2018.json")[0].key == run.key


# ----------------------------------------------------------------------------- what is refused


def copied(runs, folder, file="results.json", change=None):
    """A copy of the first run, in which a JSON file is changed in place."""
    shutil.copytree(runs[0], folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "imdb"}, "is about imdb and an earlier run about digits"),
        (
            {"split": "validation"},
            "evaluated on its validation split and an earlier run on its test",
        ),
        (
            {"config": {"validation_fraction": 0.2}},
            "evaluated on held-out training examples (validation_fraction 0.2) and an earlier run",
        ),
        ({"class_names": list("abcdefghij")}, "has other classes than an earlier run"),
        ({"last": None}, "results.json: `last` must be an object. Received: None"),
        ("no results", "the run has not ended; the same bin/train command resumes it"),
        ("damaged", "is not valid JSON"),
    ],
)
def test_runs_that_do_not_compare_get_a_sentence(compared_runs, tmp_path, change, message, capsys):
    other = tmp_path / "other"
    shutil.copytree(compared_runs[1], other)
    file = other / "results.json"
    if change == "no results":
        file.unlink()
    elif change == "damaged":
        file.write_text("{")
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    arguments = [str(compared_runs[0]), str(other), f"--results_dir={tmp_path / 'results'}"]
    assert cli.main("report", arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()


DELETED = "deleted"


def into(path, value):
    """A function that puts a value at a path of keys, or removes the last key."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        if value == DELETED:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("last", "per_class_error"), [1.0], "`last.per_class_error` must be a list of 10. Rec"),
        (("last", "per_class_error", 2), -1, "`last.per_class_error[2]` must be a number from 0 t"),
        (("last", "mean_error"), -50, "`last.mean_error` must be a number from 0 to 100. Receiv"),
        (("last", "mean_error"), 500, "`last.mean_error` must be a number from 0 to 100. Receiv"),
        (("best", "mean_error"), float("inf"), "`best.mean_error` must be a number from 0 to 100"),
        (("last", "mean_error"), float("nan"), "`last.mean_error` must be a number from 0 to 100"),
        (("last", "few_error"), "7", "`last.few_error` must be a number from 0 to 100. Received"),
        (("last", "mean_error"), DELETED, "results.json lacks the key `last.mean_error`"),
        (("best",), [], "`best` must be an object. Received: []"),
        (("method",), DELETED, "results.json lacks the key `method`"),
        (("dataset",), DELETED, "results.json lacks the key `dataset`"),
        (("counts",), None, "`counts` must be a list of 10. Received: None"),
        (("config", "imbalance_ratio"), None, "`config.imbalance_ratio` must be a number of at le"),
        (("seed",), 1.5, "`seed` must be a whole number of at least 0. Received: 1.5"),
        (("seed",), True, "`seed` must be a whole number of at least 0. Received: True"),
        (("counts",), [1, 2], "`counts` must be a list of 10. Received: [1, 2]"),
        (("counts", 0), 0, "`counts[0]` must be a whole number of at least 1. Received: 0"),
        (("counts", 0), 10**400, "`counts[0]` must be a whole number of at least 1. Received: 100"),
        (("class_names",), ["a", "b"], "`last.per_class_error` must be a list of 2. Received: ["),
        (("class_names", 3), 3, "`class_names[3]` must be a string. Received: 3"),
        (("class_names", 3), "\ud800", "must hold finite numbers and valid strings only"),
        (("dataset",), "../../esc", "`dataset` must be a name without path separators. Received"),
        (("dataset",), "..", "`dataset` must be a name without path separators. Received: '..'"),
        (("dataset",), "", "`dataset` must be a name without path separators. Received: ''"),
        (("dataset",), "a\0b", "`dataset` must be a name without path separators. Received"),
        (("dataset",), "a\\b", "`dataset` must be a name without path separators. Received"),
        (("dataset",), 7, "`dataset` must be a name without path separators. Received: 7"),
        (("config",), [], "`config` must be an object. Received: []"),
        (("config", "imbalance_ratio"), "x", "`config.imbalance_ratio` must be a number of at le"),
        (("config", "max_margin"), 5, "`config.max_margin` must be a number from 0 to 2. Received"),
        (("config", "epochs"), [[1]], "`config.epochs` must be a whole number of at least 1"),
        (("config", "scale"), float("nan"), "`config.scale` must be a number from 0.001 to 1e6"),
        (("config", "momentum"), float("nan"), "must hold finite numbers and valid strings only"),
        (
            ("versions",),
            {"keras": 3},
            "`versions` must be an object of strings. Received: {'keras'",
        ),
        (("seconds",), float("inf"), "`seconds` must be a finite number of at least 0. Received"),
        (("replicas",), 2, "`replicas` must be a list. Received: 2"),
    ],
)
def test_impossible_results_are_refused_before_anything_is_written(
    compared_runs, tmp_path, path, value, message, capsys
):
    file = tmp_path / "digits.json"
    tables.write(compared_runs, results_dir=tmp_path, output_dir=tmp_path, figures=["errors"])
    before = sorted(tmp_path.rglob("*")), file.read_bytes()
    bad = copied(compared_runs, tmp_path / "bad", change=into(path, value))
    capsys.readouterr()
    arguments = [str(bad), f"--results_dir={tmp_path}", f"--output_dir={tmp_path / 'o'}"]
    code = cli.main("report", [*arguments, "--nodiagnose"])
    error = capsys.readouterr().err
    shutil.rmtree(bad)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1
    assert str(bad / "results.json") in error
    assert (sorted(tmp_path.rglob("*")), file.read_bytes()) == before


@pytest.mark.parametrize("depth", [300, 600, 960, 5000])
def test_settings_nested_to_any_depth_are_shown_or_refused(compared_runs, tmp_path, depth):
    bad = copied(compared_runs, tmp_path / "bad", change=into(("config", "momentum"), "DEEP"))
    file = bad / "results.json"
    file.write_text(file.read_text().replace('"DEEP"', "[" * depth + "]" * depth))
    try:
        tables.write([bad], results_dir=tmp_path, output_dir=tmp_path, figures=["errors"])
    except ValueError as error:
        assert depth > 300 and str(file) in str(error)
    else:
        assert depth < 960


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("splits",), DELETED, "diagnosis.json lacks the key"),
        (("splits",), [], "`splits` must be an object. Received: []"),
        (("splits", "test"), 1, "`splits.test` must be an object. Received: 1"),
        (("splits", "test", "n"), DELETED, "lacks the key `splits.test.n`"),
        (
            ("splits", "test", "confusion", 3),
            [1],
            "`splits.test.confusion[3]` must be a list of 10",
        ),
        (("splits", "test", "most_confused"), [[0, 10, 1]], "[0][1]` must be a class from 0 to 9"),
        (("splits", "train", "margins", "min"), [0.1], "`splits.train.margins.min` must be a list"),
        (("splits", "train", "margins", "min", 0), float("nan"), "must be a finite number. Rec"),
        (("splits", "test", "reliability", "count"), [], "`splits.test.reliability` must have one"),
        (("splits", "test", "reliability", "ece"), 7, "`splits.test.reliability.ece` must be a nu"),
        (("splits", "train", "warnings"), [0], "`splits.train.warnings[0]` must be a string"),
    ],
)
def test_an_impossible_diagnosis_is_refused(compared_runs, tmp_path, path, value, message):
    bad = copied(compared_runs, tmp_path / "bad", "diagnosis.json", into(path, value))
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        tables.write([bad], results_dir=tmp_path)
    assert str(bad / "diagnosis.json") in str(refusal.value)
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must hold a JSON object"),
        ("{}", "lacks the key `runs`"),
        ('{"runs": null}', "`runs` must be a list. Received: None"),
        ('{"runs": {"a": 1}}', "`runs` must be a list. Received: {'a': 1}"),
        ('{"runs": [7]}', "`runs[0]` must be an object. Received: 7"),
        ('{"runs": [{}]}', "lacks the key `runs[0].last`"),
        ('{"runs": [], "dataset": "../x"}', "`dataset` must be a name without path separators"),
        ('{"runs": [], "class_names": "ab"}', "`class_names` must be a list. Received: 'ab'"),
        ("[" * 100_000 + "]" * 100_000, "is not valid JSON"),
        ("\xff", "is not valid JSON"),
    ],
)
def test_a_results_file_of_the_wrong_form_gets_a_sentence(text, message, tmp_path, capsys):
    file = tmp_path / "digits.json"
    file.write_bytes(text.encode("latin-1"))
    assert cli.main("report", [str(file), f"--output_dir={tmp_path / 'o'}"]) == 2
    error = capsys.readouterr().err
    assert str(file) in error and message in error and len(error.strip().splitlines()) == 1
    assert file.read_bytes() == text.encode("latin-1") and list(tmp_path.iterdir()) == [file]


def test_a_results_file_is_checked_before_runs_are_merged_into_it(compared_runs, tmp_path):
    file = tmp_path / "digits.json"
    tables.write(compared_runs, results_dir=tmp_path, output_dir=tmp_path, figures=["errors"])
    content = json.loads(file.read_text())
    content["runs"][1]["last"]["mean_error"] = 500
    file.write_text(json.dumps(content))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=re.escape("`runs[1].last.mean_error` must be a number")):
        tables.write(compared_runs, results_dir=tmp_path, figures=["errors"])
    assert file.read_bytes() == before


@pytest.mark.parametrize("row", ["1,2,3,4", "x,y", "1,,,,,,,,,"])
def test_a_history_of_the_wrong_form_gets_a_sentence(compared_runs, tmp_path, row):
    shutil.copytree(compared_runs[0], tmp_path / "bad")
    (tmp_path / "bad" / "history.csv").write_text(f"epoch,loss\n{row}\n")
    with pytest.raises(ValueError, match=r"bad/history\.csv"):
        tables.write([tmp_path / "bad"], results_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_nothing_is_written_if_a_figure_cannot_be_drawn(compared_runs, tmp_path, monkeypatch):
    section = SECTIONS["margins"]._replace(draw=lambda runs, canvas: 1 / 0)
    monkeypatch.setitem(SECTIONS, "margins", section)
    with pytest.raises(ZeroDivisionError):
        tables.write(compared_runs, results_dir=tmp_path / "r", output_dir=tmp_path / "o")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_read_only_place_costs_the_results_file_only_and_a_full_disk_names_the_file(
    compared_runs, tmp_path, code, monkeypatch, capsys
):
    def refuse(path, text):
        # As an open that is refused, which names the temporary file, or a disk that is full.
        raise OSError(code, "no", *([] if code == errno.ENOSPC else [str(path)]))

    monkeypatch.setattr(Path, "write_text", refuse)
    arguments = [f"--results_dir={tmp_path / 'r'}", f"--output_dir={tmp_path / 'o'}"]
    found = cli.main("report", [*map(str, compared_runs), *arguments, "--figures=errors"])
    printed, error = capsys.readouterr()
    file = tmp_path / "r" / "digits.json"
    if code == errno.ENOSPC:
        assert found == 2 and error == f"report: {file}: {os.strerror(code)}.\n"
        return
    assert found == 0 and "| ERM | last epoch | **" in printed
    assert error.splitlines()[0] == f"{file} does not keep these runs: {os.strerror(code)}."
    assert (tmp_path / "o" / "errors.png").exists()


def test_a_full_disk_under_the_page_is_named(compared_runs, tmp_path, monkeypatch, capsys):
    def refuse(path, data):
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    arguments = [f"--results_dir={tmp_path}", f"--output_dir={tmp_path / 'o'}", "--figures=errors"]
    assert cli.main("report", [*map(str, compared_runs), *arguments]) == 2
    assert (
        capsys.readouterr().err
        == f"report: {tmp_path / 'o' / 'errors.png'}: {os.strerror(errno.ENOSPC)}.\n"
    )
    assert not any((tmp_path / "o").iterdir())


def test_what_keeps_a_run_from_working_is_said_below_the_table():
    silent, told = (made_up_result([9, 8], "ldam_drw", seed) for seed in (0, 1))
    for run, warnings in ((silent, []), (told, ["All 17 predictions are class 0: …"])):
        run.diagnosis["splits"]["train"] = {"warnings": warnings}
    notes = paper.headline([silent, told]).notes
    assert [note for note in notes if "Warning" in note] == [
        "Warning, LDAM-DRW, seed 1: All 17 predictions are class 0: …"
    ]


def test_a_read_only_run_without_a_diagnosis_is_reported_on(
    finished_run, tmp_path, monkeypatch, capsys
):
    def refuse(path, values):
        raise OSError(errno.EACCES, "no")

    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / "diagnosis.json").unlink(missing_ok=True)
    monkeypatch.setattr("keras_ldam.experiments.training.write_json", refuse)
    arguments = [f"--results_dir={tmp_path}", f"--output_dir={tmp_path}", "--figures=errors"]
    assert cli.main("report", [str(run), *arguments]) == 0
    printed, error = capsys.readouterr()
    assert "| LDAM-DRW | last epoch | **" in printed
    assert error.count(f"{run / 'diagnosis.json'} was not written: no.") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to report on: name run folders, or a results file"),
        (["nowhere"], "no such folder"),
        (["empty.json"], "nothing to report on: empty.json holds no run"),
        (["empty.json", "--figures=pie"], "unknown figure 'pie'; known: errors, margins"),
    ],
)
def test_what_holds_no_runs_gets_a_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text('{"dataset": "digits", "runs": []}')
    assert cli.main("report", arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert len(list(tmp_path.iterdir())) == 1


# ----------------------------------------------------------------------------- tables


def test_a_table_has_means_and_deviations_over_seeds_beside_the_papers_numbers(tmp_path):
    runs = [made_up_result([1250, 12500], "erm", seed, "imdb") for seed in (0, 1, 2)]
    errors = [run.results["last"]["mean_error"] for run in runs]
    table = paper.headline(runs)
    ours = next(row for row in table.rows if row.source == "ours, last epoch")
    expected = f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f} (n=3)"
    assert ours.cells[2] == expected and ours.strong
    quoted = next(row for row in table.rows if (row.method, row.source) == ("ERM", "paper"))
    assert quoted.cells == ("2.86", "70.78", "36.82")
    assert f"**{expected}**" in markdown(table)
    merge(runs, tmp_path / "imdb.json")
    tables.write([tmp_path / "imdb.json"], output_dir=tmp_path)
    text = (tmp_path / "index.html").read_text("utf-8")
    assert f"{np.mean(errors):.2f} %" in text and "seeds 0–2, n = 3; paper: 36.82 %" in text


def test_two_classes_have_the_best_threshold_and_auc_where_they_were_measured():
    run = made_up_result([9, 90], "erm", 0, "imdb", evaluate_every=5, epochs=5)
    before = paper.headline([run], only_ours=True)
    assert [column.title for column in before.columns] == [
        "error on positive", "error on negative", "mean error",
    ]  # fmt: skip
    run.results["last"].update(oracle_error=12.5, auc=94.25)
    table = paper.headline([run], only_ours=True)
    assert [column.title for column in table.columns][3:] == ["at the best threshold", "AUC"]
    # Evaluated once, it has no best epoch.
    assert [row.source for row in table.rows] == ["paper", "ours, last epoch"]
    assert table.rows[-1].cells[3:] == ("12.50 (n=1)", "94.25 (n=1)")
    assert any("was read once" in note for note in table.notes)
    assert not any("†" in note for note in table.notes)


def test_a_row_of_the_paper_without_a_number_in_these_columns_is_left_out():
    run = made_up_result([9] * 10, dataset="cifar10", imbalance_ratio=50.0)
    table = paper.headline([run], only_ours=True)
    assert [row.source for row in table.rows] == ["last epoch", "best epoch †"]
    assert not any(note.startswith("Paper") for note in table.notes)


def test_a_dataset_declares_its_columns_and_a_users_own_has_the_usual_ones():
    cifar = paper.headline([made_up_result([9] * 10, dataset="cifar10")])
    assert cifar.title == "Imbalanced CIFAR-10"
    assert [column.title for column in cifar.columns] == [
        f"{profile}, ratio {ratio}" for profile in ("long-tailed", "step") for ratio in (100, 10)
    ]
    whole = paper.headline([made_up_result([9] * 6, dataset="inaturalist2018", imbalance="none")])
    assert [column.title for column in whole.columns] == ["top-1", "top-5"]
    assert [row.source for row in whole.rows][:2] == ["paper", "ours, last epoch"]
    own = paper.headline([made_up_result([9, 8], dataset="mushrooms")])
    assert own.title == "mushrooms"
    assert [column.title for column in own.columns] == [
        "balanced error", "error on c <0> $^$", "error on c <1> $^$",
    ]  # fmt: skip


def test_for_two_classes_both_profiles_are_the_same_column():
    step, tail = (made_up_result([90, 9], imbalance=name) for name in ("step", "longtail"))
    assert step.column == tail.column == ("longtail", 100.0)
    assert made_up_result([90, 9, 9], imbalance="step").column == ("step", 100.0)


def test_a_table_says_what_its_numbers_were_computed_in_and_which_epochs_the_best_is_of():
    run = made_up_result([20, 10])
    plain = " ".join(paper.headline([run]).notes)
    assert "Ours in" not in plain and "every" not in plain
    run.results["config"] |= {"precision": "mixed_bfloat16", "evaluate_every": 10}
    notes = paper.headline([run]).notes
    assert "Ours in mixed_bfloat16." in notes
    assert any("of one epoch in 10 and the last" in note for note in notes)
    notes = paper.headline([run, made_up_result([20, 10], method="ldam_drw")]).notes
    assert "Includes runs in mixed_bfloat16: ERM." in notes
    assert not any("Not in the paper" in note for note in notes)
    compared = paper.headline([run, made_up_result([20, 10], "la"), made_up_result([20, 10], "vs")])
    assert "Not in the paper: LA, VS." in compared.notes


def test_runs_on_other_held_out_parts_do_not_compare():
    parts = [
        made_up_result([20, 10], validation_fraction=0.1),
        made_up_result([20, 10], validation_fraction=0.1, left_out=True),
        made_up_result([20, 10], validation_fraction=0.1, validation_fold=2),
    ]
    assert len({run.split for run in parts}) == 3


def test_a_second_stage_is_evaluated_once():
    assert made_up_result([20, 10], "crt", epochs=9).evaluated_once
    assert not made_up_result([20, 10], "erm", epochs=9).evaluated_once


def test_seeds_with_different_settings_are_told_apart():
    one = made_up_result([20, 10], seed=0, scale=30.0)
    same = made_up_result([20, 10], seed=1, scale=30.0)
    other = made_up_result([20, 10], seed=1, scale=10.0)
    assert collection.unlike([one, same]) == []
    stages = [made_up_result([20, 10], seed=seed, stage_one=f"erm-{seed}") for seed in (0, 1)]
    newer = made_up_result([20, 10], seed=1, scale=30.0, cutout=4)
    for runs, ends in (
        ([one, newer], "seed 1 has cutout=4, seed 0 has 0"),
        ([newer, one], "seed 0 has cutout=0, seed 1 has 4"),
    ):
        sentence = f"erm: {ends}; their mean mixes two settings."
        assert collection.unlike(runs) == [sentence]
    assert collection.unlike(stages) == []  # Each seed continues from its own first stage.
    places = [{"dataset": "a/birds.py", "jit": "on"}, {"dataset": "b/birds.py", "jit": "off"}]
    moved = [made_up_result([20, 10], seed=i, **place) for i, place in enumerate(places)]
    assert collection.unlike(moved) == []
    assert collection.unlike([one, other]) == [
        "erm: seed 1 has scale=10.0, seed 0 has 30.0; their mean mixes two settings."
    ]


# ----------------------------------------------------------------------------- records


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_the_margins_of_a_record_are_those_of_its_loss(loss):
    counts, named = [300, 80, 20, 5], losses.LOSSES[loss]
    (record,) = paper.records([made_up_result(counts, loss=loss, max_margin=0.4)])
    if not named.wants_cosines:
        assert record.demanded is None
        return
    exponent = 0.0 if loss in ("uniform_margin", "hinge") else 0.25
    np.testing.assert_array_equal(
        record.demanded, keras_ldam.margins(counts, max_margin=0.4, exponent=exponent)
    )
    (record,) = paper.records([made_up_result(counts, loss=loss, max_margin=0.0)])
    assert record.demanded is None


def test_a_record_has_the_epoch_of_a_deferred_rule_and_the_history_of_its_split():
    plain, deferred = paper.records([made_up_result([9, 8]), made_up_result([9, 8], "ldam_hg_drs")])
    assert plain.start_epoch is None and deferred.start_epoch == 3
    assert plain.history[1] == {"loss": 1.5, "error": 49.0}
    assert deferred.title == "LDAM-HG-DRS" and deferred.group == "long-tailed, ratio 100"


def test_a_config_that_changes_the_method_is_named_in_the_title():
    run = made_up_result([9, 8], "ldam_drw", loss="focal")
    assert run.method == "ldam_drw+focal"
    assert paper.records([run])[0].title == "LDAM-DRW (focal)"
    assert copy.copy(run).key == ("ldam_drw+focal", "longtail", 100.0, 0)
