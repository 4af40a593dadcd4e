"""Exports of finished runs: what they serve, their calibration, runs that are refused."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_config, without_graphs

from keras_ldam import AdversarialTraining, adjustment, evaluation
from keras_ldam.experiments import cli, datasets, exporting, ngrams, text, training
from keras_ldam.experiments.datasets import imdb
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.losses import LOSSES


@pytest.fixture(scope="module")
def digits(finished_run):
    return datasets.load(RunFolder(finished_run).read_config()).test


@pytest.fixture(scope="module")
def expected(finished_run, digits):
    """softmax(30 · cosines) of the trained model, in float64."""
    model = RunFolder(finished_run).load_model()
    scores = 30.0 * model.predict(digits.examples, verbose=0).astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def served(digits_export):
    loaded = tf.saved_model.load(digits_export["folder"])
    served.loaded = loaded  # The signatures hold it only weakly.
    return dict(loaded.signatures)


def test_images_are_answered_with_the_probabilities_of_the_trained_model(served, digits, expected):
    answers = served["serving_default"](image=tf.constant(digits.examples))
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=1e-6)
    files = [tf.io.encode_png(image).numpy() for image in digits.examples[:20]]
    answers = served["serving_bytes"](image_bytes=tf.constant(files))
    np.testing.assert_allclose(answers["probabilities"], expected[:20], rtol=0, atol=1e-6)


def test_a_prior_shifts_the_logits_by_the_log_ratio_to_what_the_rule_has_learned(
    finished_run, served, digits, tmp_path
):
    prior = np.arange(1.0, 11.0)
    facts = exporting.export(finished_run, tmp_path / "shifted", target_prior=prior)
    counts = np.asarray(facts["counts"])
    loaded = tf.saved_model.load(facts["folder"])
    images = tf.constant(digits.examples[:50])
    shifted = loaded.signatures["serving_default"](image=images)
    plain = served["serving_default"](image=images)
    learned = counts * (1 - 0.9999) / (1 - 0.9999**counts)  # Effective numbers, from the drop on.
    shift = np.log(prior / prior.sum()) - np.log(learned / learned.sum())
    np.testing.assert_allclose(facts["source_prior"], learned / learned.sum(), rtol=1e-5)
    np.testing.assert_allclose(
        shifted["logits"] - plain["logits"], np.tile(shift, (50, 1)), atol=1e-5
    )
    np.testing.assert_allclose(facts["target_prior"], prior / prior.sum())


@pytest.mark.parametrize(
    ("method", "learned"),
    [
        ("erm", [0.9, 0.1]),
        ("focal", [0.9, 0.1]),
        ("rs", [0.5, 0.5]),
        ("rw", [0.5, 0.5]),
        ("cb_rw", [0.9, 0.1]),
        ("cb_rs", [0.9, 0.1]),
        ("ldam_drw", [0.9, 0.1]),
        ("ldam_hg_drs", [0.9, 0.1]),
        ("la", [0.5, 0.5]),
        ("ldam_la", [0.5, 0.5]),
    ],
)
def test_re_balanced_scores_have_learned_re_balanced_frequencies(method, learned):
    # β of almost 0 makes the weights by effective numbers equal.
    config = small_config(method=method, beta=1e-9)
    np.testing.assert_allclose(
        exporting.learned_frequencies(config, np.array([900, 100])), learned, rtol=1e-6
    )
    if "tau" in LOSSES[config.loss].arguments:
        half = small_config(method=method, tau=0.5)
        found = exporting.learned_frequencies(half, np.array([900, 100]))
        np.testing.assert_allclose(found, [0.75, 0.25], rtol=1e-6)
    balanced = small_config(method=method, weighting="inverse")
    if balanced.deferred:
        found = exporting.learned_frequencies(balanced, np.array([900, 100]))
        np.testing.assert_allclose(found, [0.5, 0.5], rtol=1e-6)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """The folder of a run that held out validation examples; not to be changed."""
    run = tmp_path_factory.mktemp("held_out") / "run"
    training.train(small_config(method="ldam_drw", validation_fraction=0.2), run, progress=False)
    return run


def test_the_temperature_is_fitted_on_held_out_examples_and_served(held_out, tmp_path):
    run = held_out
    facts = exporting.export(run, tmp_path / "calibrated", calibrate=True)
    found = facts["calibration"]
    assert found["fitted_on"] == "84 validation examples"
    assert found["measured_on"] == "500 test examples"
    assert found["temperature"] == facts["temperature"] != 1.0
    # Fitted on other examples than it is measured on, and still no worse on those.
    assert found["negative_log_likelihood_after"] <= found["negative_log_likelihood_before"]
    card = (Path(facts["folder"]) / "model_card.md").read_text()
    assert "84 validation examples" in card
    assert "as frequent as the scores have learned" in card
    test = datasets.load(small_config()).test
    scores = RunFolder(run).load_model().predict(test.examples, verbose=0)
    logits = tf.saved_model.load(facts["folder"]).signatures["serving_default"](
        image=tf.constant(test.examples)
    )["logits"]
    np.testing.assert_allclose(logits, 30 * scores / facts["temperature"], atol=1e-4)


def test_a_temperature_is_fitted_on_what_the_imbalance_leaves_out(tmp_path):
    config = small_config(method="erm", validation_fraction=0.2, left_out=True)
    training.train(config, tmp_path / "run", progress=False)
    facts = exporting.export(tmp_path / "run", tmp_path / "m", calibrate=True)
    assert facts["calibration"]["fitted_on"] == "964 validation examples"
    assert facts["calibration"]["measured_on"] == "500 test examples"


def test_a_temperature_that_the_examples_do_not_fix_is_refused(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with without_graphs():
        training.train(small_config(validation_fraction=0.2, epochs=1, steps_per_epoch=1), run)

    def all_right(model, batches):
        labels = np.concatenate([labels for _, labels in batches])
        return 2.0 * np.eye(10)[labels] - 1.0, labels

    monkeypatch.setattr(evaluation, "scores", all_right)
    with pytest.raises(ValueError, match=r"84 validation .* the optimum lies outside \[0.05, 20\]"):
        exporting.export(run, tmp_path / "m", calibrate=True)
    assert not (tmp_path / "m").exists()


def test_calibration_needs_held_out_examples(finished_run, tmp_path, capsys):
    output = tmp_path / "exports" / "m"
    arguments = [f"--run_dir={finished_run}", f"--output={output}", "--calibrate"]
    assert cli.main("export", arguments) == 2
    assert "--validation_fraction" in capsys.readouterr().err
    assert not output.exists()


def test_the_card_and_the_facts_tell_what_the_run_was(digits_export, finished_run):
    folder = Path(digits_export["folder"])
    facts = json.loads((folder / "export.json").read_text())
    results = RunFolder(finished_run).read_results()
    assert facts["counts"] == results["counts"]
    assert (facts["scale"], facts["method"]) == (30.0, "ldam_drw")
    card = (folder / "model_card.md").read_text()
    for error, count in zip(results["last"]["per_class_error"], facts["counts"], strict=True):
        assert f"| {count} | {error:.2f} |" in card
    for word in ("## Intended use", "## Limits", "tensorflow: ", "| max_margin | 0.5 |"):
        assert word in card


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "no such folder"), ("begun", "the run has not ended"), ("lost", "not finished")],
)
def test_a_run_without_a_finished_model_is_refused(name, message, finished_run, tmp_path, capsys):
    run = tmp_path / name
    if name != "nowhere":
        run.mkdir()
        files = ["config.json", "data.json"] + (["results.json"] if name == "lost" else [])
        for file in files:
            (run / file).write_bytes((finished_run / file).read_bytes())
    output = tmp_path / "exports" / "m"
    assert cli.main("export", [f"--run_dir={run}", f"--output={output}"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""
    assert not output.exists()


@pytest.fixture
def small_imdb(monkeypatch):
    """Made-up reviews in place of IMDB's; those to test on are returned, with their labels."""
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(30)]

    def reviews(number):
        labels = rng.permutation(np.arange(number, dtype=np.int32) % 2)
        opinions = np.where(labels == 1, "good", "bad")
        texts = [" ".join([*rng.choice(words, 6), opinion]) for opinion in opinions]
        return [text.encode() for text in texts], labels

    made = {"train": reviews(80), "test": reviews(60)}
    monkeypatch.setattr(imdb.prepared, "builder", lambda name, data_dir: None)
    monkeypatch.setattr(imdb, "_read", lambda source, split: made[split])
    return made["test"]


