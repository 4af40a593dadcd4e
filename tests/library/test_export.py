"""What is exported: the trained model's probabilities, from raw input, without this library."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import small_config

import keras_ldam
from keras_ldam import export
from keras_ldam.experiments import cli, datasets, text, training
from keras_ldam.experiments.datasets import imdb
from keras_ldam.experiments.run_folder import RunFolder


@pytest.fixture(scope="module")
def digits(finished_run):
    return datasets.load(RunFolder(finished_run).read_config()).test


@pytest.fixture(scope="module")
def expected(finished_run, digits):
    """softmax(30 · cosines) of the trained model, in float64."""
    model = training.load_model(RunFolder(finished_run))
    scores = 30.0 * model.predict(digits.examples, verbose=0).astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def served(digits_export):
    loaded = tf.saved_model.load(digits_export["folder"])
    served.loaded = loaded  # The signatures hold it only weakly.
    return dict(loaded.signatures)


def png(image):
    return tf.io.encode_png(image).numpy()


def small_model(units=2, shape=(4, 4, 1)):
    inputs = keras.Input(shape, dtype="uint8")
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    return keras.Model(inputs, keras_ldam.CosineDense(units)(features))


def test_images_are_answered_with_the_probabilities_of_the_trained_model(served, digits, expected):
    answers = served["serving_default"](image=tf.constant(digits.examples))
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(answers["class_index"], expected.argmax(axis=1))
    np.testing.assert_array_equal(
        answers["label"], [str(j).encode() for j in expected.argmax(axis=1)]
    )
    np.testing.assert_allclose(tf.nn.softmax(answers["logits"]), expected, rtol=0, atol=1e-6)


def test_encoded_files_are_answered_like_their_pixels(served, digits, expected):
    files = [png(image) for image in digits.examples[:20]]
    answers = served["serving_bytes"](image_bytes=tf.constant(files))
    np.testing.assert_allclose(answers["probabilities"], expected[:20], rtol=0, atol=1e-6)


def test_an_empty_batch_gets_an_empty_answer(served):
    for answers in (
        served["serving_default"](image=tf.zeros([0, 8, 8, 1], tf.uint8)),
        served["serving_bytes"](image_bytes=tf.constant([], tf.string)),
    ):
        assert answers["probabilities"].shape == (0, 10)
        assert answers["label"].shape == (0,)


@pytest.mark.parametrize(
    ("signature", "argument", "value", "message"),
    [
        ("serving_default", "image", np.zeros([1, 8, 9, 1], np.uint8), "[8, 8, 1]; received"),
        ("serving_default", "image", np.zeros([8, 8, 1], np.uint8), "a tensor of 4 axes"),
        ("serving_default", "image", np.zeros([1, 8, 8, 1], np.float32), "uint8"),
        ("serving_bytes", "image_bytes", [b"not an image"], "Unknown image file format"),
        ("serving_bytes", "image_bytes", [b""], "Input is empty"),
        ("serving_bytes", "image_bytes", b"scalar", "a tensor of 1 ax"),
    ],
)
def test_bad_images_are_refused(served, signature, argument, value, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        served[signature](**{argument: tf.constant(value)})
    assert message in caught.value.message


def test_an_image_that_is_cut_off_or_of_another_size_is_refused(served, digits):
    whole = png(digits.examples[0])
    jpeg = tf.io.encode_jpeg(digits.examples[0]).numpy()
    for contents, message in (
        (whole[:-20], "Invalid PNG data"),
        (jpeg[: len(jpeg) // 2], "Invalid JPEG data"),
        (png(np.zeros([9, 8, 1], np.uint8)), "image must be 8 pixels high and 8 wide"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            served["serving_bytes"](image_bytes=tf.constant([whole, contents]))
        assert message in caught.value.message


# One process for all that is asked where this library is not: to start it takes the longest.
ELSEWHERE = """
import contextlib, io, json, sys, traceback
sys.modules["keras_ldam"] = None  # From now on its import fails.
import numpy as np, tensorflow as tf
from absl import flags
from tensorflow.python.tools import saved_model_cli

images, texts, folder = sys.argv[1:]
answers = {}

def ask(name, function, *arguments):
    failed = None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            function(*arguments)
        except BaseException:
            failed = traceback.format_exc()
    answers[name] = {"printed": printed.getvalue(), "failed": failed}

