"""What is exported: the model's probabilities, from raw input, without this library."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import made_exports
import numpy as np
import pytest
import tensorflow as tf
from made_exports import png, small_model

import keras_ldam
from keras_ldam import extras
from keras_ldam.export import graphs
from keras_ldam.serving.predictor import Predictor


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def image_model():
    """An untrained network of digits."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    features = keras.layers.Rescaling(1 / 255)(inputs)
    features = keras.layers.Conv2D(8, 3, activation="relu")(features)
    features = keras.layers.Flatten()(features)
    return keras.Model(inputs, keras_ldam.CosineDense(10)(features))


@pytest.fixture(scope="module")
def image_export(image_model, tmp_path_factory):
    """The folder of the exported `image_model`; not to be changed."""
    return keras_ldam.export_saved_model(
        image_model,
        tmp_path_factory.mktemp("exports") / "images",
        class_names=[str(j) for j in range(10)],
        scale=30.0,
    )


@pytest.fixture(scope="module")
def expected(image_model, pixels):
    """softmax(30 · cosines), in float64."""
    scores = 30.0 * image_model.predict(pixels, verbose=0).astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def served(image_export):
    loaded = tf.saved_model.load(str(image_export))
    served.loaded = loaded  # The signatures hold it only weakly.
    return dict(loaded.signatures)


def facts_of(folder):
    return json.loads((folder / "export.json").read_text())


def test_images_are_answered_with_the_probabilities_of_the_model(served, pixels, expected):
    answers = served["serving_default"](image=tf.constant(pixels))
    np.testing.assert_allclose(answers["probabilities"], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(answers["class_index"], expected.argmax(axis=1))
    np.testing.assert_array_equal(
        answers["label"], [str(j).encode() for j in expected.argmax(axis=1)]
    )
    np.testing.assert_allclose(tf.nn.softmax(answers["logits"]), expected, rtol=0, atol=1e-6)


def test_encoded_files_are_answered_like_their_pixels(served, pixels, expected):
    files = [png(image) for image in pixels[:20]]
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


def test_an_image_that_is_cut_off_or_of_another_size_is_refused(served, pixels):
    whole = png(pixels[0])
    jpeg = tf.io.encode_jpeg(pixels[0]).numpy()
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
def elsewhere(image_export, pixels, expected, text_export, text_model, tmp_path_factory):
    """What is printed for each question by a process that cannot import this library."""
    folder = tmp_path_factory.mktemp("elsewhere")
    texts = ["A good film", "a FILM, a good good film", "what?"]
    model, tokenizer = text_model
    of_texts = tf.nn.softmax(model(tokenizer(tf.constant(texts)))).numpy()
    np.savez(folder / "images.npz", inputs=pixels, expected=expected)
    np.savez(folder / "texts.npz", inputs=texts, expected=of_texts)
    np.save(folder / "images.npy", np.zeros([2, 8, 8, 1], np.uint8))
    models = (str(image_export), str(text_export))
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


def test_the_graph_of_an_image_model_has_ops_of_tensorflow_only(image_export):
    from tensorflow.python.framework import op_def_registry

    text_ops = {"CaseFoldUTF8", "TFText>WhitespaceTokenizeWithOffsetsV2"}
    ops = ops_of(image_export)
    assert not ops & text_ops
    assert all(op_def_registry.get(op) for op in ops)
    assert not {op for op in ops if "Cudnn" in op or "PyFunc" in op}


def test_the_graph_of_an_image_model_can_be_converted_for_small_devices(image_export):
    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(image_export), signature_keys=["serving_default"]
    )
    # It raises for an op that LiteRT does not have.
    assert converter.convert()[4:8] == b"TFL3"


def test_the_graph_needs_no_compiler_where_it_is_served(image_export, text_export):
    for folder in (image_export, text_export):
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