@pytest.mark.parametrize("jit", ["auto", "on"])
def test_reviews_have_few_lengths_where_each_is_compiled(small_imdb, jit):
    config = small_config(
        dataset="imdb", method="erm", imbalance_ratio=1.0, max_tokens=100, jit=jit
    )
    loaded = imdb.load(config)
    one_review = loaded.train.examples[np.array([0])]
    if jit == "on" or keras.backend.backend() == "jax":
        assert one_review.shape == (1, 64) and not one_review[:, 7:].any()
    else:
        assert one_review.shape == (1, 7)


def test_a_run_on_texts_is_served_and_calibrated_on_the_words_it_knows(small_imdb, tmp_path):
    config = small_config(
        dataset="imdb",
        method="ldam_drw",
        imbalance_ratio=2.0,
        validation_fraction=0.3,
        epochs=2,
        units=4,
        embedding_dim=4,
        max_tokens=8,
    )
    with without_graphs():
        training.train(config, tmp_path / "run")
    facts = exporting.export(tmp_path / "run", tmp_path / "exports" / "reviews", calibrate=True)
    card = (Path(facts["folder"]) / "model_card.md").read_text()
    assert "Only the last 8 words of a text are read" in card
    texts, labels = small_imdb
    loaded = tf.saved_model.load(facts["folder"])
    answers = loaded.signatures["serving_default"](text=tf.constant(texts))
    own = answers["probabilities"].numpy()[np.arange(60), labels]
    # What the calibration is said to be is that of what is served, from the raw texts.
    weights = np.array(facts["learned_frequencies"])[labels]
    assert np.bincount(labels).tolist() == [30, 30]
    assert facts["calibration"]["negative_log_likelihood_after"] == pytest.approx(
        -np.average(np.log(own), weights=weights), abs=1e-5
    )
    model = RunFolder(tmp_path / "run").load_model()
    known = RunFolder(tmp_path / "run").read_data()["vocabulary"]
    scores = model.predict(text.Tokenizer(known, 8)(tf.constant(texts)), verbose=0)
    expected = tf.nn.softmax(30 * scores / facts["temperature"])
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=1e-6)


