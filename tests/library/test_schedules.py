"""Tests of the learning-rate schedules."""

import math

import keras
import numpy as np
import pytest

from keras_ldam.schedules import cosine, stepwise


def test_the_cifar_recipe_gives_the_published_rate_in_every_epoch():
    rate = stepwise(0.1, warmup_epochs=5, drops={160: 0.01, 180: 0.01})
    expected = [0.02, 0.04, 0.06, 0.08, 0.1] + [0.1] * 155 + [1e-3] * 20 + [1e-5] * 20
    np.testing.assert_allclose([rate(epoch) for epoch in range(200)], expected, rtol=1e-12)


def test_a_warm_up_may_start_from_a_share_of_the_rate():
    # BBN's: from a third, linearly, the whole rate in the first epoch after five.
    rate = stepwise(0.3, warmup_epochs=5, warmup_start=1 / 3)
    expected = [0.1, 0.14, 0.18, 0.22, 0.26, 0.3, 0.3]
    np.testing.assert_allclose([rate(epoch) for epoch in range(7)], expected, rtol=1e-12)


def test_without_options_the_rate_is_constant():
    assert {stepwise(0.3)(epoch) for epoch in range(10)} == {0.3}


def test_drops_apply_in_order_of_epoch_however_they_are_written():
    rate = stepwise(1.0, drops={20: 0.5, 10: 0.1})
    assert [rate(9), rate(10), rate(19)] == [1.0, 0.1, 0.1]
    assert math.isclose(rate(20), 0.05)


def test_the_rate_depends_on_the_epoch_alone():
    rate = stepwise(0.1, warmup_epochs=2, drops={4: 0.1})
    forward = [rate(epoch) for epoch in range(6)]
    backward = [rate(epoch, 123.0) for epoch in reversed(range(6))]
    assert forward == backward[::-1]


def test_changing_the_mapping_later_does_not_change_the_schedule():
    drops = {2: 0.1}
    rate = stepwise(1.0, drops=drops)
    drops[1] = 0.5
    assert rate(1) == 1.0


def test_the_learning_rate_scheduler_of_keras_takes_it():
    scheduler = keras.callbacks.LearningRateScheduler(stepwise(0.1, warmup_epochs=2))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(np.ones((2, 1)), np.ones(2), epochs=3, callbacks=[scheduler], verbose=0)
    np.testing.assert_allclose(history.history["learning_rate"], [0.05, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": 0.1, "warmup_epochs": -1}, "warmup_epochs"),
        ({"learning_rate": 0.1, "warmup_epochs": 2, "warmup_start": 0.0}, "warmup_start"),
        ({"learning_rate": 0.1, "warmup_epochs": 2, "warmup_start": float("nan")}, "warmup_start"),
        ({"learning_rate": 0.1, "warmup_epochs": 5, "drops": {4: 0.1}}, "drops"),
        ({"learning_rate": 0.1, "drops": {4: 0.0}}, r"drops\[4\]"),
        ({"learning_rate": 0.1, "drops": {4: float("inf")}}, r"drops\[4\]"),
        ({"learning_rate": 0.1, "drops": {"4": 0.1}}, "drops"),
        ({"learning_rate": 0.1, "drops": {float("nan"): 0.1}}, "drops"),
        ({"learning_rate": 0.1, "drops": [4]}, "drops"),
        ({"learning_rate": 10**400}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"learning_rate": 0.1, "warmup_epochs": 1.5}, "warmup_epochs"),
        ({"learning_rate": 0.1, "warmup_epochs": None}, "warmup_epochs"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        stepwise(**arguments)


def test_the_cosine_starts_at_the_peak_after_the_warm_up_and_ends_above_zero():
    rate = cosine(0.4, epochs=12, warmup_epochs=2)
    falling = [0.2 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    found = [rate(epoch) for epoch in range(12)]
    np.testing.assert_allclose(found, [0.2, 0.4, *falling], rtol=1e-6)
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"learning_rate": 0.0, "epochs": 3}, "learning_rate"),
        ({"learning_rate": 0.1, "epochs": 3, "warmup_epochs": 3}, "epochs"),
        ({"learning_rate": 0.1, "epochs": 3, "warmup_epochs": -1}, "warmup_epochs"),
        ({"learning_rate": 0.1, "epochs": float("nan")}, "epochs"),
        ({"learning_rate": 0.1, "epochs": "3"}, "epochs"),
        ({"learning_rate": float("inf"), "epochs": 3}, "learning_rate"),
    ],
)
def test_a_cosine_with_bad_arguments_is_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        cosine(**arguments)


def test_a_drop_may_come_right_after_the_warm_up():
    rate = stepwise(1.0, warmup_epochs=2, drops={2: 0.1})
    np.testing.assert_allclose([rate(epoch) for epoch in range(4)], [0.5, 1.0, 0.1, 0.1])


def test_keras_takes_a_whole_number_as_the_rate():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(), "mse")
    callback = keras.callbacks.LearningRateScheduler(stepwise(1))
    model.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0, callbacks=[callback])
    assert float(model.optimizer.learning_rate.numpy()) == 1.0


@pytest.mark.parametrize("rate", [-0.1, float("nan")])
def test_a_negative_rate_and_one_that_is_no_number_are_refused(rate):
    with pytest.raises(ValueError, match="`learning_rate` must be a finite number above 0"):
        stepwise(rate)
