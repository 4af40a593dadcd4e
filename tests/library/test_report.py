"""Reports: tables and figures of few and of many classes, the page, a user's own models."""

import dataclasses
import re
import sys
from html.parser import HTMLParser

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from made_runs import made_up_run
from sklearn.metrics import balanced_accuracy_score

import keras_ldam
from keras_ldam import evaluation, losses, report
from keras_ldam.report import figures, tables
from keras_ldam.report.canvas import Canvas, looks
from keras_ldam.report.comparison import runs_of, runs_of_guesses
from keras_ldam.report.page import SECTIONS


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


# ----------------------------------------------------------------------------- the page


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes far longer than the text of a page."""
    monkeypatch.setattr(report.canvas, "png", lambda *_: None)
    monkeypatch.setattr(sys.modules["keras_ldam.report.page"], "svg", lambda *_: None)


def test_two_runs_give_a_page_with_every_figure_and_the_same_as_png(tmp_path):
    runs = [made_up_run([200, 60, 8]), made_up_run([200, 60, 8], "LDAM-DRW", start_epoch=3)]
    files = report.draw(runs, tables.plain(runs, "Mine <3"))
    report.save(files, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    text = (tmp_path / "index.html").read_text("utf-8")
    check_page(text)
    assert "<h1>Mine &lt;3</h1>" in text and "c &lt;0&gt; $^$" in text
    for name in SECTIONS:
        assert f'<svg id="{name}-w' in text or re.search(
            rf'<section id="{name}".*?<svg', text, re.S
        )
        assert matplotlib.image.imread(tmp_path / f"{name}.png").std() > 0
    assert "Not shown" not in text and ">DRW on<" in text
    assert "ERM: seed 0; LDAM-DRW: seed 0. 18 test examples." in text


def test_what_runs_do_not_hold_is_named_on_the_page_and_refused_as_a_figure():
    runs = [made_up_run([30, 25], history=(), diagnosis=None, margins={})]
    files = report.draw(runs, tables.plain(runs, "Mine"))
    text = files["index.html"].decode()
    check_page(text)
    assert text.count("Not shown.") == 5
    assert set(files) == {"errors.png", "class_errors.png", "trade_off.png", "index.html"}
    with pytest.raises(ValueError, match="figure 'curves' is not in these results"):
        report.draw(runs, tables.plain(runs, "Mine"), figures=["curves"])
    with pytest.raises(ValueError, match="unknown figure 'pie'; known: errors, margins"):
        report.draw(runs, tables.plain(runs, "Mine"), figures=["pie"])


def test_no_figure_named_is_the_page(without_figures):
    runs = [made_up_run([30, 25])]
    assert set(report.draw(runs, tables.plain(runs, "Mine"), figures=[])) == {"index.html"}


def test_seeds_and_published_errors_stand_beside_the_mean_on_the_page(without_figures):
    published = {("step", "mean_error"): 36.82}
    runs = [
        made_up_run([1250, 125], seed=seed, group="step", published=published) for seed in range(3)
    ]
    errors = [run.errors["mean_error"] for run in runs]
    text = report.draw(runs, tables.plain(runs[:1], "Mine"))["index.html"].decode()
    check_page(text)
    assert f"{np.mean(errors):.2f} %" in text and "seeds 0–2, n = 3; paper: 36.82 %" in text


def test_captions_name_the_runs_that_a_figure_draws():
    titles = ("ERM", "CE-DRW", "LDAM", "LDAM-DRW")
    runs = [made_up_run([200, 60, 8], title, seed=s) for title in titles for s in (0, 1)]
    runs = [dataclasses.replace(run, margins={}) if run.title == "LDAM" else run for run in runs]
    text = report.draw(runs, tables.plain(runs, "Mine"))["index.html"].decode()
    caption = {
        name: re.search(f'id="{name}".*?<figcaption>(.*?)</figcaption>', text, re.S)[1]
        for name in ("margins", "confusion", "reliability")
    }
    assert "ERM: seed 0; CE-DRW: seed 0; LDAM-DRW: seed 0." in caption["margins"]
    assert "ERM: seed 0; LDAM-DRW: seed 0." in caption["confusion"]
    assert "LDAM: seed 0" in caption["reliability"]


def test_the_page_summarizes_every_method_and_says_which_figures_leave_some_out(
    without_figures, monkeypatch
):
    monkeypatch.setattr(sys.modules["keras_ldam.report.page"], "svg", lambda *_: "<svg></svg>")
    titles = ("ERM", "RW", "CE-DRW", "LDAM", "LDAM-DRW", "LA")
    runs = [made_up_run([200, 60, 8], title, settings={"epochs": 9}) for title in titles]
    text = report.draw(runs, tables.plain(runs, "Mine"))["index.html"].decode()
    for title in titles:
        assert f"<dt>{title}</dt>" in text and f"<th scope=col>{title}</th>" in text
    assert "2 more methods are in the table." in text


def test_measures_of_which_more_is_better_are_no_errors():
    run = made_up_run([200, 60, 8])
    measures = (("mean_error", "balanced error"), ("auc", "AUC"))
    run = dataclasses.replace(run, measures=measures, errors={**run.errors, "auc": 90.0})
    drawn = figures.errors([run], Canvas(8.8))
    assert [axes.get_title() for axes in drawn.axes] == ["balanced error"]


def test_a_page_that_is_no_report_is_left_alone(tmp_path):
    (tmp_path / "index.html").write_bytes(b"mine")
    for write in (lambda: report.save({"index.html": b""}, tmp_path), lambda: report.compare(
        {}, None, None, tmp_path
    )):  # fmt: skip
        with pytest.raises(ValueError, match=r"index\.html exists and is not a report"):
            write()
    assert (tmp_path / "index.html").read_bytes() == b"mine"


def test_a_figure_that_is_not_drawn_is_removed_from_a_report_only(tmp_path, without_figures):
    runs = [made_up_run([9, 8], history=())]
    files = report.draw(runs, tables.plain(runs, "Mine"))
    (tmp_path / "curves.png").write_bytes(b"mine")
    for left in (True, False):
        report.save(files, tmp_path)
        assert (tmp_path / "curves.png").exists() == left


def test_names_in_any_script_are_drawn_without_a_warning(tmp_path):
    runs = [made_up_run([9, 8], "模型", class_names=("猫|", "👍"))]
    table = tables.plain(runs, "图")
    assert "猫|" in report.draw(runs, table)["index.html"].decode()
    assert "error on 猫\\|" in tables.markdown(table)


# ----------------------------------------------------------------------------- tables


def test_a_cell_has_mean_deviation_and_number():
    errors = [20.0, 22.0, 27.0]
    cell = tables.spread(errors)
    assert cell == (np.mean(errors), np.std(errors, ddof=1), 3)
    assert str(cell) == "23.00 ± 3.61 (n=3)"
    assert str(tables.spread(errors[:1])) == "20.00 (n=1)"


def test_columns_are_the_measures_of_each_group():
    two = [made_up_run([200, 20])]
    assert [c[1:] for c in tables.columns(two)] == [
        ("mean_error", "balanced error"),
        ("class 0", "error on c <0> $^$"),
        ("class 1", "error on c <1> $^$"),
    ]
    runs = [made_up_run([200, 60, 8], group=group) for group in ("step", "long-tailed")]
    titles = [column.title for column in tables.columns(runs)]
    assert titles[:2] == ["balanced error, step", "many classes, step"] and len(titles) == 8
    own = [made_up_run([200, 60, 8], group="step", measures=[("mean_error", "mean error")])]
    assert tables.columns(own) == (tables.Column("step", "mean_error", "step"),)


def test_a_table_in_markdown_has_a_row_for_each_model_and_its_notes_below():
    runs = [made_up_run([20, 10], "mine", measures=[("class 1", "error on b"), ("x", "other")])]
    error = runs[0].errors["per_class_error"][1]
    assert tables.markdown(tables.plain(runs, "Mine")) == "\n".join([
        "### Mine", "", "| approach | | error on b | other |", "|---|---|---|---|",
        f"| mine | as given | **{error:.2f}** |  |", "", "Errors in percent on the test split.", "",
    ])  # fmt: skip


# ----------------------------------------------------------------------------- figures


@pytest.mark.parametrize("width", [8.8, 3.7])
@pytest.mark.parametrize("num_classes", [2, 10, 100, 1000])
def test_every_figure_is_drawn_whatever_the_number_of_classes(num_classes, width):
    counts = np.linspace(300, 5, num_classes).astype(int)
    runs = [made_up_run(counts), made_up_run(counts, "LDAM-DRW", better=0.1, start_epoch=3)]
    for name in SECTIONS:
        canvas = Canvas(width)
        with canvas.style():
            figure = SECTIONS[name].draw(runs, canvas)
            figure.canvas.draw()
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert panels
        for axes in panels:
            assert axes.has_data(), name
            assert axes.get_position().height > 0.1, name
            assert axes.get_xlabel(), name
            # Methods stand at the left of errors under their names.
            assert axes.get_ylabel() or name == "errors", name
        assert figure.get_size_inches()[0] == width


def data_limits(axes):
    return [np.asarray(line.get_xydata(), float) for line in axes.lines if len(line.get_xydata())]


def test_no_panel_of_errors_leaves_its_points_outside():
    runs = [made_up_run([200, 60, 8], seed=seed) for seed in (0, 1)]
    for run, error in zip(runs, (40.0, 60.0), strict=True):
        for name in ("mean_error", "many_error", "medium_error", "few_error"):
            run.errors[name] = error
    figure = figures.errors(runs, Canvas())
    for axes in figure.axes:
        low, high = axes.get_xlim()
        for points in data_limits(axes):
            assert np.all((points[:, 0] >= low) & (points[:, 0] <= high))


@pytest.mark.parametrize(("errors", "from_zero"), [((20.0, 60.0), True), ((50.0, 60.0), False)])
def test_errors_begin_at_zero_unless_most_of_the_axis_were_empty(errors, from_zero):
    runs = [made_up_run([20, 10]), made_up_run([20, 10], "LDAM-DRW")]
    for run, error in zip(runs, errors, strict=True):
        run.errors["mean_error"] = error
        run.errors["per_class_error"] = [error, error]
    low, high = figures.errors(runs, Canvas()).axes[0].get_xlim()
    assert (low <= 0) == from_zero and low < errors[0] and high > errors[1]


@pytest.mark.parametrize("name", [*losses.LOSSES])
def test_margins_are_drawn_where_they_are_beside_what_the_loss_demands(name):
    counts, named = [300, 80, 20, 5], losses.LOSSES[name]
    settings = {"max_margin": 0.4, "scale": 30.0, "gamma": 1.0, "tau": 1.0, "vs_gamma": 0.3}
    settings["gradual"] = False
    loss = named.make(counts, settings)
    demanded = loss.margins if named.wants_cosines else None
    runs = [made_up_run(counts), made_up_run(counts, "LDAM-DRW", demanded=demanded)]
    train, test = figures.margins(runs, Canvas()).axes
    dashed = [line for line in train.lines if line.get_label().startswith("Δ")]
    assert len(dashed) == named.wants_cosines
    for line in dashed:
        np.testing.assert_allclose(line.get_ydata(), loss.margins, rtol=1e-5)
        uniform = line.get_label() == "Δ, the same for all"
        assert uniform or line.get_label() == f"Δ = C/⁴√n, C = {0.4 * 5**0.25:.2f}"
        assert uniform == (name in ("uniform_margin", "hinge"))
    for axes, split in ((train, "train"), (test, "test")):
        drawn = next(line for line in axes.lines if line.get_label() == "LDAM-DRW")
        np.testing.assert_allclose(drawn.get_ydata(), runs[1].margins[split]["min"])
    labels = [label.get_text() for label in train.get_xticklabels()]
    assert labels == [f"c <{j}> $^$\n{n}" for j, n in enumerate(counts)]


def test_a_confusion_matrix_goes_from_the_most_frequent_class_to_the_rarest():
    runs = [made_up_run([5, 300, 20])]
    panel = figures.confusion(runs, Canvas()).axes[0]
    cells = np.array(runs[0].diagnosis["confusion"])
    order = [1, 2, 0]
    np.testing.assert_allclose(panel.images[0].get_array(), cells[order][:, order] / 6 * 100)
    assert [t.get_text() for t in panel.get_xticklabels()] == [f"c <{j}> $^$" for j in order]


def test_curves_pass_over_the_epochs_that_were_not_evaluated():
    run = made_up_run([9, 8])
    for row in run.history[::2]:
        del row["error"]
    loss, error = figures.curves([run], Canvas()).axes
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(error.lines[0].get_xdata()) == [2, 4]
    assert list(error.lines[0].get_ydata()) == [49.0, 47.0]


@pytest.mark.parametrize(
    ("title", "text"), [("LDAM-DRW", "DRW on"), ("my-model", "deferred rule on")]
)
def test_curves_show_the_epoch_at_which_the_rule_came_on(title, text):
    for axes in figures.curves([made_up_run([9, 8], title, start_epoch=3)], Canvas()).axes:
        line = next(line for line in axes.lines if len(set(line.get_xdata())) == 1)
        assert line.get_xdata()[0] == 3.5  # Between the third epoch and the fourth.
        assert [shown.get_text() for shown in axes.texts] == [text]


def test_methods_are_told_apart_by_color_and_by_marker():
    names = ["ERM", "LDAM", "CE-DRW", "LDAM-DRW", "RW"]
    given = list(looks([made_up_run([9, 8], name) for name in names]).values())
    assert len({color for color, _, _ in given}) == len(names)
    assert len({marker for _, marker, _ in given}) == len(names)


# ----------------------------------------------------------------------------- own models


@pytest.fixture(scope="module")
def own():
    rng = np.random.default_rng(3)
    y, y_test = np.repeat([0, 1, 2], [150, 40, 10]), np.repeat([0, 1, 2], 20)
    centers = rng.normal(size=(3, 5))
    x, x_test = ((centers[c] + rng.normal(size=(len(c), 5))).astype("float32") for c in (y, y_test))
    counts = np.bincount(y)
    keras.utils.set_random_seed(0)

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
    assert {file.stem for file in tmp_path.glob("*.png")} == set(SECTIONS)
    guesses = models["mine"].predict_on_batch(test[0]).argmax(axis=1)
    error = 100 * (1 - balanced_accuracy_score(test[1], guesses))
    assert f"| mine | as given | **{error:.2f}**" in table
    assert "C = 0.71" in text  # 0.4 · 10^(1/4)


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(report, "draw", lambda runs, table: {})


class InBatches(keras.utils.PyDataset):
    """A dataset of Keras, with sample weights, as `fit` takes it."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // 32)

    def __getitem__(self, i):
        part = slice(32 * i, 32 * (i + 1))
        return self.x[part], self.y[part], np.ones(len(self.y[part]))