def test_rows_are_answered_by_column_under_names_that_a_signature_can_have(tmp_path):
    folder = made_exports.of_rows(tmp_path)
    assert [column["argument"] for column in facts_of(folder)["columns"]] == [
        *("size__cm_", "class_")
    ]
    loaded = tf.saved_model.load(str(folder))
    serve = loaded.signatures["serving_default"]
    sizes, names = tf.constant([3.5, float("nan")]), tf.constant(["ab", ""])
    answers = serve(size__cm_=sizes, class_=names)
    assert answers["logits"].numpy().tolist() == [[3.5, 2.0], [0.0, 0.0]]
    for bad, message in (
        ({"size__cm_": tf.constant([1.0, float("inf")])}, "size (cm) is infinite: number in the"),
        ({"size__cm_": tf.constant([[1.0, 2.0]])}, "column size (cm) must be a tensor of 1 axes"),
        ({"class_": tf.constant(["a", b"\xff"])}, "column class is not valid UTF-8"),
        ({"class_": tf.constant(["a", b"a\0"])}, "column class holds a NUL byte"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            serve(**{"size__cm_": sizes, "class_": names, **bad})
        assert message in str(caught.value)


def test_columns_whose_names_differ_in_capitals_and_one_called_self_are_served(tmp_path):
    names = ["self", "Age", "age", "AGE_", "age ", "class", "Class_"]
    model = keras.Sequential([keras.Input((len(names),)), keras.layers.Dense(2)])
    folder = keras_ldam.export_saved_model(
        model, tmp_path / "m", class_names=["a", "b"], columns=dict.fromkeys(names, "number")
    )
    row = {name: float(place) for place, name in enumerate(names)}
    (answer,) = Predictor(folder).predict([json.dumps(row).encode()])
    scores = model.predict(np.array([list(row.values())]), verbose=0)
    np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(scores)[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"class_names": ["a", "b", "c"]},
            "`class_names` must have one entry for each of the 2 classes. Received: 3",
        ),
        ({"class_names": ["a", "a"]}, "`class_names` must differ. Received: 'a' more than once"),
        ({"class_names": "ab"}, "`class_names` must have one entry for each of the 2 classes"),
        ({"class_names": {"a": 0, "b": 1}}, "`class_names` with keys must have as keys"),
        ({"scale": 0.0}, "`scale` must be a number in (0, 1e+06]. Received: 0.0"),
        ({"scale": None}, "softmax scale is unknown: pass `scale=`, as used by the loss"),
        ({"temperature": float("nan")}, "`temperature` must be a finite number"),
        ({"counts": [5, 0]}, "0 for class 1 (b)"),
        ({"counts": [5, 2, 1]}, "`counts` must have one entry for each of the 2 classes"),
        ({"target_prior": [0.5, 0.5]}, "`target_prior` needs `source_prior`"),
        ({"target_prior": [0.5, 0.5], "counts": [5, 2]}, "`target_prior` needs `source_prior`"),
        ({"target_prior": [1.0, 0.0], "counts": [5, 2]}, "`target_prior` must be 2 finite numbers"),
        ({"source_prior": [0.5, 0.5]}, "`source_prior` needs `target_prior`"),
        ({"image_shape": (4, 4)}, "Images must have shape (height, width, channels)"),
        ({"columns": {"a": "number"}}, "`columns` needs `encode`"),
        ({"columns": {"a": "int"}, "encode": len}, 'be "number" or "text". Received'),
        ({"encode": len}, "`columns` must name at least one column"),
        (
            {"columns": {"a": "number"}, "encode": len, "resize": True},
            "`resize` is not for a model of rows. Received: resize=True",
        ),
        (
            {"columns": {"a": "number"}, "encode": len, "tokenizer": len},
            "`tokenizer` is not for a model of rows. Received: tokenizer=<built-in function len>",
        ),
        ({"tokenizer": len, "resize": True}, "`resize` is not for a model of texts. Received: res"),
        ({"tokenizer": len, "decode": len}, "`decode` is not for a model of texts. Received: dec"),
        ({"decode": len, "resize": True}, "`resize` is not for a model of images that `decode` re"),
        (
            {"image_shape": (None, 4, 1), "resize": True},
            "`resize` is not for a model of images of any size. Received: resize=True",
        ),
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
    assert facts_of(folder)["scale"] == 20.0
    model.compile("sgd", loss=lambda y, z: keras_ldam.ldam(y, z, [0.5, 0.4], 20.0))
    with pytest.raises(ValueError, match=r"pass `scale=`"):
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
    refused = pytest.raises(ValueError, match="this one returns probabilities")
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
    with pytest.raises(ValueError, match="returns probab") if refused else contextlib.nullcontext():
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
        return facts_of(folder)["source_prior"]

    with pytest.raises(ValueError, match="may be those it was trained with, or have been lost"):
        source_prior()
    assert source_prior(source_prior=counts) == pytest.approx([0.9, 0.1])
    weights = keras_ldam.class_weights(counts, kind="inverse")
    model.loss.class_weights.assign(weights)
    assert source_prior() == source_prior(counts=counts) == pytest.approx([0.5, 0.5])
    assert source_prior(source_prior=[3, 1]) == pytest.approx([0.75, 0.25])
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    assert source_prior() == pytest.approx([0.5, 0.5])
    # A new loss knows nothing of the weights that the old one had.
    model.compile(loss=keras_ldam.CrossEntropy(counts))
    with pytest.raises(ValueError, match="have been lost by `load_weights`"):
        source_prior()
    # Logit adjustment keeps n^τ to itself, so the scores have learned n^(1-τ).
    model.compile(loss=keras_ldam.LogitAdjusted(counts, tau=0.5))
    assert source_prior() == pytest.approx([0.75, 0.25])


def test_values_of_classes_are_read_by_their_keys(tmp_path):
    """A dictionary in another order than that of the classes, as `value_counts` sorts them."""

    class Series:
        def __init__(self, values):
            self.values = values

        def items(self):
            return iter(self.values.items())

    folder = keras_ldam.export_saved_model(
        small_model(),
        tmp_path / "name",
        class_names=Series({1: "dog", 0: "cat"}),
        scale=1.0,
        counts={"dog": 90, "cat": 10},
        target_prior=Series({1: 3, 0: 1}),
        source_prior={"dog": 1, "cat": 4},
    )
    facts = facts_of(folder)
    assert facts["class_names"] == ["cat", "dog"]
    assert facts["counts"] == [10, 90]
    assert facts["target_prior"] == [0.25, 0.75]
    assert facts["source_prior"] == [0.8, 0.2]


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
    model.compile(loss=keras_ldam.LDAM([9, 3], scale=30))
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
    with pytest.raises(ValueError, match=r"pass the\s+layer or tf\.Module that holds the table"):
        keras_ldam.export_saved_model(
            inside, tmp_path / "other", class_names=["a", "b"], scale=30.0,
            tokenizer=lambda text: vectorize(text),
        )  # fmt: skip
    assert not (tmp_path / "other").exists()


def test_a_number_of_numpy_is_a_number(tmp_path):
    folder = keras_ldam.export_saved_model(
        small_model(), tmp_path / "name", class_names=["a", "b"], scale=np.float32(30)
    )
    assert facts_of(folder)["scale"] == 30.0


def test_the_scale_is_that_of_the_loss_the_model_was_compiled_with(tmp_path):
    model = small_model()
    model.compile("adam", loss=keras_ldam.LDAM([10, 100], scale=12.0))
    folder = keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])
    assert facts_of(folder)["scale"] == 12.0


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
        ([b"good", "good".encode("utf-16-le")], "text holds a NUL byte, as UTF-16 does"),
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


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten, self.head = keras.layers.Flatten(), keras.layers.Dense(2)

    def call(self, inputs):
        return self.head(self.flatten(inputs))


