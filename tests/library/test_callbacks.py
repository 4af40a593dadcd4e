"""Deferred re-weighting: that it fires, when, and that compiled steps see it. Every backend."""

import warnings

import keras
import numpy as np
import pytest

import keras_ldam

COUNTS = [90, 30, 6]


@pytest.fixture
def examples(rng):
    y = np.repeat(np.arange(3), [30, 10, 2])
    x = (rng.normal(size=(42, 6)) + y[:, None]).astype(np.float32)
    return x, y


def compiled(loss=None, **settings):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras_ldam.CosineDense(3)]
    )
    model.compile(
        keras.optimizers.SGD(0.05), loss=loss or keras_ldam.LDAM(COUNTS, scale=10), **settings
    )
    return model


def fit(model, examples, callbacks=(), **settings):
    settings = {"epochs": 4, "batch_size": 14, "shuffle": False, "verbose": 0, **settings}
    return model.fit(*examples, callbacks=list(callbacks), **settings).history


def weights_of(model):
    return [np.array(w) for w in model.get_weights()]


def test_drw_equals_two_fits_with_the_weights_set_by_hand_between(examples):
    deferred = compiled()
    fit(deferred, examples, [keras_ldam.DRW(2, verbose=0)])

    by_hand = compiled()
    fit(by_hand, examples, epochs=2)
    # A new loss in a new compilation: nothing that the first one kept can be seen.
    weighted = keras_ldam.LDAM(COUNTS, scale=10, class_weights=keras_ldam.class_weights(COUNTS))
    by_hand.compile(keras.optimizers.SGD(0.05), loss=weighted)
    fit(by_hand, examples, epochs=2)
    for ours, theirs in zip(weights_of(deferred), weights_of(by_hand), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    never = compiled()
    fit(never, examples)
    gaps = [
        np.abs(a - b).max() for a, b in zip(weights_of(deferred), weights_of(never), strict=True)
    ]
    assert max(gaps) > 1e-3


def test_the_switch_is_seen_inside_a_compiled_fit(examples):
    model = compiled(keras_ldam.CrossEntropy(COUNTS))
    model.optimizer.learning_rate = 0.0  # The weights stand still, so only the switch moves it.
    losses = fit(model, examples, [keras_ldam.DRW(2, weights="inverse", verbose=0)])["loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] == pytest.approx(losses[3], rel=1e-6)
    assert abs(losses[2] - losses[1]) > 1e-3


def test_start_epoch_zero_is_plain_re_weighting(examples):
    callback = keras_ldam.DRW(0, weights="inverse", verbose=0)
    model = compiled()
    history = fit(model, examples, [callback])
    assert history["reweighted"] == [1, 1, 1, 1]
    expected = keras_ldam.class_weights(COUNTS, "inverse")
    np.testing.assert_allclose(model.loss.class_weights.numpy(), expected)


def test_a_resumed_fit_has_the_weights_at_once(examples):
    model = compiled()
    history = fit(model, examples, [keras_ldam.DRW(2, verbose=0)], initial_epoch=3)
    assert history["reweighted"] == [1]
    expected = keras_ldam.class_weights(COUNTS)
    np.testing.assert_allclose(model.loss.class_weights.numpy(), expected)


def test_fitting_again_from_the_start_switches_them_off_again(examples):
    model, callback = compiled(), keras_ldam.DRW(1, verbose=0)
    fit(model, examples, [callback])
    history = fit(model, examples, [callback], epochs=2)
    assert history["reweighted"] == [0, 1]


def test_it_says_when_it_comes_on_and_with_which_weights(examples, capsys):
    fit(compiled(), examples, [keras_ldam.DRW(2)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "DRW" in line]
    assert len(lines) == 1
    assert lines[0].startswith("Epoch 3: DRW on, class weights [0.1585 0.4741 2.3674]")


def test_a_model_saved_after_the_switch_reloads_and_goes_on(examples, tmp_path):
    model = compiled(metrics=[keras_ldam.ClassErrors(COUNTS)])
    fit(model, examples, [keras_ldam.DRW(1, verbose=0)], epochs=2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        again.loss.class_weights.numpy(), keras_ldam.class_weights(COUNTS), rtol=1e-6
    )
    ours = fit(model, examples, initial_epoch=2)
    theirs = fit(again, examples, initial_epoch=2)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def two_headed():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    features = keras.layers.Dense(8, "relu")(inputs)
    outputs = {
        "kind": keras_ldam.CosineDense(3, name="kind")(features),
        "size": keras_ldam.CosineDense(2, name="size")(features),
        "price": keras.layers.Dense(1, name="price")(features),
    }
    return keras.Model(inputs, outputs)


def test_every_loss_with_class_weights_is_switched_by_its_own_counts(examples):
    x, y = examples
    kind, size = keras_ldam.LDAM(COUNTS), keras_ldam.CrossEntropy([32, 10])
    model = two_headed()
    model.compile("sgd", loss={"kind": kind, "size": size, "price": "mse"})
    targets = {"kind": y, "size": (y == 1).astype("int32"), "price": x[:, 0]}
    fit(model, (x, targets), [keras_ldam.DRW(2, weights="inverse", verbose=0)], epochs=3)
    for loss in (kind, size):
        np.testing.assert_allclose(
            loss.class_weights.numpy(), keras_ldam.class_weights(loss.counts, "inverse"), rtol=1e-6
        )


def test_training_that_is_stopped_before_the_switch_ends_with_a_warning(examples):
    stop = keras.callbacks.EarlyStopping("loss", min_delta=100.0, patience=1)
    drw = keras_ldam.DRW(3, verbose=0)
    with pytest.warns(UserWarning, match="never came on: training was stopped after epoch 2"):
        fit(compiled(), examples, [drw, stop])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "DRW never came on")
        fit(compiled(), examples, [drw])
        fit(compiled(), examples, [keras_ldam.DRW(3, allow_unreached=True, verbose=0), stop])


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras_ldam.CrossEntropy()])
def test_a_loss_without_class_weights_gets_a_sentence(loss, examples):
    with pytest.raises(ValueError, match=r"has\s+none. Compile with keras_ldam.LDAM"):
        fit(compiled(loss), examples, [keras_ldam.DRW(2)])