@pytest.mark.parametrize("form", ["column", "one-hot", "dictionary", "tf.data", "PyDataset"])
def test_labels_and_examples_may_have_the_forms_that_keras_takes(own, tmp_path, form, undrawn):
    models, (x, y), (x_test, y_test), _ = own
    model = models["mine"]
    if form == "dictionary":
        entry = keras.Input((5,), name="features")
        model = keras.Model({"features": entry}, model(entry))
        given, given_test = ({"features": x}, y), ({"features": x_test}, y_test)
    elif form == "tf.data":
        given, given_test = (
            tf.data.Dataset.from_tensor_slices(pair).shuffle(200, seed=1).batch(32)
            for pair in ((x, y), (x_test, np.eye(3)[y_test]))
        )
    elif form == "PyDataset":
        given, given_test = InBatches(x, y), InBatches(x_test, y_test)
    else:
        labels = {"column": lambda c: c[:, None], "one-hot": lambda c: np.eye(3)[c]}[form]
        given, given_test = (x, labels(y)), (x_test, labels(y_test))
    table = report.compare({"mine": model}, given, given_test, tmp_path / "a")
    assert table == report.compare({"mine": models["mine"]}, (x, y), (x_test, y_test), tmp_path)


@pytest.mark.parametrize("ignored", [7, -1])
def test_models_with_a_label_for_each_pixel_are_compared(own, tmp_path, undrawn, ignored):
    models, (x, y), (x_test, y_test), _ = own
    body = models["LDAM-DRW"].layers
    model = keras.Sequential([keras.Input((2, 2, 5)), *body])
    model.compile(loss=keras_ldam.LDAM([1, 1, 1], ignore_class=ignored))
    n = len(y) // 4
    void = np.append(y[: 4 * n], [ignored] * 4).reshape(n + 1, 2, 2)
    pixels = np.append(x[: 4 * n], x[:4], axis=0).reshape(n + 1, 2, 2, 5)
    test = x_test[:8].reshape(2, 2, 2, 5), y_test[:8].reshape(2, 2, 2)
    table = report.compare({"mine": model}, (pixels, void), test, tmp_path / "a")
    flat = (x[: 4 * n], y[: 4 * n]), (x_test[:8], y_test[:8])
    assert table == report.compare({"mine": models["LDAM-DRW"]}, *flat, tmp_path)
    with pytest.raises(ValueError, match="`test` must have class numbers from 0 on"):
        report.compare({"mine": model}, (pixels, void), (pixels, np.full_like(void, ignored)), "")


