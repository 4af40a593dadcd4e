"""Reports: tables, results files, figures of few and of many classes, a user's own models."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import keras
import matplotlib.image
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

import keras_ldam
from keras_ldam import evaluation, report
from keras_ldam.experiments import cli
from keras_ldam.experiments.config import METHODS
from keras_ldam.experiments.tables.collection import Run
from keras_ldam.report import figures, tables
from keras_ldam.report.canvas import Canvas, looks
from keras_ldam.report.comparison import runs_of
from keras_ldam.report.page import SECTIONS, page

RESULTS = sorted((Path(__file__).parent.parent / "results").glob("*.json"))
FIGURES = ["errors", "margins", "class_errors", "groups", "curves", "confusion", "reliability"]
FIGURES += ["trade_off"]


def made_up_run(counts, method="erm", seed=0, dataset="digits", *, better=0.0):
    """A run as an evaluation would leave it, of random scores."""
    rng = np.random.default_rng([seed, len(counts), len(method)])
    counts, num_classes = np.asarray(counts), len(counts)
    splits = {}
    for name, sizes in (("train", counts), ("test", np.full(num_classes, 6))):
        labels = np.repeat(np.arange(num_classes), sizes)
        margins = rng.normal(0.2 + better, 0.3, len(labels))
        right = margins > 0
        guesses = np.where(right, labels, (labels + 1) % num_classes)
        ranks = np.where(right, 0, 1)
        confidences = np.clip(0.5 + margins, 0.1, 1)
        scored = evaluation.Scored(labels, guesses, ranks, margins, confidences, "cosine")
        splits[name] = evaluation.diagnose(scored, counts)
    errors = evaluation.errors_of_ranks(ranks, labels, counts)
    loss, rule = METHODS[method]
    config = {"loss": loss, "rule": rule, "max_margin": 0.5, "start_epoch": 3}
    config |= {"imbalance": "longtail", "imbalance_ratio": 10.0 if dataset == "imdb" else 100.0}
    return Run(
        {
            "method": method, "seed": seed, "split": "test", "last": errors, "best": errors,
            "counts": counts.tolist(), "config": config, "seconds": 2.0, "parameters": 7,
            "margins": {name: split["margins"] for name, split in splits.items()},
        },
        dataset,
        tuple(f"c <{j}> $^$" for j in range(num_classes)),
        tuple({"loss": 3.0 / (1 + e), "test_mean_error": 50.0 - e} for e in range(5)),
        {"splits": splits},
    )  # fmt: skip


class Outline(HTMLParser):
    """What a page is made of: its tags, their attributes, and how they are nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    outline = Outline(text)
    assert outline.open == []
    assert "script" not in outline.tags
    names = [value for name, value in outline.attributes if name == "id"]
    assert len(names) == len(set(names))
    for name, value in outline.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")), f"the page needs {value}"
            assert not value.startswith("#") or value[1:] in names
    assert not set(re.findall(r"url\(#([^)]*)\)", text)) - set(names)
    assert "nan" not in re.sub(r'"data:[^"]*"', "", text).lower().split()
    return outline


# ----------------------------------------------------------------------------- bin/report


def test_two_runs_give_a_page_with_every_figure_and_the_same_as_png(reported):
    printed, folder = reported
    assert "| ERM | last epoch | **" in printed
    text = (folder / "index.html").read_text()
    check_page(text)
    for name in FIGURES:
        assert f'<svg id="{name}-w' in text or re.search(
            rf'<section id="{name}".*?<svg', text, re.S
        )
        assert matplotlib.image.imread(folder / f"{name}.png").std() > 0
    assert "Not shown" not in text
    assert "ERM: seed 0; LDAM-DRW: seed 0. 500 test examples." in text
    assert "417" in text and "training examples in 10 classes" in text
    assert ">DRW on<" in text
    kept = json.loads((folder / "digits.json").read_text())
    assert [run["method"] for run in kept["runs"]] == ["erm", "ldam_drw"]
    assert set(kept["runs"][0]["margins"]) == {"train", "test"}