def test_a_run_with_n_grams_a_projection_and_adversarial_training_keeps_and_serves_the_plain_model(
    small_imdb, tmp_path, monkeypatch
):
    monkeypatch.setitem(ngrams.count.__kwdefaults__, "fewest", 1)
    config = small_config(
        dataset="imdb",
        network="bilstm_ngrams",
        epochs=2,
        units=4,
        embedding_dim=4,
        projection=6,
        adversarial=0.5,
    )
    with without_graphs():
        results = training.train(config, tmp_path / "run", progress=False)
    assert {"auc", "oracle_error"} < set(results["last"])
    model = RunFolder(tmp_path / "run").load_model()
    assert not isinstance(model, AdversarialTraining)
    assert model.get_layer("projection").units == 6
    split = datasets.load(config).test
    errors = evaluation.class_errors(model, split.batches(30), [30, 30])
    assert errors["per_class_error"] == results["last"]["per_class_error"]
    assert model.get_layer("ngrams").num_bigrams > 1
    texts, labels = small_imdb
    facts = exporting.export(tmp_path / "run", tmp_path / "exports" / "reviews")
    served = tf.saved_model.load(facts["folder"]).signatures["serving_default"]
    answers = served(text=tf.constant(texts))["probabilities"].numpy()
    wrong = 100 * np.array([np.mean(answers[labels == k].argmax(axis=1) != k) for k in (0, 1)])
    np.testing.assert_allclose(wrong, errors["per_class_error"], atol=1e-3)