def test_texts_may_be_a_list(tmp_path, undrawn):
    words = keras.layers.TextVectorization(output_sequence_length=2, vocabulary=["good", "bad"])
    entry = keras.Input((), dtype="string")
    model = keras.Model(
        entry, keras.layers.Dense(2)(keras.layers.Embedding(4, 1)(words(entry))[..., 0])
    )
    texts, labels = ["good", "bad", "good film"], [1, 0, 1]
    table = report.compare({"mine": model}, (texts, labels), (texts, labels), tmp_path)
    guesses = keras.ops.convert_to_numpy(model(tf.constant(texts))).argmax(axis=1)
    error = 100 * (1 - balanced_accuracy_score(labels, guesses))
    assert f"| mine | as given | **{error:.2f}**" in table


def test_of_several_outputs_one_is_to_be_chosen(own, tmp_path, undrawn):
    models, train, test, _ = own
    model = models["mine"]
    both = keras.Model(model.inputs, [model.outputs[0], model.layers[0].output])
    with pytest.raises(ValueError, match=r"'both' must give one output .* Received: 2 outputs"):
        report.compare({"both": both}, train, test, tmp_path)
    one = keras.Model(both.inputs, both.outputs[0])
    table = report.compare({"mine": one}, train, test, tmp_path)
    assert table == report.compare({"mine": model}, train, test, tmp_path)