def test_a_results_file_gives_the_figures_that_it_holds(reported, tmp_path, capsys):
    shutil.copytree(reported[1], tmp_path / "first")
    file = tmp_path / "first" / "digits.json"
    before = file.read_bytes()
    report.write([file], results_dir=tmp_path / "elsewhere", output_dir=tmp_path / "first")
    text = (tmp_path / "first" / "index.html").read_text()
    check_page(text)
    assert text.count("Not shown.") == 3
    assert "Histories are in run folders" in text
    left = {png.stem for png in (tmp_path / "first").glob("*.png")}
    assert left == set(FIGURES) - {"curves", "confusion", "reliability"}
    assert file.read_bytes() == before and not (tmp_path / "elsewhere").exists()
    output = tmp_path / "one"
    arguments = [str(file), "--figures=margins", f"--output_dir={output}"]
    assert cli.main("report", arguments) == 0
    assert [path.name for path in output.iterdir()] == ["margins.png"]
    capsys.readouterr()
    assert cli.main("report", [str(file), "--figures=curves", f"--output_dir={output}"]) == 2
    assert "figure 'curves' is not in these results" in capsys.readouterr().err


def test_a_run_anew_takes_the_place_of_the_old_and_others_stay(compared_runs, tmp_path):
    file = tmp_path / "digits.json"
    collection.merge([made_up_run([9, 8], seed=4), made_up_run([9, 8], "ldam", seed=0)], file)
    merged = collection.merge([made_up_run([9, 8], seed=4, better=5.0)], file)
    assert [(run.method, run.seed) for run in merged] == [("erm", 4), ("ldam", 0)]
    assert merged[0].results["last"]["mean_error"] == 0.0
    assert [run.key for run in collection.read_file(file)] == [run.key for run in merged]


def with_config(run, **changes):
    run.results["config"] = {**run.results["config"], **changes}
    return run


def test_a_trial_does_not_take_the_place_of_a_result(tmp_path, capsys):
    file = tmp_path / "digits.json"
    collection.merge([with_config(made_up_run([9, 8]), epochs=200)], file)
    before = file.read_bytes()
    trial = with_config(made_up_run([9, 8], better=5.0), epochs=2)
    (shown,) = collection.merge([trial], file)
    assert shown is trial and file.read_bytes() == before
    told = "erm, seed 0, is shown and not written: the file has it with epochs=200, this run has 2"
    assert told in capsys.readouterr().err
    # What is not about what is learned may differ.
    again = with_config(made_up_run([9, 8], better=5.0), epochs=200, evaluate_every=10, jit="on")
    collection.merge([again], file)
    assert collection.read_file(file)[0].results == again.results


def test_a_run_over_replicas_does_not_take_the_place_of_one_without(tmp_path, capsys):
    file = tmp_path / "digits.json"
    collection.merge([made_up_run([9, 8])], file)
    over = with_config(made_up_run([9, 8], better=5.0), strategy="cores")
    (shown,) = collection.merge([over], file)
    assert shown is over and collection.read_file(file)[0].results != over.results
    assert "not written: the file has it with several replicas=False" in capsys.readouterr().err
    assert (
        "over several replicas, with batch normalisation by each one's part of a batch: ERM."
        in (" ".join(tables.headline([over, made_up_run([9, 8], "ldam")]).notes))
    )
    # What counts is who computed its epochs, not where it ended.
    over.results["replicas"] = [1, 2]
    assert with_config(over, strategy="none").replicated
    over.results["replicas"] = [1]
    assert not with_config(over, strategy="mirrored").replicated


@pytest.mark.parametrize("names", [("oak", "elm"), ("oak", "elm", "ash")])
def test_results_on_other_images_are_not_mixed(names, tmp_path):
    file = tmp_path / "folder.json"
    one = dataclasses.replace(made_up_run([9, 8], dataset="folder"), class_names=("cat", "dog"))
    collection.merge([one], file)
    before = file.read_bytes()
    other = made_up_run([9] * len(names), "ldam", dataset="folder")
    with pytest.raises(ValueError, match="holds results on other classes, or on another split"):
        collection.merge([dataclasses.replace(other, class_names=names)], file)
    # The same names, but other images.
    again = dataclasses.replace(made_up_run([9, 7], dataset="folder"), class_names=("cat", "dog"))
    collection.merge([again], file)
    assert file.read_bytes() == before


def test_two_runs_of_one_name_and_different_settings_are_not_chosen_from(tmp_path):
    for name, epochs in (("one", 200), ("two", 5)):
        run = with_config(made_up_run([9, 8]), epochs=epochs)
        collection.merge([run], tmp_path / f"{name}.json")
    with pytest.raises(ValueError, match="seed 0, with epochs=5, and an earlier source with 200"):
        collection.gather([tmp_path / "one.json", tmp_path / "two.json"])


