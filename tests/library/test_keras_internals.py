"""The private names of Keras and TensorFlow in use exist; if not, the failure says which is gone.

A failure here after an update means: find another way for the name, or bound the version in
setup.cfg.
"""

import ast
import contextlib
import importlib.metadata
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_ldam import keras_internals

PACKAGE = Path(keras_internals.__file__).parent


@contextlib.contextmanager
def private(name, package="keras"):
    """Within it, an error says which name is gone, in which version."""
    try:
        yield
    except (AttributeError, ImportError, TypeError) as error:
        version = importlib.metadata.version(package)
        pytest.fail(f"{name} is gone, or has changed, in {package} {version}: {error}")


def small_model():
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="inside")])
    return keras.Model(inputs, keras.layers.Softmax(name="last")(inner(inputs)))


def test_a_mask_is_read_and_attached():
    with private("keras.src.backend.get_keras_mask, or set_keras_mask"):
        masked = keras.layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
        assert ops.convert_to_numpy(keras_internals.mask_of(masked)).tolist() == [[True, False]]
        part = masked[:, :1]
        assert keras_internals.mask_of(part) is None
        keras_internals.set_mask(part, [[True]])
        assert keras_internals.mask_of(part) == [[True]]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's strategies")
def test_a_model_made_under_a_strategy_is_known():
    import tensorflow as tf

    assert not keras_internals.has_strategy(keras.Sequential())
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        assert keras_internals.has_strategy(keras.Sequential())


def test_layers_inside_layers_are_found():
    with private("Layer._flatten_layers"):
        model = small_model()
        names = [layer.name for layer in keras_internals.layers_of(model)]
    assert {model.name, "inside", "last"} <= set(names)


def test_the_operation_of_a_shared_layers_second_output_is_found():
    shared = keras.layers.Dense(2)
    inputs = keras.Input((2,))
    output = shared(keras.layers.ReLU()(shared(inputs)))
    with private("KerasTensor._keras_history"):
        assert keras_internals.operation_of(output) is shared
    with private("Operation._inbound_nodes"):
        (given,) = keras_internals.arguments_of(output)
    assert given is not inputs
    assert isinstance(keras_internals.operation_of(given), keras.layers.ReLU)


def test_an_optimizer_tells_the_place_of_a_variable_and_whether_it_decays():
    variables = [keras.Variable([1.0], name=name) for name in ("kernel", "bias")]
    optimizer = keras.optimizers.SGD(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    with private("Optimizer._get_variable_index"):
        assert [keras_internals.variable_index(optimizer, v) for v in variables] == [0, 1]
    with private("Optimizer._use_weight_decay"):
        assert [keras_internals.decays(optimizer, v) for v in variables] == [True, False]


def test_gradients_are_clipped_as_the_optimizer_says():
    gradients = [ops.convert_to_tensor([3.0, 4.0])]
    with private("Optimizer._clip_gradients"):
        (clipped,) = keras_internals.clip_gradients(keras.optimizers.SGD(clipnorm=1.0), gradients)
    np.testing.assert_allclose(ops.convert_to_numpy(clipped), [0.6, 0.8], rtol=1e-6)


def test_the_metric_that_is_shown_as_loss_is_found():
    model = small_model()
    model.compile("sgd", "mse")
    with private("Trainer._loss_tracker"):
        keras_internals.loss_metric(model).update_state(2.0)
    assert model.metrics[0].name == "loss" and float(model.metrics[0].result()) == 2.0


# ----------------------------------------------------------------------------- TensorFlow

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a name of TensorFlow, or of Keras' part for it"
)


@needs_tensorflow
@pytest.mark.parametrize("name", keras_internals.OVERRIDDEN)
def test_a_method_that_a_subclass_replaces_is_still_called_by_keras(name, monkeypatch):
    import tensorflow as tf

    called = []
    model = small_model()
    with private(f"Trainer.{name}"):
        method = getattr(model, name)
    monkeypatch.setattr(model, name, lambda *a, **k: called.append(name) or method(*a, **k))
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensors((np.ones((2, 3)), np.ones((2, 2))))
    model.fit(data, shuffle=False, verbose=0)
    model.evaluate(data, verbose=0)
    assert called == [name] * 2, f"Keras {keras.__version__} calls {name} elsewhere, or never"


@needs_tensorflow
def test_a_distributed_dataset_tells_the_steps_that_it_is_given():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    data = strategy.distribute_datasets_from_function(lambda _: tf.data.Dataset.range(8).batch(1))
    assert data.cardinality == 8  # One for each replica, where there are 4 steps.
    with private("DistributedDataset._cardinality", "tensorflow"):
        keras_internals.set_cardinality(data, 4)
    assert data.cardinality == 4


@needs_tensorflow
def test_iterators_over_several_devices_are_made_without_autotuning_within_and_only_there(
    monkeypatch,
):
    import tensorflow as tf

    with private("multi_device_iterator_ops._create_device_dataset", "tensorflow"):
        from tensorflow.python.data.ops import multi_device_iterator_ops

        with keras_internals.without_autotuning():
            create = multi_device_iterator_ops._create_device_dataset
    made = []
    monkeypatch.setattr(
        multi_device_iterator_ops,
        "_create_device_dataset",
        lambda *args, **kwargs: made.append(create(*args, **kwargs)) or made[-1],
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    data = strategy.experimental_distribute_dataset(tf.data.Dataset.range(4).batch(2))

    def tuned():
        made.clear()
        next(iter(data))
        return [dataset.options().autotune.enabled is not False for dataset in made]

    assert tuned() == [True, True]
    with keras_internals.without_autotuning():
        assert tuned() == [False, False]
        with keras_internals.without_autotuning():
            pass
        assert tuned() == [False, False]
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.extend(tuned()))
        thread.start()
        thread.join()
        assert elsewhere == [True, True]
    assert tuned() == [True, True]


# ----------------------------------------------------------------------------- nothing else


FILES = [path for path in PACKAGE.rglob("*.py") if path.name != "keras_internals.py"]
NODES = [(path.name, node) for path in FILES for node in ast.walk(ast.parse(path.read_text()))]


def test_no_other_module_imports_a_private_module():
    for file, node in NODES:
        if isinstance(node, ast.ImportFrom | ast.Import):
            for name in [
                getattr(node, "module", None) or "",
                *(alias.name for alias in node.names),
            ]:
                assert not name.startswith(("keras.src", "tensorflow.python")), f"{file}: {name}"


def test_no_other_module_uses_a_private_attribute_of_another_package():
    own = {"_asdict", "_replace"}  # Public, whatever their names, of a NamedTuple.
    own |= {node.name for _, node in NODES if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for _, node in NODES:
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.id if isinstance(node, ast.Name) else node.attr)
    for file, node in NODES:
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            name = node.attr
            assert name.endswith("__") or name in own, f"{file} uses the private name {name}"


def test_no_other_private_method_of_keras_is_replaced():
    classes = (keras.Model, keras.optimizers.Optimizer, keras.metrics.Metric, keras.losses.Loss)
    private = {name for each in classes for name in dir(each) if name.startswith("_")}
    for file, node in NODES:
        if isinstance(node, ast.FunctionDef) and not node.name.endswith("__"):
            known = node.name not in private or node.name in keras_internals.OVERRIDDEN
            assert known, f"{file} replaces {node.name}, which Keras has too"