def test_class_names_with_keys_are_read_by_these(own, tmp_path, monkeypatch):
    models, train, test, _ = own
    drawn = []
    monkeypatch.setattr(report, "draw", lambda runs, table: drawn.extend(runs) or {})
    names = {2: "c", 0: "a", 1: "b"}
    report.compare({"mine": models["mine"]}, train, test, tmp_path, class_names=names)
    assert drawn[0].class_names == ("a", "b", "c")


def test_a_cosine_head_of_unknown_scale_is_asked_for_it(own, tmp_path, undrawn):
    models, train, test, _ = own
    bare = keras.Sequential(models["LDAM-DRW"].layers)
    with pytest.raises(ValueError, match=r"'bare': The model gives cosines.*pass `scale=`"):
        report.compare({"bare": bare}, train, test, tmp_path)
    report.compare({"bare": bare}, train, test, tmp_path, scale=30.0)


def test_a_model_that_ends_in_one_probability_is_reported_like_its_score(own, tmp_path, undrawn):
    train, test = ((x, np.minimum(y, 1)) for x, y in own[1:3])
    inputs = keras.Input((5,))
    score = keras.Model(inputs, keras_ldam.CosineDense(1)(inputs))
    bare = keras.Model(inputs, keras.layers.Activation("sigmoid")(9.0 * score.outputs[0]))
    table = report.compare({"mine": score}, train, test, tmp_path, scale=9.0)
    for model in (bare, keras_ldam.with_probabilities(score, scale=9.0)):
        assert report.compare({"mine": model}, train, test, tmp_path) == table