def outputs_of(pixels):
    return {"scores": keras.layers.Dense(2)(keras.layers.Flatten()(pixels)), "pixels": pixels}


def two_inputs(x):
    other = keras.Input((1,))
    return keras.Model([x, other], keras.layers.Concatenate()([keras.layers.Flatten()(x), other]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: keras.Model(x, keras.layers.Reshape((16, 1))(x)),
            "(batch, num_classes), or for",
        ),
        (two_inputs, "one input"),
        (lambda x: keras.Model(x, outputs_of(x)), 'keras.Model(model.inputs, model.output["scores'),
        (lambda x: Subclassed(), "inputs = keras.Input(shape); model = keras.Model(inputs, model("),
        (lambda x: keras.Sequential([keras.layers.Dense(2)]), "must be a built functional or seq"),
    ],
)
def test_a_model_that_is_not_a_classifier_of_one_input_is_refused(make, message, tmp_path):
    with pytest.raises(ValueError) as caught:
        keras_ldam.export_saved_model(
            make(keras.Input((4, 4, 1))), tmp_path / "name", class_names=["a", "b"], scale=1.0
        )
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["subclassed", "scores of several outputs", "one in a dictionary"])
def test_what_the_refusal_of_a_model_advises_works(kind, tmp_path, rng):
    inputs = keras.Input((4, 4, 1))
    if kind == "subclassed":
        model = keras.Model(inputs, Subclassed()(inputs))
    elif kind == "scores of several outputs":
        model = keras.Model(inputs, outputs_of(inputs))
        model = keras.Model(model.inputs, model.output["scores"])
    else:
        model = keras.Model(inputs, {"scores": outputs_of(inputs)["scores"]})
    folder = keras_ldam.export_saved_model(model, tmp_path / "name", class_names=["a", "b"])
    images = rng.integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)
    answers = tf.saved_model.load(str(folder)).signatures["serving_default"](
        image=tf.constant(images)
    )
    scores = model.predict(images.astype("float32"), verbose=0)
    scores = scores["scores"] if kind == "one in a dictionary" else scores
    np.testing.assert_allclose(answers["logits"], scores, rtol=1e-4)