def test_results_files_are_shown_beside_run_folders_and_not_copied(compared_runs, tmp_path):
    theirs = tmp_path / "theirs" / "digits.json"
    first = collection.gather(compared_runs)[0]
    run = made_up_run(first.results["counts"], "cb_rs", seed=7)
    collection.merge([dataclasses.replace(run, class_names=first.class_names)], theirs)
    table = report.write(
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


def test_a_row_of_the_paper_without_a_number_in_these_columns_is_left_out():
    run = with_config(made_up_run([9] * 10, dataset="cifar10"), imbalance_ratio=50.0)
    table = tables.headline([run], only_ours=True)
    assert [row.source for row in table.rows] == ["last epoch", "best epoch †"]
    assert not any(note.startswith("Paper") for note in table.notes)


@pytest.mark.parametrize("change", [{"steps_per_epoch": 5}, {"validation_fraction": 0.1}])
def test_trials_and_errors_on_held_out_examples_are_not_results(tmp_path, change, capsys):
    run = with_config(made_up_run([9, 8]), **change)
    assert collection.merge([run], tmp_path / "digits.json") == [run]
    assert not (tmp_path / "digits.json").exists()
    assert "not written" in capsys.readouterr().err
    collection.merge([made_up_run([9, 8], "ldam")], tmp_path / "digits.json")
    shown = collection.merge([run], tmp_path / "digits.json")
    assert [each.method for each in shown] == (["erm"] if run.held_out else ["erm", "ldam"])


def test_the_validation_images_of_a_release_are_what_its_results_are_about(tmp_path):
    run = made_up_run([9, 8], dataset="inaturalist2018")
    run.results["split"] = "validation"
    collection.merge([run], tmp_path / "inaturalist2018.json")
    assert collection.read_file(tmp_path / "inaturalist2018.json")[0].key == run.key


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.name)
def test_the_results_in_the_repository_can_be_reported_on(file, tmp_path):
    table = report.write([file], output_dir=tmp_path, figures=["errors", "class_errors"])
    assert "last epoch | **" in table
    assert len(list(tmp_path.iterdir())) == 2


def test_the_margins_on_the_first_page_of_the_documents_are_in_the_results(tmp_path):
    file = next(file for file in RESULTS if file.name == "digits.json")
    report.write([file], output_dir=tmp_path, figures=["margins"])
    runs = {(run.method, run.seed): run for run in collection.read_file(file)}
    assert set(runs) == {(m, seed) for m in ("erm", "ldam_drw") for seed in (0, 1, 2)}
    needed = keras_ldam.margins(runs["erm", 0].counts, 0.5)
    reached = {
        m: np.array(runs[m, 0].results["margins"]["train"]["min"]) for m in ("erm", "ldam_drw")
    }
    # What the picture is there to show: every class has the margin that LDAM asks for, under LDAM.
    assert np.all(reached["ldam_drw"] >= needed)
    assert np.all(reached["erm"][-5:] < needed[-5:])


def test_a_page_that_is_no_report_is_left_alone(compared_runs, tmp_path):
    folder = tmp_path / "o"
    folder.mkdir()
    (folder / "index.html").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"index\.html is there and is no report"):
        report.write(compared_runs[:1], results_dir=tmp_path, output_dir=folder)
    with pytest.raises(ValueError, match=r"index\.html is there and is no report"):
        report.compare({}, None, None, folder)
    assert (folder / "index.html").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o"]


def test_a_figure_that_is_not_drawn_is_removed_from_a_report_only(tmp_path):
    file = tmp_path / "digits.json"
    collection.merge([made_up_run([9, 8])], file)  # Without a history.
    curves = tmp_path / "o" / "curves.png"
    curves.parent.mkdir()
    curves.write_bytes(b"mine")
    for left in (True, False):
        report.write([file], results_dir=tmp_path, output_dir=curves.parent)
        assert curves.exists() == left