def program(*arguments):
    flags.FLAGS.unparse_flags()
    sys.argv = ["saved_model_cli", *arguments]
    try:
        saved_model_cli.main()
    except SystemExit as end:
        if end.code:
            raise

def run(model, kind, *inputs):
    signature = ["--tag_set", "serve", "--signature_def", "serving_default"]
    program("run", "--dir", model, *signature, *inputs, "--outdir", f"{folder}/{kind}")

def serve(model, kind, argument):
    data = np.load(f"{folder}/{kind}.npz")
    answers = tf.saved_model.load(model).signatures["serving_default"](
        **{argument: tf.constant(data["inputs"])}
    )
    print(np.abs(answers["probabilities"] - data["expected"]).max())

# Without tensorflow_text: to look at a model, or to serve images, none of its ops is needed.
ask("show", program, "show", "--dir", texts, "--all")
ask("run images", run, images, "images", "--inputs", f"image={folder}/images.npy")
ask("serve images", serve, images, "images", "image")
# saved_model_cli by itself does not know the ops of tensorflow_text.
import tensorflow_text
ask("run texts", run, texts, "texts", "--input_exprs", "text=['a good film', 'what']")
ask("serve texts", serve, texts, "texts", "text")
with open(f"{folder}/answers.json", "w") as file:
    json.dump(answers, file)