def test_calibration_is_for_the_class_frequencies_where_the_model_is_used(held_out, tmp_path):
    run = held_out
    config = RunFolder(run).read_config()
    prior = np.arange(1.0, 11.0) / 55
    facts = exporting.export(
        run, tmp_path / "m", calibrate=True, target_prior=prior, source_prior=np.ones(10)
    )
    shift = np.log(10 * prior)
    np.testing.assert_allclose(facts["source_prior"], 0.1)
    model = RunFolder(run).load_model()

    def scored(split):
        logits = 30.0 * model.predict(split.examples, verbose=0).astype(np.float64)
        shares = np.bincount(split.labels, minlength=10) / len(split)
        return logits, split.labels, (prior / shares)[split.labels]

    logits, labels, weights = scored(datasets.load(config).test)
    temperature = adjustment.fit_temperature(logits, labels, weights=weights, shift=shift)
    assert facts["temperature"] == pytest.approx(temperature, rel=1e-3)
    logits, labels, weights = scored(datasets.load(small_config()).test)
    told = []
    for name, divisor in (("before", 1.0), ("after", facts["temperature"])):
        chances = adjustment.softmax(logits / divisor + shift)
        error = 100 * adjustment.expected_calibration_error(chances, labels, weights=weights)
        assert facts["calibration"][f"ece_{name}"] == pytest.approx(error, abs=0.01)
        told.append(f"{facts['calibration'][f'ece_{name}']:.2f} % {name}")
    assert told[0].split()[0] != told[1].split()[0]
    card = (Path(facts["folder"]) / "model_card.md").read_text()
    assert ", ".join(told) in card
    assert "after its last epoch, before the shift to another prior." in card


def test_a_run_may_be_exported_for_files_of_any_size(finished_run, tmp_path):
    facts = exporting.export(finished_run, tmp_path / "m", resize=True)
    assert facts["resize"] is True


def edited(finished_run, folder, name, text):
    """A copy of the run, in which one file has another text."""
    shutil.copytree(finished_run, folder)
    (folder / name).write_text(text)
    return folder


def of(run, name, **changes):
    return json.dumps({**json.loads((run / name).read_text()), **changes})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", lambda run: "{}", "config.json does not belong to .*results.json: its "),
        ("config.json", lambda run: "[]", "config.json must hold a JSON object"),
        ("config.json", lambda run: "[" * 99_999, "config.json is not valid JSON"),
        ("config.json", lambda run: of(run, "config.json", scale=[]), "config.json is not the con"),
        (
            "data.json",
            lambda run: of(run, "data.json", class_names=[str(9 - j) for j in range(10)]),
            "data.json does not belong to .*results.json: its class_names differ",
        ),
        ("data.json", lambda run: of(run, "data.json", counts=[1] * 10), "its counts differ"),
        ("data.json", lambda run: "{}", "data.json lacks the key 'name'"),
        ("results.json", lambda run: "{}", "results.json lacks the key 'last'"),
        ("results.json", lambda run: of(run, "results.json", last=3), "results.json is not the re"),
        ("results.json", lambda run: of(run, "results.json", last={}), "of a run: 'mean_error'"),
        (
            "results.json",
            lambda run: of(run, "results.json", config=[1]),
            "results.json is not the",
        ),
        (
            "results.json",
            lambda run: of(run, "results.json", last={"mean_error": 1.5, "per_class_error": [1]}),
            "its errors are",
        ),
        ("model.keras", lambda run: "nothing", "model.keras cannot be read"),
    ],
)
def test_files_that_do_not_belong_together_are_named(name, text, message, finished_run, tmp_path):
    run = edited(finished_run, tmp_path / "run", name, text(finished_run))
    with pytest.raises(ValueError, match=message) as caught:
        exporting.export(run, tmp_path / "m")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_a_run_may_have_moved_since_its_training(finished_run, tmp_path):
    changed = of(finished_run, "config.json", data_dir="elsewhere", jit="off")
    run = edited(finished_run, tmp_path / "run", "config.json", changed)
    assert exporting.export(run, tmp_path / "m")["config"]["jit"] == "off"


def test_a_prior_may_be_given_by_the_names_of_the_classes(finished_run, tmp_path):
    by_name = {str(j): 1.0 + j for j in reversed(range(10))}
    facts = exporting.export(finished_run, tmp_path / "m", target_prior=by_name)
    np.testing.assert_allclose(facts["target_prior"], np.arange(1, 11) / 55)