def test_one_run_is_reported_on_alone(compared_runs, tmp_path):
    report.write(compared_runs[:1], results_dir=tmp_path, output_dir=tmp_path / "o")
    check_page((tmp_path / "o" / "index.html").read_text())


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
            "evaluated on held-out training examples and an earlier run on its test split",
        ),
        ({"class_names": ["a", "b"]}, "has not the classes of an earlier run"),
        ({"last": None}, "is not a run's results"),
        ("no results", "the run has not ended; the same bin/train command resumes it"),
        ("damaged", "is not valid JSON; it has been damaged"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to report on: name run folders, or a results file"),
        (["nowhere"], "no such folder"),
        (["text.json"], "text.json is not a results file"),
        (["empty.json"], "nothing to report on: empty.json holds no run"),
        (["text.json", "--figures=pie"], "unknown figure 'pie'; known: errors, margins"),
    ],
)
def test_what_holds_no_runs_gets_a_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.json").write_text("[1]")
    (tmp_path / "empty.json").write_text('{"dataset": "digits", "runs": []}')
    assert cli.main("report", arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert len(list(tmp_path.iterdir())) == 2


# ----------------------------------------------------------------------------- tables


def test_a_table_has_means_and_deviations_over_seeds_beside_the_papers_numbers():
    runs = [made_up_run([1250, 12500], "erm", seed, "imdb") for seed in (0, 1, 2)]
    errors = [run.results["last"]["mean_error"] for run in runs]
    table = tables.headline(runs)
    ours = next(row for row in table.rows if row.source == "ours, last epoch")
    expected = f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f} (n=3)"
    assert ours.cells[2] == expected and ours.strong
    paper = next(row for row in table.rows if (row.method, row.source) == ("ERM", "paper"))
    assert paper.cells == ("2.86", "70.78", "36.82")
    assert f"**{expected}**" in tables.markdown(table)
    text = page(runs, runs)
    check_page(text)
    assert "c &lt;0&gt; $^$" in text
    assert f"{np.mean(errors):.2f} %" in text and "seeds 0–2, n = 3; paper: 36.82 %" in text


def test_a_table_says_what_its_numbers_were_computed_in_and_which_epochs_the_best_is_of():
    run = made_up_run([20, 10])
    plain = " ".join(tables.headline([run]).notes)
    assert "Ours in" not in plain and "every" not in plain
    run.results["config"] |= {"precision": "mixed_bfloat16", "evaluate_every": 10}
    notes = tables.headline([run]).notes
    assert "Ours in mixed_bfloat16." in notes
    assert any("of one epoch in 10 and the last" in note for note in notes)
    notes = tables.headline([run, made_up_run([20, 10], method="ldam_drw")]).notes
    assert "Some or all of ours in mixed_bfloat16: ERM." in notes


def test_seeds_with_different_settings_are_told_apart(capsys):
    one, two = made_up_run([20, 10], seed=0), made_up_run([20, 10], seed=1)
    two.results["config"]["scale"] = one.results["config"]["scale"] = 30.0
    assert collection.unlike([one, two]) == []
    two.results["config"]["scale"] = 10.0
    assert collection.unlike([one, two]) == [
        "erm: seed 1 has scale=10.0, seed 0 has 30.0; their mean mixes two settings."
    ]


# ----------------------------------------------------------------------------- figures


@pytest.mark.parametrize("width", [8.8, 3.7])
@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_every_figure_is_drawn_whatever_the_number_of_classes(num_classes, width):
    counts = np.linspace(300, 5, num_classes).astype(int)
    runs = [made_up_run(counts, "erm"), made_up_run(counts, "ldam_drw", better=0.1)]
    for name in FIGURES:
        canvas = Canvas(width)
        with canvas.style():
            figure = SECTIONS[name].draw(runs, canvas)
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert panels
        for axes in panels:
            assert axes.has_data(), name
            assert axes.get_xlabel(), name
            # Methods stand at the left of errors under their names.
            assert axes.get_ylabel() or name == "errors", name
        assert figure.get_size_inches()[0] == width


def data_limits(axes):
    return [np.asarray(line.get_xydata(), float) for line in axes.lines if len(line.get_xydata())]


def test_no_panel_of_errors_leaves_its_points_outside():
    runs = [made_up_run([200, 60, 8], "erm"), made_up_run([200, 60, 8], "erm", 1, better=-0.3)]
    figure = figures.errors(runs, Canvas())
    for axes in figure.axes:
        low, high = axes.get_xlim()
        for points in data_limits(axes):
            assert np.all((points[:, 0] >= low) & (points[:, 0] <= high))