"""


@pytest.fixture(scope="module")
def elsewhere(digits_export, digits, expected, text_export, text_model, tmp_path_factory):
    """What is printed for each question by a process that cannot import this library."""
    folder = tmp_path_factory.mktemp("elsewhere")
    texts = ["A good film", "a FILM, a good good film", "what?"]
    model, tokenizer = text_model
    of_texts = tf.nn.softmax(model(tokenizer(tf.constant(texts)))).numpy()
    np.savez(folder / "images.npz", inputs=digits.examples, expected=expected)
    np.savez(folder / "texts.npz", inputs=texts, expected=of_texts)
    np.save(folder / "images.npy", np.zeros([2, 8, 8, 1], np.uint8))
    models = (digits_export["folder"], str(text_export))
    done = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, *models, str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((folder / "answers.json").read_text())

    def printed(question):
        answer = answers[question]
        assert answer["failed"] is None, answer["failed"] + done.stderr
        return answer["printed"]

    printed.folder = folder
    return printed


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_a_process_that_cannot_import_this_library_serves_the_same(kind, elsewhere):
    assert float(elsewhere(f"serve {kind}")) < 1e-6


def graph_of(folder):
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel()
    proto.ParseFromString((Path(folder) / "saved_model.pb").read_bytes())
    return proto.meta_graphs[0].graph_def


def ops_of(folder):
    graph = graph_of(folder)
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    functions = {f.signature.name for f in graph.library.function}
    return {node.op for node in nodes} - functions


def test_the_graph_of_an_image_model_has_ops_of_tensorflow_only(digits_export):
    from tensorflow.python.framework import op_def_registry

    text_ops = {"CaseFoldUTF8", "TFText>WhitespaceTokenizeWithOffsetsV2"}
    ops = ops_of(digits_export["folder"])
    assert not ops & text_ops
    assert all(op_def_registry.get(op) for op in ops)
    assert not {op for op in ops if "Cudnn" in op or "PyFunc" in op}


def test_the_graph_of_an_image_model_can_be_converted_for_small_devices(digits_export):
    converter = tf.lite.TFLiteConverter.from_saved_model(
        digits_export["folder"], signature_keys=["serving_default"]
    )
    # It raises for an op that LiteRT does not have.
    assert converter.convert()[4:8] == b"TFL3"


def test_the_graph_needs_no_compiler_where_it_is_served(digits_export, text_export):
    for folder in (digits_export["folder"], text_export):
        for function in graph_of(folder).library.function:
            assert not function.attr["_XlaMustCompile"].b, function.signature.name


def test_saved_model_cli_shows_what_can_be_asked(elsewhere):
    shown = elsewhere("show")
    for word in ("'serving_default'", "inputs['text']", "outputs['label']", "DT_STRING", "(-1, 2)"):
        assert word in shown


@pytest.mark.parametrize(("kind", "classes"), [("images", 10), ("texts", 2)])
def test_saved_model_cli_runs_it(kind, classes, elsewhere):
    elsewhere(f"run {kind}")
    answered = np.load(elsewhere.folder / kind / "probabilities.npy")
    assert answered.shape == (2, classes)


def test_a_prior_shifts_the_logits_by_the_log_ratio_to_what_the_rule_has_learned(
    finished_run, served, digits, tmp_path
):
    prior = np.arange(1.0, 11.0)
    facts = export.export(finished_run, tmp_path / "shifted", target_prior=prior)
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
    ],
)
def test_re_balanced_scores_have_learned_re_balanced_frequencies(method, learned):
    # β of almost 0 makes the weights by effective numbers equal.
    config = small_config(method=method, beta=1e-9)
    np.testing.assert_allclose(
        export.learned_frequencies(config, np.array([900, 100])), learned, rtol=1e-6
    )
    balanced = small_config(method=method, weighting="inverse")
    if balanced.deferred:
        found = export.learned_frequencies(balanced, np.array([900, 100]))
        np.testing.assert_allclose(found, [0.5, 0.5], rtol=1e-6)


def test_the_temperature_is_fitted_on_held_out_examples_and_served(tmp_path):
    config = small_config(method="ldam_drw", validation_fraction=0.2)
    run = tmp_path / "run"
    training.train(config, run)
    facts = export.export(run, tmp_path / "calibrated", calibrate=True)
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
    scores = training.load_model(RunFolder(run)).predict(test.examples, verbose=0)
    logits = tf.saved_model.load(facts["folder"]).signatures["serving_default"](
        image=tf.constant(test.examples)
    )["logits"]
    np.testing.assert_allclose(logits, 30 * scores / facts["temperature"], atol=1e-4)


def test_a_temperature_that_the_examples_do_not_fix_is_refused(tmp_path, monkeypatch):
    run = tmp_path / "run"
    training.train(small_config(validation_fraction=0.2, epochs=1, steps_per_epoch=1), run)
    monkeypatch.setattr(
        export, "_scores", lambda model, split: 2.0 * np.eye(10)[split.labels] - 1.0
    )
    with pytest.raises(ValueError, match=r"84 held-out examples fix no temperature: none between"):
        export.export(run, tmp_path / "m", calibrate=True)
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


def test_versions_are_numbered_and_never_overwritten(tmp_path):
    model = small_model()
    arguments = {"class_names": ["a", "b"], "scale": 30.0}
    first = keras_ldam.export_saved_model(model, tmp_path / "name", **arguments)
    before = {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    assert first == tmp_path / "name" / "1"
    keras_ldam.export_saved_model(model, tmp_path / "name" / "7", **arguments)
    last = keras_ldam.export_saved_model(model, tmp_path / "name", **arguments)
    assert last.name == "8"
    with pytest.raises(ValueError, match="exists, and a version is never overwritten"):
        keras_ldam.export_saved_model(model, first, **arguments)
    assert before == {file: file.read_bytes() for file in first.rglob("*") if file.is_file()}
    assert sorted(path.name for path in (tmp_path / "name").iterdir()) == ["1", "7", "8"]


def test_a_failed_export_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(ValueError, match="no space left"):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "name", class_names=["a", "b"], scale=1.0
        )
    assert not (tmp_path / "name").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["a", "b", "c"]}, "class_names has 3 entries, but the model has 2"),
        ({"class_names": ["a", "a"]}, "'a' is there more than once"),
        ({"scale": 0.0}, "scale must be a finite number above 0"),
        ({"scale": None}, "the model gives cosines, and was not compiled with a loss that has"),
        ({"temperature": float("nan")}, "temperature must be a finite number"),
        ({"counts": [5, 0]}, "class 1 has 0"),
        ({"target_prior": [0.5, 0.5]}, "target_prior needs the counts"),
        ({"target_prior": [1.0, 0.0], "counts": [5, 2]}, "target_prior must be 2 finite numbers"),
        ({"source_prior": [0.5, 0.5]}, "source_prior is of use with a target_prior only"),
        ({"image_shape": (4, 4)}, "images must be [height, width, channels]"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(changes, message, tmp_path):
    arguments = {"class_names": ["a", "b"], "scale": 30.0, **changes}
    with pytest.raises(ValueError) as caught:
        keras_ldam.export_saved_model(small_model(), tmp_path / "name", **arguments)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_scale_is_that_of_the_loss_however_it_was_given(tmp_path):
    model = small_model()
    model.compile("sgd", loss=[keras_ldam.LDAM([9, 3], scale=20.0)])
    folder = keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])
    assert json.loads((folder / "export.json").read_text())["scale"] == 20.0
    model.compile("sgd", loss=lambda y, z: keras_ldam.ldam(y, z, [0.5, 0.4], 20.0))
    with pytest.raises(ValueError, match="give scale="):
        keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])


@pytest.mark.parametrize(
    "last",
    [
        [keras.layers.Dense(2, activation="softmax")],
        [keras.layers.Dense(2, activation="sigmoid")],
        [keras.layers.Dense(2), keras.layers.Softmax()],
        [keras.layers.Dense(2, activation=keras.layers.Softmax())],
        [keras.layers.Dense(2), keras.layers.Activation("softmax")],
        [keras.Sequential([keras.Input((16,)), keras.layers.Dense(2), keras.layers.Softmax()])],
    ],
)
def test_a_model_of_probabilities_is_refused(last, tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), *last])
    refused = pytest.raises(ValueError, match="this one ends in probabilities")
    with refused:
        keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])
    model = keras.Model(model.inputs, keras.ops.softmax(model.inputs[0][:, 0, :2, 0]))
    with refused:
        keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])


@pytest.mark.parametrize(
    ("loss", "refused"),
    [
        ("sparse_categorical_crossentropy", True),
        (keras.losses.SparseCategoricalCrossentropy(), True),
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), False),
        ("mse", False),
        (lambda y, z: z, False),
    ],
)
def test_a_model_whose_loss_takes_probabilities_is_refused(loss, refused, tmp_path):
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    model = keras.Model(model.inputs, model.outputs[0][:, :2] + 0.0)  # A softmax of one's own, say.
    model.compile(loss=loss)
    with pytest.raises(ValueError, match="ends in probab") if refused else contextlib.nullcontext():
        keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])


def test_the_prior_that_is_taken_off_is_the_one_that_the_class_weights_left(tmp_path):
    counts = [900, 100]
    model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.compile(loss=keras_ldam.CrossEntropy(counts))

    def source_prior(**settings):
        folder = keras_ldam.export_saved_model(
            model, tmp_path / "name", class_names=["a", "b"], target_prior=[0.5, 0.5], **settings
        )
        return json.loads((folder / "export.json").read_text())["source_prior"]

    assert source_prior() == pytest.approx([0.9, 0.1])
    weights = keras_ldam.class_weights(counts, "inverse")
    model.loss.class_weights.assign(weights)
    assert source_prior() == source_prior(counts=counts) == pytest.approx([0.5, 0.5])
    assert source_prior(source_prior=[3, 1]) == pytest.approx([0.75, 0.25])
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    assert source_prior() == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="target_prior must be 2 numbers in class order"):
        keras_ldam.export_saved_model(
            model, tmp_path / "name", class_names=["a", "b"], target_prior={"a": 0.5, "b": 0.5}
        )


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_model_that_takes_strings_brings_its_tokenizer(shape, tmp_path):
    vectorize = keras.layers.TextVectorization(output_sequence_length=4, vocabulary=["good", "bad"])
    model = keras.Sequential(
        [
            keras.Input(shape, dtype="string"),
            vectorize,
            keras.layers.Embedding(4, 3),
            keras.layers.GlobalAveragePooling1D(),
            keras_ldam.CosineDense(2),
        ]
    )
    model.compile(loss=keras_ldam.LDAM([9, 3]))
    folder = keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])
    texts = ["good", "a bad one"]
    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    inputs = tf.reshape(tf.constant(texts), (2, *shape))
    expected = tf.nn.softmax(30.0 * model(inputs))
    found = served(text=tf.constant(texts))["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert served(text=tf.constant([], tf.string))["probabilities"].shape == (0, 2)

    inside = keras.Sequential(model.layers[1:])
    inside.build((None, 4))
    with pytest.raises(ValueError, match=r"pass the layer or tf\.Module that holds the table"):
        keras_ldam.export_saved_model(
            inside, tmp_path / "other", class_names=["a", "b"], scale=30.0,
            tokenizer=lambda text: vectorize(text),
        )  # fmt: skip
    assert not (tmp_path / "other").exists()


def test_a_folder_that_is_not_one_of_versions_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it holds 'cat\.jpg'"):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "photos", class_names=["a", "b"], scale=1.0
        )


def test_a_number_of_numpy_is_a_number(tmp_path):
    folder = keras_ldam.export_saved_model(
        small_model(), tmp_path / "name", class_names=["a", "b"], scale=np.float32(30)
    )
    assert json.loads((folder / "export.json").read_text())["scale"] == 30.0


def test_the_scale_is_that_of_the_loss_the_model_was_compiled_with(tmp_path):
    model = small_model()
    model.compile("adam", loss=keras_ldam.LDAM([10, 100], scale=12.0))
    folder = keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])
    assert json.loads((folder / "export.json").read_text())["scale"] == 12.0


def test_files_of_any_size_are_resized_where_that_is_asked_for(tmp_path):
    folder = keras_ldam.export_saved_model(
        small_model(), tmp_path / "name", class_names=["a", "b"], scale=1.0, resize=True
    )
    loaded = tf.saved_model.load(str(folder))
    files = [png(np.full([size, 5, 1], 200, np.uint8)) for size in (4, 9)]
    answers = loaded.signatures["serving_bytes"](image_bytes=tf.constant(files))
    # Grey stays grey, whatever the size.
    np.testing.assert_allclose(answers["logits"][0], answers["logits"][1], atol=1e-6)


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


# ----------------------------------------------------------------------------- text


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
    training.train(config, tmp_path / "run")
    facts = export.export(tmp_path / "run", tmp_path / "exports" / "reviews", calibrate=True)
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
    model = training.load_model(RunFolder(tmp_path / "run"))
    known = RunFolder(tmp_path / "run").read_data()["vocabulary"]
    scores = model.predict(text.Tokenizer(known, 8)(tf.constant(texts)), verbose=0)
    expected = tf.nn.softmax(30 * scores / facts["temperature"])
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def text_served(text_export):
    loaded = tf.saved_model.load(str(text_export))
    text_served.loaded = loaded
    return loaded.signatures["serving_default"]


def test_texts_are_answered_as_strings_of_any_number(text_served):
    together = text_served(text=tf.constant(["A good film", "a film", "word <br /> good"]))
    for i, one in enumerate(["a GOOD film!".replace("!", ""), "a film", "other good"]):
        alone = text_served(text=tf.constant([one]))
        assert together["label"][i] == alone["label"][0]
        np.testing.assert_allclose(
            together["probabilities"][i], alone["probabilities"][0], atol=1e-5
        )
    assert text_served(text=tf.constant([], tf.string))["probabilities"].shape == (0, 2)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b"good", b""], "text is empty: number in the batch, from 0:] [1]"),
        ([b"good \xff\xfe"], "text is not valid UTF-8"),
        ([b"good", b"x" * 10**6], "text is longer than 100000 bytes"),
        ([b" ... "], "text has no words"),
        ([[b"good"]], "texts must be a tensor of 1 ax"),
        (b"good", "texts must be a tensor of 1 ax"),
    ],
)
def test_bad_texts_are_refused_with_a_sentence(text_served, texts, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        text_served(text=tf.constant(texts))
    assert message in caught.value.message


def test_a_source_prior_stands_over_the_counts():
    shift, target, source = export.prior_shift(
        2, counts=np.array([90, 10]), target_prior=[1, 1], source_prior=[1, 3]
    )
    np.testing.assert_allclose(shift, np.log([0.5 / 0.25, 0.5 / 0.75]), rtol=1e-6)
    assert (target, source) == ([0.5, 0.5], [0.25, 0.75])


def test_calibration_is_for_the_class_frequencies_where_the_model_is_used(tmp_path):
    from keras_ldam import adjustment

    config = small_config(method="ldam_drw", validation_fraction=0.2)
    run = tmp_path / "run"
    training.train(config, run, progress=False)
    prior = np.arange(1.0, 11.0) / 55
    facts = export.export(
        run, tmp_path / "m", calibrate=True, target_prior=prior, source_prior=np.ones(10)
    )
    shift = np.log(10 * prior)
    np.testing.assert_allclose(facts["source_prior"], 0.1)
    model = training.load_model(RunFolder(run))

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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: keras.Model(x, keras.layers.Conv2D(2, 1)(x)), "scores [batch, classes]"),
        (lambda x: keras.Model([x, keras.Input((1,))], keras.layers.Flatten()(x)), "one input"),
    ],
)
def test_a_model_that_is_not_a_classifier_of_one_input_is_refused(make, message, tmp_path):
    with pytest.raises(ValueError) as caught:
        keras_ldam.export_saved_model(
            make(keras.Input((4, 4, 1))), tmp_path / "name", class_names=["a", "b"], scale=1.0
        )
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_counts_of_another_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="counts has 3 entries, but the model has 2"):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "n", class_names=["a", "b"], scale=1.0, counts=[5, 2, 1]
        )


def test_a_run_may_be_exported_for_files_of_any_size(finished_run, tmp_path):
    facts = export.export(finished_run, tmp_path / "m", resize=True)
    assert facts["resize"] is True


def test_a_card_of_ones_own_is_written_as_it_is(tmp_path):
    folder = keras_ldam.export_saved_model(
        small_model(), tmp_path / "n", class_names=["a", "b"], scale=1.0, card="# Mine\n"
    )
    assert (folder / "model_card.md").read_text() == "# Mine\n"


def test_on_another_backend_the_export_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"this is\s+jax. Save the model as .keras"):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "n", class_names=["a", "b"], scale=1.0
        )


def test_resized_pixels_are_those_of_pillow(rng):
    from PIL import Image

    image = rng.integers(0, 256, (12, 16, 1), dtype=np.uint8)
    served = export.graphs.ServedImages(lambda images: images, (4, 4, 1), True, None)
    ours = served._serve_bytes(tf.constant([png(image)])).numpy()[0, ..., 0].astype(int)
    theirs = np.asarray(Image.fromarray(image[..., 0]).resize((4, 4), Image.BILINEAR), int)
    assert np.abs(ours - theirs).max() <= 1  # Pillow rounds in between.
    assert np.abs(ours - theirs).mean() < 0.2


def test_a_model_in_bfloat16_is_served_in_float32(tmp_path):
    inputs = keras.Input((4, 4, 1), dtype="uint8")
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, dtype="mixed_bfloat16")(features))
    folder = keras_ldam.export_saved_model(model, tmp_path / "n", class_names=["a", "b"])
    answers = tf.saved_model.load(str(folder)).signatures["serving_default"](
        image=tf.zeros([1, 4, 4, 1], tf.uint8)
    )
    assert answers["logits"].dtype == answers["probabilities"].dtype == tf.float32


def test_the_model_uses_cudnn_again_after_its_export():
    model = keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(2, use_cudnn=True)])
    with pytest.raises(OSError), export.graphs.portable(model):
        assert model.layers[0].use_cudnn is False
        raise OSError
    assert model.layers[0].use_cudnn is True


def test_versions_are_whole_numbers_beside_nothing_but_hidden_files(tmp_path):
    choose = export.version_folders.choose
    for version in ("0", "07"):
        with pytest.raises(ValueError, match="a version must be a whole number of at least 1"):
            choose(tmp_path / "name" / version)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="exists and is not a folder"):
        choose(tmp_path / "file")
    (tmp_path / "name").mkdir()
    (tmp_path / "name" / ".DS_Store").write_text("")
    assert choose(tmp_path / "name") == tmp_path / "name" / "1"


def test_the_card_names_the_rarest_class_and_lists_the_first_hundred():
    from keras_ldam.export.card import model_card

    facts = {
        "name": "birds", "version": 1, "created": "today", "input": "image", "scale": 30.0,
        "temperature": 1.0, "target_prior": None, "versions": {},
        "class_names": ["a|b", *(f"bird {j}" for j in range(1, 150))],
        "counts": [9, 3, *[5] * 148],
    }  # fmt: skip
    card = model_card(facts)
    assert "The rarest class, bird 1, had 3 training examples, the most frequent 9." in card
    assert "| 0 | a\\|b | 9 |" in card
    assert "| 99 | bird 99 |" in card and "| 100 |" not in card
    assert "The other 50 classes are in export.json." in card


def test_a_full_disk_gets_a_sentence_and_leaves_nothing(tmp_path):
    def write(folder):
        (folder / "half").write_text("")
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device\nmore")

    with pytest.raises(ValueError, match=r"name/1 could not be written: .*No space left on device"):
        export.version_folders.write_whole(tmp_path / "name" / "1", write)
    assert not (tmp_path / "name").exists()