@pytest.mark.parametrize("scale", [None, 10.0])
def test_a_nested_models_probabilities_are_scaled_too(own, scale):
    models, train, test, _ = own
    flat, entry = models["LDAM-DRW"], keras.Input((5,))
    nested = keras.Model(entry, flat(entry))
    nested.compile(loss=flat.loss)
    settings = {"class_names": None, "histories": None}
    both = {"flat": flat, "nested": nested}
    one, two = (run.diagnosis for run in runs_of(both, train, test, scale=scale, **settings))
    assert one == two
    (other,) = runs_of({"flat": flat}, train, test, scale=20.0, **settings)
    assert one != other.diagnosis


# ----------------------------------------------------------------------------- very many classes


def of_many(num_classes=30_000):
    """Guesses of two models for half of the classes, of which class 7 is always wrong."""
    rng = np.random.default_rng(0)
    counts = np.maximum(1, 20_000 // np.arange(1, num_classes + 1))
    labels = np.sort(rng.permutation(num_classes)[: num_classes // 2])
    right = {"ERM": rng.random(len(labels)) < 0.2, "LDAM-DRW": labels % 8 != 7}
    return {name: np.where(each, labels, 3) for name, each in right.items()}, labels, counts


def test_very_many_classes_have_bands_and_a_table_of_few_of_them():
    guesses, labels, counts = of_many()
    runs = runs_of_guesses(guesses, labels, counts, class_names=None, histories=None)
    (axes,) = figures.class_errors(runs, Canvas()).axes
    assert max(len(line.get_xdata()) for line in axes.lines) <= 24  # No point for each class …
    # The most frequent classes are in no mean of many.
    assert axes.lines[0].get_xdata().max() > 1_000
    assert len(axes.collections) == 2  # … but a band for each model.
    old = dataclasses.replace(runs[0], title="old", counts=None)  # As results of older versions.
    text = sys.modules["keras_ldam.report.page"]._classes([old, *runs])
    assert "Of the 30,000 classes the table shows the 5 most frequent ones, the 5 rarest" in text
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in text.split("<tr>")[2:]]
    assert [row[:3] for row in rows[:2]] == [
        ["0", "most frequent", "20,000"],
        ["1", "most frequent", "10,000"],
    ]
    worst = [row for row in rows if row[1] == "largest error of LDAM-DRW"]
    assert [int(row[0]) for row in worst] == labels[labels % 8 == 7][:10].tolist()
    assert {row[4] for row in worst} == {"100.00"}
    rarest = [int(row[0]) for row in rows if row[1] == "rarest"]
    assert len(rarest) == 5 and set(counts[rarest]) == {1}
    assert [row[1:] for row in rows[-2:]] == [
        ["median", "1", "100.00", "0.00"],
        ["95 % quantile", "13", "100.00", "100.00"],
    ]


def test_the_largest_are_those_of_a_sort(rng):
    largest = sys.modules["keras_ldam.report.page"]._largest
    for n in (1, 4, 20):
        values, then = rng.integers(0, 3, 12), rng.integers(0, 3, 12)
        expected = sorted(range(12), key=lambda j: (-values[j], -then[j], j))[:n]
        assert largest(n, values, then).tolist() == expected


def test_arrays_are_predicted_in_batches_of_so_many_scores(own, tmp_path, undrawn, monkeypatch):
    models, train, test, _ = own
    given, sizes, diagnose = {"mine": models["mine"]}, [], evaluation.diagnose

    def watched(model, batches, *args, **kwargs):
        batches = list(batches)
        sizes.extend(len(y) for _, y in batches)
        return diagnose(model, batches, *args, **kwargs)

    monkeypatch.setattr(evaluation, "diagnose", watched)
    whole = report.compare(given, train, test, tmp_path)
    assert sizes == [200, 60]
    monkeypatch.setattr(sys.modules["keras_ldam.report.comparison"], "_SCORES", 320)
    assert report.compare(given, train, test, tmp_path) == whole
    assert sizes[2:] == [106, 94, 60]  # 320 scores of three classes.


def test_guesses_are_compared_without_scores(tmp_path, undrawn):
    guesses, labels, counts = of_many(200)
    table = report.compare_guesses(guesses, labels, counts, tmp_path)
    error = 100 * np.mean(labels % 8 == 7)
    assert f"| LDAM-DRW | as given | **{error:.2f}**" in table
    for change, message in (
        ({"guesses": {}}, "`guesses` must hold at least one model"),
        ({"guesses": {"mine": np.eye(200)[labels]}}, r"whole numbers in 0 … 199\. Received: array"),
        ({"guesses": {"mine": labels + 150}}, "`guesses` must be classes"),
        ({"labels": labels[1:]}, r"Received: shapes \(99,\) and \(100,\)"),
        ({"labels": labels + 150}, "Labels must be whole numbers in 0 … 199"),
        ({"class_names": list(map(str, range(300)))}, "each of the 200 classes .* 300 names"),
        ({"histories": {"mine": {}}}, "names of models .* Received: 'mine'"),
    ):
        given = {"guesses": guesses, "labels": labels, "counts": counts, **change}
        with pytest.raises(ValueError, match=message):
            report.compare_guesses(output_dir=tmp_path / "o", **given)
    assert not (tmp_path / "o").exists()


def in_batches(pair):
    return tf.data.Dataset.from_tensor_slices(pair).batch(32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(models={}), "`models` must hold at least one model"),
        (lambda a: a.update(train=a["train"][0]), "`train` must be a pair .* ndarray"),
        (lambda a: a.update(train=zip(*a["train"], strict=True)), "`train` must be a pair .* zip"),
        (lambda a: a.update(train={"x": 1}), "`train` must be a pair .* dict"),
        (lambda a: a.update(train=None), "`train` must be a pair .* NoneType"),
        (lambda a: a.update(train=in_batches(a["train"]).repeat()), "an infinite dataset"),
        (lambda a: a.update(train=in_batches(a["train"]).take(0)), "a dataset without any"),
        (
            lambda a: a.update(train=in_batches(a["train"]).unbatch()),
            r"labels of shape \(\); batch the dataset",
        ),
        (
            lambda a: a.update(train=(a["train"][0], [a["train"][1], a["train"][1]])),
            "one array of labels, .* Received: 2 arrays in a list",
        ),
        (
            lambda a: a.update(test=(a["test"][0], {"scores": a["test"][1]})),
            "one array of labels, .* Received: 1 arrays in a dict",
        ),
        (
            lambda a: a.update(train=in_batches(a["train"]).map(lambda x, y: x)),
            "must give pairs .* Received: .*Tensor",
        ),
        (lambda a: a.update(train=(a["train"][0], a["train"][1][:-1])), "199 labels for 200 exam"),
        (lambda a: a.update(train=(a["train"][0], a["train"][1] * 2)), "Received: none of class 1"),
        (lambda a: a.update(test=(a["test"][0], a["test"][1] - 1)), "class numbers from 0 on"),
        (lambda a: a.update(test=(a["test"][0], a["test"][1] + 0.5)), "class numbers from 0 on"),
        (
            lambda a: a.update(test=(a["test"][0], a["test"][1].astype(str))),
            "class numbers from 0 on",
        ),
        (lambda a: a.update(class_names=["a", "b"]), "must name at least 3 classes"),
        (lambda a: a.update(class_names={"a": 0, "b": 1, "c": 2}), "`class_names` with keys"),
        (lambda a: a.update(class_names=list("abcd")), r"Received: none of class 3 \(d\)"),
        (lambda a: a.update(histories={"yours": {}}), "names of models .* Received: 'yours'"),
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


@pytest.mark.parametrize("loss", ["ldam", "ldam_hinge", "uniform_margin", "cross_entropy"])
def test_the_margins_that_a_models_loss_demands_are_drawn(own, loss):
    models, train, test, _ = own
    counts, named = np.bincount(train[1]), losses.LOSSES[loss]
    model = models["LDAM-DRW" if named.wants_cosines else "mine"]
    copy = keras.Model(model.inputs, model.outputs)
    copy.compile(loss=named.make(counts, {"max_margin": 0.3, "scale": 20.0, "gradual": False}))
    (run,) = runs_of({"copy": copy}, train, test, class_names=None, histories=None, scale=None)
    if named.wants_cosines:
        np.testing.assert_allclose(run.demanded, copy.loss.margins)
        assert run.settings["max_margin"] == 0.3
    else:
        assert run.demanded is None


def test_warnings_on_the_training_examples_stand_below_the_table(own, without_figures):
    models, train, test, _ = own
    model = models["LDAM-DRW"]
    flat = keras.models.clone_model(model)
    flat.layers[-1].set_weights([np.zeros_like(w) for w in flat.layers[-1].get_weights()])
    runs = runs_of(
        {"flat": flat, "mine": model}, train, test, class_names=None, histories=None, scale=20.0
    )
    _, *told = tables.plain(runs, "Mine").notes
    assert len(told) == 1 and told[0].startswith("Warning, flat: All ")
    text = report.draw(runs, tables.plain(runs, "Mine"))["index.html"].decode()
    assert text.count("Warning, flat: ") == 1