@pytest.mark.parametrize(("errors", "from_zero"), [((20.0, 60.0), True), ((50.0, 60.0), False)])
def test_errors_begin_at_zero_unless_most_of_the_axis_were_empty(errors, from_zero):
    runs = [made_up_run([20, 10], "erm"), made_up_run([20, 10], "ldam_drw")]
    for run, error in zip(runs, errors, strict=True):
        run.results["last"]["mean_error"] = error
        run.results["last"]["per_class_error"] = [error, error]
    low, high = figures.errors(runs, Canvas()).axes[0].get_xlim()
    assert (low <= 0) == from_zero and low < errors[0] and high > errors[1]


def test_margins_are_drawn_where_they_are_beside_the_curve_that_the_loss_asks_for():
    counts = [300, 80, 20, 5]
    runs = [made_up_run(counts, "erm"), made_up_run(counts, "ldam_drw")]
    train, test = figures.margins(runs, Canvas()).axes
    expected = np.asarray(keras_ldam.margins(counts, 0.5))
    dashed = next(line for line in train.lines if line.get_label().startswith("Δ = C/⁴√n"))
    np.testing.assert_allclose(dashed.get_ydata(), expected, rtol=1e-5)
    assert f"C = {0.5 * 5**0.25:.2f}" in dashed.get_label()
    for axes, split in ((train, "train"), (test, "test")):
        drawn = next(line for line in axes.lines if line.get_label() == "LDAM-DRW")
        np.testing.assert_allclose(drawn.get_ydata(), runs[1].results["margins"][split]["min"])
    labels = [label.get_text() for label in train.get_xticklabels()]
    assert labels == [f"c <{j}> $^$\n{n}" for j, n in enumerate(counts)]


def test_a_confusion_matrix_goes_from_the_most_frequent_class_to_the_rarest():
    runs = [made_up_run([5, 300, 20])]
    panel = figures.confusion(runs, Canvas()).axes[0]
    cells = np.array(runs[0].diagnosis["splits"]["test"]["confusion"])
    order = [1, 2, 0]
    np.testing.assert_allclose(panel.images[0].get_array(), cells[order][:, order] / 6 * 100)
    assert [t.get_text() for t in panel.get_xticklabels()] == [f"c <{j}> $^$" for j in order]


def test_curves_pass_over_the_epochs_that_were_not_evaluated():
    run = made_up_run([9, 8])
    for row in run.history[::2]:
        del row["test_mean_error"]
    loss, error = figures.curves([run], Canvas()).axes
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(error.lines[0].get_xdata()) == [2, 4]
    assert list(error.lines[0].get_ydata()) == [49.0, 47.0]


def test_curves_show_the_epoch_at_which_the_rule_came_on():
    for axes in figures.curves([made_up_run([9, 8], "ldam_drw")], Canvas()).axes:
        line = next(line for line in axes.lines if len(set(line.get_xdata())) == 1)
        assert line.get_xdata()[0] == 3.5  # Between the third epoch and the fourth.
        assert [text.get_text() for text in axes.texts] == ["DRW on"]


def test_methods_are_told_apart_by_colour_and_by_marker():
    names = ["erm", "ldam", "ce_drw", "ldam_drw", "rw"]
    given = list(looks([made_up_run([9, 8], name) for name in names]).values())
    assert len({colour for colour, _, _ in given}) == len(names)
    assert len({marker for _, marker, _ in given}) == len(names)


# ----------------------------------------------------------------------------- own models


@pytest.fixture(scope="module")
def own():
    rng = np.random.default_rng(3)
    y, y_test = np.repeat([0, 1, 2], [150, 40, 10]), np.repeat([0, 1, 2], 20)
    centres = rng.normal(size=(3, 5))
    x, x_test = ((centres[c] + rng.normal(size=(len(c), 5))).astype("float32") for c in (y, y_test))
    counts = np.bincount(y)

    def model(head, loss):
        found = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "tanh"), head])
        found.compile("adam", loss, metrics=[keras_ldam.ClassErrors(counts)])
        return found

    plain = model(keras.layers.Dense(3, "softmax"), "sparse_categorical_crossentropy")
    ldam = model(keras_ldam.CosineDense(3), keras_ldam.LDAM(counts, max_margin=0.4))
    history = ldam.fit(
        x, y, epochs=3, verbose=0, validation_data=(x_test, y_test),
        callbacks=[keras_ldam.DRW(start_epoch=1)],
    )  # fmt: skip
    return {"mine": plain, "LDAM-DRW": ldam}, (x, y), (x_test, y_test), history