def test_a_start_that_is_never_reached_is_an_error_unless_allowed(examples):
    with pytest.raises(ValueError, match=r"would never come on: start_epoch=160.*4 epochs"):
        fit(compiled(), examples, [keras_ldam.DRW(160)])
    fit(compiled(), examples, [keras_ldam.DRW(160, allow_unreached=True)])


def test_counts_of_another_length_get_a_sentence(examples):
    with pytest.raises(ValueError, match="counts of 2 classes"):
        fit(compiled(), examples, [keras_ldam.DRW(0, counts=[5, 5])])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_epoch": -1}, "start_epoch"),
        ({"start_epoch": 1.5}, "start_epoch"),
        ({"start_epoch": 1, "weights": "cubic"}, "known: effective, inverse"),
        ({"start_epoch": 1, "beta": 1.0}, "beta"),
        ({"start_epoch": 1, "counts": [1, 0]}, "class 1 has 0"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.DRW(**arguments)


def test_a_start_at_the_very_end_of_training_is_never_reached_either(examples):
    with pytest.raises(ValueError, match=r"start_epoch=4, but training ends\s+after 4 epochs"):
        fit(compiled(), examples, [keras_ldam.DRW(4)])


def test_it_is_silent_where_that_is_asked_for(examples, capsys):
    fit(compiled(), examples, [keras_ldam.DRW(1, verbose=0)])
    assert "DRW" not in capsys.readouterr().out


def test_counts_and_beta_of_its_own_make_its_weights(examples):
    model = compiled()
    fit(model, examples, [keras_ldam.DRW(0, counts=[5, 50, 500], beta=0.99, verbose=0)], epochs=1)
    expected = keras_ldam.class_weights([5, 50, 500], beta=0.99)
    np.testing.assert_allclose(model.loss.class_weights.numpy(), expected, rtol=1e-6)


def test_the_switch_is_seen_by_validation_too(examples):
    model = compiled(keras_ldam.CrossEntropy(COUNTS))
    model.optimizer.learning_rate = 0.0
    callback = keras_ldam.DRW(2, weights="inverse", verbose=0)
    losses = fit(model, examples, [callback], validation_data=examples)["val_loss"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] == pytest.approx(losses[3], rel=1e-6)
    assert abs(losses[2] - losses[1]) > 1e-3


def test_a_start_epoch_of_true_gets_a_sentence():
    with pytest.raises(ValueError, match="start_epoch must be a whole number"):
        keras_ldam.DRW(True)


def test_pieces_of_training_that_all_begin_at_epoch_one_get_a_warning(examples):
    model, drw = compiled(), keras_ldam.DRW(2, allow_unreached=True, verbose=0)
    fit(model, examples, [drw], epochs=1)
    with pytest.warns(UserWarning, match="fit begins again at epoch 1, .* pass initial_epoch"):
        fit(model, examples, [drw], epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "fit begins again")
        fit(compiled(), examples, [drw], epochs=1)  # Another model.
        for epoch in range(1, 4):
            fit(model, examples, [drw], initial_epoch=epoch, epochs=epoch + 1)
    assert keras.ops.convert_to_numpy(model.loss.class_weights)[2] > 1


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_that_ends_in_probabilities_is_refused(nested, examples):
    head = [keras.layers.Dense(3), keras.layers.Softmax()]
    if nested:
        head = [keras.Sequential([keras.Input((6,)), *head])]
    model = keras.Sequential([keras.Input((6,)), *head])
    model.compile("sgd", keras_ldam.CrossEntropy(COUNTS))
    with pytest.raises(ValueError, match="ends in probabilities, and the losses of keras_ldam"):
        fit(model, examples, [keras_ldam.DRW(2)])


def test_probabilities_beside_the_scores_are_no_fault(examples):
    inputs = keras.Input((6,))
    scores = keras.layers.Dense(3)(inputs)
    model = keras.Model(inputs, {"scores": scores, "told": keras.layers.Softmax()(scores)})
    model.compile("sgd", {"scores": keras_ldam.CrossEntropy(COUNTS)})
    x, y = examples
    model.fit(x, {"scores": y}, epochs=3, verbose=0, callbacks=[keras_ldam.DRW(2, verbose=0)])