def test_on_another_backend_the_export_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ValueError, match=r"Save the model as .keras .* Received: jax"):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "n", class_names=["a", "b"], scale=1.0
        )


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
    with pytest.raises(OSError), graphs.portable(model):
        assert model.layers[0].use_cudnn is False
        raise OSError
    assert model.layers[0].use_cudnn is True


def test_without_tensorflow_the_extra_is_named(tmp_path, monkeypatch):
    model = small_model()
    monkeypatch.delitem(sys.modules, "keras_ldam.export.graphs")
    monkeypatch.delattr("keras_ldam.export.graphs")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(extras.MissingExtraError, match=r"pip install 'keras_ldam\[export\]'"):
        keras_ldam.export_saved_model(model, tmp_path / "n", class_names=["a", "b"])


@pytest.mark.parametrize("number", [1, 13])
def test_a_model_of_other_inputs_is_exported_as_the_refusal_says(number, tmp_path):
    inputs = [keras.Input((3,), name=f"input_{j}") for j in range(number)]
    together = keras.layers.Concatenate()(inputs) if number > 1 else inputs[0]
    model = keras.Model(inputs, keras_ldam.CosineDense(2, scale=10)(together))
    with pytest.raises(ValueError, match=r"with_probabilities\(model\).export\(folder\)"):
        keras_ldam.export_saved_model(model, tmp_path / "a", class_names=["a", "b"])
    values = [np.full((2, 3), j - 0.5, np.float32) for j in range(number)]
    probabilities = keras_ldam.with_probabilities(model)
    probabilities.export(tmp_path / "b", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "b"))  # `serve` holds it only weakly.
    expected = tf.nn.softmax(10.0 * model.predict(values, verbose=0))
    given = values if number > 1 else values[0]
    np.testing.assert_allclose(loaded.serve(given), expected, rtol=1e-5)


@pytest.mark.parametrize("layers", [[keras.layers.LayerNormalization()], []])
def test_a_row_whose_scores_are_not_numbers_is_refused(layers, tmp_path):
    first = keras.layers.Dense(4, kernel_initializer="ones")
    last = keras.layers.Dense(2, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((2,)), first, *layers, last])
    columns = {"a": "number", "b": "number"}
    names = ["no", "yes"]
    folder = keras_ldam.export_saved_model(
        model, tmp_path / "m", class_names=names, columns=columns
    )
    serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
    for sign in (1, -1):
        large = tf.constant([1.0, sign * 3e38])
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"finite numbers: .*from 0:.*1"):
            serve(a=large, b=large)


def test_no_image_of_any_size_gets_an_empty_answer(tmp_path):
    inputs = keras.Input((None, None, 3), dtype="uint8")
    features = keras.layers.Conv2D(4, 5, strides=2)(keras.layers.Rescaling(1 / 255)(inputs))
    scores = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(features))
    model = keras.Model(inputs, scores)
    folder = keras_ldam.export_saved_model(model, tmp_path / "m", class_names=["a", "b"])
    served = tf.saved_model.load(str(folder)).signatures
    none = served["serving_bytes"](tf.constant([], tf.string))
    assert none["probabilities"].shape == (0, 2)
    none = served["serving_default"](tf.zeros((0, 0, 0, 3), tf.uint8))
    assert none["label"].shape == (0,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"details": {"counts": 3, "version": 2}}, r"reuse names of .*: counts, version"),
        (
            {"decode": lambda contents: tf.zeros((4, 4, 1))},
            r"`decode` must return uint8, shape .4, 4, 1.\. Received: .*float32",
        ),
    ],
)
def test_what_would_only_fail_when_it_is_asked_is_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        keras_ldam.export_saved_model(
            small_model(), tmp_path / "m", class_names=["a", "b"], scale=1.0, **given
        )
    assert not (tmp_path / "m").exists()


