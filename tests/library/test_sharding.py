"""Batches and classes divided among eight devices, virtual ones, on JAX."""

import keras
import pytest
from conftest import needs_jax

import keras_ldam


@pytest.fixture(scope="module")
def told():
    needs_jax()
    import sharded

    yield sharded.main()
    keras.distribution.set_distribution(None)


def test_batches_on_eight_devices_train_as_on_one(told):
    found = told["batches"]
    assert found["weights"] < 1e-5 and found["history"] < 1e-5
    assert found["devices"] == [8]


def test_draws_and_chunks_on_eight_devices_train_as_on_one(told):
    assert told["chunks"]["weights"] < 1e-5 and told["chunks"]["history"] < 1e-5
    assert told["chunks"]["devices"] == [8]
    counts, natural, balanced = told["drawn"]
    assert natural == counts != balanced


def test_training_is_that_of_one_device(told):
    assert told["weights"] < 1e-5 and told["history"] < 1e-5


def test_each_device_has_its_own_classes_of_everything_and_no_device_all_scores(told):
    assert told["divided"] == [16]
    assert told["number"] >= 8  # Class vectors, biases, momentum of both, four sums of errors.
    whole, parts = told["scores"]
    assert (whole, told["gathers"]) == (0, 0) and parts > 0


def test_metrics_gather_two_numbers_for_each_example_and_device(told):
    whole, parts = told["scores in metrics"]
    assert whole == 0 and parts > 0
    assert told["gathered by metrics"] == [2]


def test_mistakes_are_told_in_one_sentence(told):
    classes, devices, twice, replicas, head, chunks, loss, metric = told["errors"]
    assert "`num_classes` must be a multiple of 4" in classes and "up to 36" in classes
    assert devices.startswith("`devices` must be some of cpu:0, cpu:1, cpu:2, cpu:3, ")
    assert twice.startswith("`devices` must name each device once.")
    assert replicas == "`replicas` must divide the number of devices, 4. Received: 3"
    assert head.startswith("The classes of this head would not be divided: it has 31")
    assert chunks.startswith("`ChunkedTraining` is for one device's classes")
    assert loss == (
        "The classes of this loss would not be divided: it has 31, and ShardedClasses was made for "
        "32."
    )
    assert metric.startswith("The classes of this metric would not be divided: it has 31")


def test_devices_that_do_not_exist_are_told_in_one_sentence(told):
    named, number, size, cores = told["refused"]
    assert named.endswith("Received: ['gpu:0']")
    assert number == (
        "Strategy mirrored needs at least 2 devices, and at most the 8 (CPU) of this machine. "
        "Received: replicas=9"
    )
    assert size.endswith("the number of replicas, 8. Received: batch_size=12")
    assert cores.startswith("strategy cores needs Keras' TensorFlow backend")


def test_another_backend_is_refused():
    if keras.backend.backend() == "jax":
        pytest.skip("this is the backend")
    with pytest.raises(ValueError, match="`ShardedClasses` needs Keras' JAX backend"):
        keras_ldam.ShardedClasses(4)
    with pytest.raises(ValueError, match="`ShardedBatches` needs Keras' JAX backend"):
        keras_ldam.ShardedBatches()