def test_models_of_ones_own_give_the_same_page(own, tmp_path, capsys):
    models, train, test, history = own
    table = report.compare(
        models, train, test, tmp_path, class_names=["a", "b & c", "d"],
        histories={"LDAM-DRW": history}, title="Mine <3",
    )  # fmt: skip
    text = (tmp_path / "index.html").read_text()
    check_page(text)
    assert "<h1>Mine &lt;3</h1>" in text and "b &amp; c" in text
    assert "Not shown" not in text and ">DRW on<" in text
    assert {file.stem for file in tmp_path.glob("*.png")} == set(FIGURES)
    guesses = models["mine"].predict_on_batch(test[0]).argmax(axis=1)
    error = 100 * (1 - balanced_accuracy_score(test[1], guesses))
    assert f"| mine | as given | **{error:.2f}**" in table
    assert "C = 0.71" in text  # 0.4 · 10^(1/4)


@pytest.mark.parametrize("form", ["column", "one-hot", "dictionary"])
def test_labels_and_examples_may_have_the_forms_that_keras_takes(own, tmp_path, form, monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *args: None)
    models, (x, y), (x_test, y_test), _ = own
    model = models["mine"]
    if form == "dictionary":
        entry = keras.Input((5,), name="features")
        model = keras.Model({"features": entry}, model(entry))
        given, given_test = ({"features": x}, y), ({"features": x_test}, y_test)
    else:
        labels = {"column": lambda c: c[:, None], "one-hot": lambda c: np.eye(3)[c]}[form]
        given, given_test = (x, labels(y)), (x_test, labels(y_test))
    table = report.compare({"mine": model}, given, given_test, tmp_path / "a")
    assert table == report.compare({"mine": models["mine"]}, (x, y), (x_test, y_test), tmp_path)


def test_a_cosine_head_of_unknown_scale_is_asked_for_it(own, tmp_path, monkeypatch):
    models, train, test, _ = own
    bare = keras.Sequential(models["LDAM-DRW"].layers)
    monkeypatch.setattr(report, "_draw", lambda *args: None)
    with pytest.raises(ValueError, match=r"'bare' gives cosines.*give scale"):
        report.compare({"bare": bare}, train, test, tmp_path)
    report.compare({"bare": bare}, train, test, tmp_path, scale=30.0)


@pytest.mark.parametrize("scale", [None, 10.0])
def test_a_nested_models_probabilities_are_scaled_too(own, scale):
    models, train, test, _ = own
    flat, entry = models["LDAM-DRW"], keras.Input((5,))
    nested = keras.Model(entry, flat(entry))
    nested.compile(loss=flat.loss)
    settings = {"class_names": None, "histories": None, "title": ""}
    both = {"flat": flat, "nested": nested}
    one, two = (run.diagnosis for run in runs_of(both, train, test, scale=scale, **settings))
    assert one == two
    (other,) = runs_of({"flat": flat}, train, test, scale=20.0, **settings)
    assert one != other.diagnosis


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(models={}), "models is empty"),
        (lambda a: a.update(train=a["train"][0]), "train must be a pair"),
        (lambda a: a.update(train=(a["train"][0], a["train"][1][:-1])), "199 labels for 200 exam"),
        (lambda a: a.update(train=(a["train"][0], a["train"][1] * 2)), "class 1 has 0"),
        (lambda a: a.update(test=(a["test"][0], a["test"][1] - 1)), "must not be negative"),
        (lambda a: a.update(test=(a["test"][0], a["test"][1] + 0.5)), "must be whole numbers"),
        (
            lambda a: a.update(test=(a["test"][0], a["test"][1].astype(str))),
            "must be whole numbers",
        ),
        (lambda a: a.update(class_names=["a", "b"]), "names 2 classes, but there are labels up to"),
        (lambda a: a.update(class_names=list("abcd")), "class 3 has 0"),
        (lambda a: a.update(histories={"yours": {}}), "histories names 'yours'"),
        (lambda a: a.update(histories={"mine": {"loss": [1], "x": []}}), "lists of one length"),
    ],
)
def test_arrays_that_do_not_fit_get_a_sentence_and_no_page(own, tmp_path, change, message):
    models, train, test, _ = own
    arguments = {"models": {"mine": models["mine"]}, "train": train, "test": test}
    change(arguments)
    with pytest.raises(ValueError, match=message):
        report.compare(output_dir=tmp_path / "o", **arguments)
    assert not (tmp_path / "o").exists()