def test_counts_of_one_label_are_those_of_two_classes(tmp_path):
    model = small_model(1)
    model.compile(loss=keras_ldam.LDAM([[90, 10]]))
    folder = keras_ldam.export_saved_model(model, tmp_path / "m", class_names=["no", "yes"])
    assert facts_of(folder)["counts"] == [90, 10]


def test_counts_of_classes_are_refused_for_several_labels(tmp_path):
    model = small_model(3)
    model.compile(loss=keras_ldam.LDAM([[9, 1], [4, 6], [7, 3]]))
    with pytest.raises(ValueError, match=r"has one\. Received: counts for a model of 3 labels"):
        keras_ldam.export_saved_model(
            model, tmp_path / "m", class_names=list("abc"), counts=[5, 3, 2]
        )


def test_a_class_for_each_pixel_is_served_without_names(tmp_path, rng):
    inputs = keras.Input((4, 5, 3))
    scores = keras_ldam.CosineDense(1, scale=9)(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, scores)
    model.compile(loss=keras_ldam.LDAM([50, 9], scale=9))
    folder = keras_ldam.export_saved_model(model, tmp_path / "m", class_names=["a", "b"])
    x = rng.integers(0, 256, size=(2, 4, 5, 3), dtype=np.uint8)
    z = 9.0 * model.predict(x.astype("float32"), verbose=0).astype("float64")
    z = np.concatenate([0 * z, z], axis=-1)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, pixels in zip(files, x, strict=True):
        file.write_bytes(png(pixels))
    answers = list(Predictor(folder).predict([str(file).encode() for file in files]))
    wanted = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose([a["probabilities"] for a in answers], wanted, rtol=1e-4)
    assert [a["class_index"] for a in answers] == z.argmax(axis=-1).tolist()
    assert set(answers[0]) == {"line", "path", "class_index", "probabilities"}
    card = (folder / "model_card.md").read_text()
    assert "of the pixels of images" in card and "had 9 training pixels, the most" in card


def test_vectors_of_numbers_are_asked_by_column_and_none_may_be_missing(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.layers[0].set_weights([np.array([[2.0], [-1.0]]), np.zeros(1)])
    folder = keras_ldam.export_saved_model(
        model, tmp_path / "m", class_names=["no", "yes"], columns={"b": "number", "a": "number"}
    )
    rows = [b'{"a": 1, "b": 3}', b'{"b": 3}', b'{"a": 4, "b": 1}']
    first, second, third = Predictor(folder).predict(rows)
    assert (first["label"], third["label"]) == ("yes", "no")
    assert first["probability"] == pytest.approx(1 / (1 + np.exp(-5)))
    assert second["error"] == "a is missing"
    with pytest.raises(ValueError, match=r"takes a vector of them. Received: 1 columns, and .*2"):
        keras_ldam.export_saved_model(
            model, tmp_path / "n", class_names=["no", "yes"], columns={"a": "number"}
        )


@pytest.mark.parametrize(
    ("units", "loss"),
    [
        (1, keras_ldam.LDAM([90, 10])),
        (3, keras_ldam.LDAM([[90, 10], [40, 60], [97, 3]])),
        (3, keras.losses.BinaryCrossentropy(from_logits=True)),
    ],
)
def test_one_score_and_several_labels_are_served_as_sigmoids(units, loss, tmp_path, rng):
    inputs = keras.Input((4, 4, 1), dtype="uint8")
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras_ldam.CosineDense(units, scale=15.0)(features))
    model.compile(loss=loss)
    names = ["a", "b", "c"][: max(2, units)]
    prior = {"source_prior": [90, 10], "target_prior": [1, 1]} if units == 1 else {}
    folder = keras_ldam.export_saved_model(model, tmp_path / "m", class_names=names, **prior)
    x = rng.integers(0, 256, size=(5, 4, 4, 1), dtype=np.uint8)
    answer = tf.saved_model.load(folder).signatures["serving_default"](tf.constant(x))
    z = 15.0 * model.predict(x, verbose=0).astype("float64") + (np.log(9) if units == 1 else 0)
    found = answer["probabilities"].numpy()
    wanted = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(found[:, 1:] if units == 1 else found, wanted, rtol=1e-5)
    if units == 1:
        np.testing.assert_array_equal(answer["class_index"].numpy(), z[:, 0] > 0)
