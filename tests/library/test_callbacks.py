"""Deferred re-weighting: that it fires, when, and that compiled steps see it. Every backend."""

import itertools
import types
import warnings

import keras
import numpy as np
import oracle
import pytest

import keras_ldam
from keras_ldam import guards

COUNTS = [90, 30, 6]


@pytest.fixture
def examples(rng):
    y = np.repeat(np.arange(3), [30, 10, 2])
    x = (rng.normal(size=(42, 6)) + y[:, None]).astype(np.float32)
    return x, y


def compiled(loss=None, *, graph=False, **settings):
    """Eager unless the test is about compiled steps: compiling takes longer than a few steps."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu", name="hidden"), keras_ldam.CosineDense(3)]
    )
    model.compile(
        keras.optimizers.SGD(0.05),
        loss=loss or keras_ldam.LDAM(COUNTS, scale=10),
        run_eagerly=not graph,
        **settings,
    )
    return model


def fit(model, examples, callbacks=(), **settings):
    settings = {"epochs": 4, "batch_size": 42, "shuffle": False, "verbose": 0, **settings}
    return model.fit(*examples, callbacks=list(callbacks), **settings).history


def weights_of(model):
    return [np.array(w) for w in model.get_weights()]


def test_drw_equals_two_fits_with_the_weights_set_by_hand_between(examples):
    deferred = compiled(graph=True)
    start = weights_of(deferred)
    fit(deferred, examples, [keras_ldam.DRW(2, verbose=0)])

    by_hand = compiled(graph=True)
    fit(by_hand, examples, epochs=2)
    # A new loss in a new compilation: nothing that the first one kept can be seen.
    weighted = keras_ldam.LDAM(COUNTS, scale=10, class_weights=keras_ldam.class_weights(COUNTS))
    by_hand.compile(keras.optimizers.SGD(0.05), loss=weighted)
    fit(by_hand, examples, epochs=2)
    for ours, theirs in zip(weights_of(deferred), weights_of(by_hand), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)

    ours = weights_of(deferred)
    deferred.set_weights(start)
    deferred.loss.class_weights.assign(np.ones(3))
    fit(deferred, examples)
    assert max(np.abs(a - b).max() for a, b in zip(ours, weights_of(deferred), strict=True)) > 1e-3


def test_the_switch_is_seen_inside_a_compiled_fit(examples):
    model = compiled(keras_ldam.CrossEntropy(COUNTS), graph=True)
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
    expected = keras_ldam.class_weights(COUNTS, kind="inverse")
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
    model.compile("sgd", loss={"kind": kind, "size": size, "price": "mse"}, run_eagerly=True)
    targets = {"kind": y, "size": (y == 1).astype("int32"), "price": x[:, 0]}
    fit(model, (x, targets), [keras_ldam.DRW(2, weights="inverse", verbose=0)], epochs=3)
    for loss in (kind, size):
        np.testing.assert_allclose(
            loss.class_weights.numpy(),
            keras_ldam.class_weights(loss.counts, kind="inverse"),
            rtol=1e-6,
        )


def test_training_that_is_stopped_before_the_switch_ends_with_a_warning(examples):
    stop = keras.callbacks.EarlyStopping("loss", min_delta=100.0, patience=1)
    drw = keras_ldam.DRW(3, verbose=0)
    with pytest.warns(
        UserWarning, match="never enabled the class weights: training was stopped after epoch 2"
    ):
        fit(compiled(), examples, [drw, stop])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "DRW never enabled")
        fit(compiled(), examples, [drw])
        fit(compiled(), examples, [keras_ldam.DRW(3, allow_unreached=True, verbose=0), stop])


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras_ldam.CrossEntropy()])
def test_a_loss_without_class_weights_gets_a_sentence(loss, examples):
    with pytest.raises(
        ValueError, match=r"there is none that has any. Compile with a loss of keras_ldam"
    ):
        fit(compiled(loss), examples, [keras_ldam.DRW(2)])


def test_a_start_that_is_never_reached_is_an_error_unless_allowed(examples):
    with pytest.raises(
        ValueError, match=r"would never enable the class weights: start_epoch=160.*4 epochs"
    ):
        fit(compiled(), examples, [keras_ldam.DRW(160)])
    fit(compiled(), examples, [keras_ldam.DRW(160, allow_unreached=True)])


def test_counts_of_another_length_get_a_sentence(examples):
    with pytest.raises(ValueError, match="must have 3 classes"):
        fit(compiled(), examples, [keras_ldam.DRW(0, counts=[5, 5])])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_epoch": -1}, "start_epoch"),
        ({"start_epoch": 1.5}, "start_epoch"),
        ({"start_epoch": 1, "weights": "cubic"}, "available: effective, inverse"),
        ({"start_epoch": 1, "beta": 1.0}, "beta"),
        ({"start_epoch": 1, "counts": [1, 0]}, "Received: 0 for class 1"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.DRW(**arguments)


def test_a_start_at_the_very_end_of_training_is_never_reached_either(examples):
    with pytest.raises(ValueError, match=r"start_epoch=4, but training ends after 4 epochs"):
        fit(compiled(), examples, [keras_ldam.DRW(4)])


def test_it_is_silent_where_that_is_asked_for(examples, capsys):
    fit(compiled(), examples, [keras_ldam.DRW(1, verbose=0)])
    assert "DRW" not in capsys.readouterr().out


def test_counts_and_beta_of_its_own_make_its_weights(examples):
    model = compiled()
    fit(model, examples, [keras_ldam.DRW(0, counts=[5, 50, 500], beta=0.99, verbose=0)], epochs=1)
    expected = keras_ldam.class_weights([5, 50, 500], beta=0.99)
    np.testing.assert_allclose(model.loss.class_weights.numpy(), expected, rtol=1e-6)


def test_validation_has_the_weights_from_the_first_epoch_on_so_that_its_loss_never_jumps(examples):
    model = compiled(keras_ldam.CrossEntropy(COUNTS), graph=True)
    model.optimizer.learning_rate = 0.0  # The weights stand still, so only the switch moves it.
    callback = keras_ldam.DRW(2, weights="inverse", verbose=0)
    history = fit(model, examples, [callback], batch_size=14, validation_data=examples)
    assert history["val_loss"] == pytest.approx([history["val_loss"][0]] * 4, rel=1e-6)
    # The mean over the batches of the mean by weights in each.
    x, y = examples
    each = oracle.cross_entropy(y, keras.ops.convert_to_numpy(model(x))).reshape(3, 14)
    weights = keras_ldam.class_weights(COUNTS, kind="inverse")[y].reshape(3, 14)
    expected = ((weights * each).sum(axis=1) / weights.sum(axis=1)).mean()
    assert history["val_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert history["loss"][0] == pytest.approx(each.mean(), rel=1e-5)


def test_a_checkpoint_on_the_validation_loss_keeps_a_model_from_after_the_switch(rng, tmp_path):
    y = np.repeat(np.arange(2), [190, 10])
    x = (rng.normal(size=(200, 4)) + 1.5 * y[:, None]).astype("float32")
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.05), keras_ldam.CrossEntropy([190, 10]))
    keeper = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.keras", "val_loss", mode="min", save_best_only=True
    )
    model.fit(
        *(x, y),
        epochs=12,
        verbose=0,
        validation_data=(x, y),
        callbacks=[keras_ldam.DRW(8, weights="inverse", verbose=0), keeper],
    )
    assert max(int(path.stem) for path in tmp_path.iterdir()) > 8


def test_a_start_epoch_of_true_gets_a_sentence():
    with pytest.raises(ValueError, match="`start_epoch` must be a whole number"):
        keras_ldam.DRW(True)


def test_pieces_of_training_that_all_begin_at_epoch_one_get_a_warning(examples):
    model, drw = compiled(), keras_ldam.DRW(2, allow_unreached=True, verbose=0)
    fit(model, examples, [drw], epochs=1)
    with pytest.warns(UserWarning, match="every `fit` restarts at epoch 0: pass `initial_epoch`"):
        fit(model, examples, [drw], epochs=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The class weights will never")
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
    with pytest.raises(ValueError, match="ends in probabilities, but the losses of keras_ldam"):
        fit(model, examples, [keras_ldam.DRW(2)])
    wrapper = keras_ldam.SharpnessAwareTraining(model)
    wrapper.compile("sgd", keras_ldam.CrossEntropy(COUNTS))
    with pytest.raises(ValueError, match="ends in probabilities, but the losses of keras_ldam"):
        fit(wrapper, examples, [keras_ldam.DRW(2)])


@pytest.mark.parametrize("batch_size", [32, 1000])
def test_a_model_that_the_first_step_builds_is_looked_at_after_it(batch_size, examples):
    model = keras.Sequential([keras.layers.Dense(3, "softmax")])
    model.compile("sgd", keras_ldam.CrossEntropy(COUNTS), run_eagerly=True)
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="ends in probabilities, but the losses of keras_ldam"),
    ):
        warnings.simplefilter("ignore")  # Keras says of a softmax what it can.
        fit(model, examples, [keras_ldam.DRW(2)], batch_size=batch_size)


def test_probabilities_of_one_of_several_outputs_are_refused_by_name(examples):
    inputs, (x, y) = keras.Input((6,)), examples
    outputs = {"a": keras.layers.Dense(3)(inputs), "b": keras.layers.Dense(3, "softmax")(inputs)}
    model = keras.Model(inputs, outputs)
    losses = {name: keras_ldam.CrossEntropy(COUNTS) for name in "ab"}
    model.compile("sgd", losses, run_eagerly=True)
    with pytest.raises(ValueError, match="The output 'b' ends in probabilities"):
        model.fit(x, {"a": y, "b": y}, epochs=3, verbose=0, callbacks=[keras_ldam.DRW(2)])


def test_probabilities_beside_the_scores_are_no_fault(examples):
    inputs = keras.Input((6,))
    scores = keras.layers.Dense(3)(inputs)
    model = keras.Model(inputs, {"scores": scores, "told": keras.layers.Softmax()(scores)})
    model.compile("sgd", {"scores": keras_ldam.CrossEntropy(COUNTS)}, run_eagerly=True)
    x, y = examples
    model.fit(x, {"scores": y}, epochs=3, verbose=0, callbacks=[keras_ldam.DRW(2, verbose=0)])


# ----------------------------------------------------------------------------- other starts


def rates(values):
    return keras.callbacks.LearningRateScheduler(lambda epoch, rate: values[epoch])


@pytest.mark.parametrize("first", [True, False])
def test_it_starts_in_the_epoch_that_is_trained_at_the_dropped_rate(first, examples):
    callbacks = [keras_ldam.DRW(start="lr_drop", verbose=0), rates([0.02, 0.05, 0.05, 0.005])]
    # On JAX a compiled step, whose state leaves the model while it runs; that is quicker there too.
    model = compiled(graph=keras.backend.backend() == "jax")
    history = fit(model, examples, callbacks if first else callbacks[::-1])
    assert history["reweighted"] == [0, 0, 0, 1]


def test_it_can_wait_for_a_later_drop(examples):
    drw = keras_ldam.DRW(start="lr_drop", drop=2, verbose=0)
    history = fit(compiled(), examples, [drw, rates([0.1, 0.01, 0.01, 0.001, 0.001])], epochs=5)
    assert history["reweighted"] == [0, 0, 0, 1, 1]


def test_a_resumed_training_that_cannot_count_the_drops_says_so(examples):
    drw = keras_ldam.DRW(start="lr_drop", drop=2, verbose=0, allow_unreached=True)
    with pytest.warns(UserWarning, match="can tell how often it has dropped before: give DRW"):
        fit(compiled(), examples, [drw, rates([0.1] * 4 + [0.001])], epochs=5, initial_epoch=4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.data of unknown length")
def test_a_schedule_is_read_alike_where_the_length_of_an_epoch_is_unknown(examples):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(examples).batch(14).filter(lambda *_: True)
    drw, model = keras_ldam.DRW(start="lr_drop", verbose=0), scheduled(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras: the data ran out.
        history = model.fit(batches, epochs=4, verbose=0, callbacks=[drw]).history
    assert history["reweighted"] == [0, 0, 1, 1]


def test_an_evaluation_by_a_new_loss_is_not_that_of_a_callback_which_is_kept(examples):
    model, drw = compiled(keras_ldam.CrossEntropy(COUNTS), graph=True), keras_ldam.DRW(0, verbose=0)
    fit(model, examples, [drw], epochs=1, validation_data=examples)
    before = model.evaluate(*examples, verbose=0)
    found = []
    for _ in range(2):
        model.compile("sgd", keras_ldam.LDAM(COUNTS, gradual=False))
        found.append(model.evaluate(*examples, verbose=0))
        drw = None
    assert found[0] == found[1] != before


def test_a_plateau_lowers_the_rate_for_it_too(examples):
    model = compiled()
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=100.0)
    history = fit(model, examples, [keras_ldam.DRW(start="lr_drop", verbose=0), plateau])
    drop = next(i for i, rate in enumerate(history["learning_rate"]) if rate < 0.04)
    # The logs hold the rate that an epoch was trained at.
    assert history["reweighted"] == [float(epoch >= drop) for epoch in range(4)]


def scheduled(drop_at, accumulated=None):
    """A model whose learning rate drops after step `drop_at`."""
    model = compiled()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([drop_at], [0.05, 0.005])
    model.compile(
        keras.optimizers.SGD(schedule, gradient_accumulation_steps=accumulated),
        loss=keras_ldam.LDAM(COUNTS, reduction="mean_over_data"),
        run_eagerly=True,
    )
    return model


@pytest.mark.parametrize(
    ("drop_at", "size", "expected"),
    [
        (4, 14, [0, 0, 1, 1]),  # Three steps an epoch: the fifth is in epoch 1.
        (6, 14, [0, 0, 1, 1]),  # Of epoch 2 only the first step has the old rate.
        (2, 42, [0, 0, 0, 1]),
    ],
)
def test_a_schedule_of_steps_starts_it_at_the_next_epoch(drop_at, size, expected, examples):
    drw = keras_ldam.DRW(start="lr_drop", verbose=0)
    assert fit(scheduled(drop_at), examples, [drw], batch_size=size)["reweighted"] == expected


def test_a_model_that_is_compiled_anew_is_watched_anew(examples):
    model, drw = compiled(), keras_ldam.DRW(start="lr_drop", verbose=0)
    for _ in range(2):
        model.compile(keras.optimizers.SGD(0.05), loss=model.loss, run_eagerly=True)
        history = fit(model, examples, [drw, rates([0.05, 0.05, 0.005, 0.005])])
        assert history["reweighted"] == [0, 0, 1, 1]


@pytest.mark.parametrize(("sizes", "on"), [((14, 7), 6), ((7, 14), 5)])
def test_a_schedule_of_steps_is_followed_when_batches_have_another_size(sizes, on, examples):
    model = scheduled(20)
    drw = keras_ldam.DRW(start="lr_drop", verbose=0, allow_unreached=True)
    found = []
    for piece, size in enumerate(sizes):
        epochs = {"initial_epoch": 4 * piece, "epochs": 4 * piece + 4}
        found += fit(model, examples, [drw], batch_size=size, **epochs)["reweighted"]
    # 3 and then 6 steps an epoch; or 6 and then 3, where step 20 is in epoch 3.
    expected = on if sizes[0] > sizes[1] else 4
    assert found == [float(epoch >= expected) for epoch in range(8)]


class Halved(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of one's own, which says nothing about itself."""

    def __call__(self, step):
        return 0.05 * 0.25 ** keras.ops.floor(keras.ops.cast(step, "float32") / 6)


def test_a_schedule_of_ones_own_starts_it(examples):
    model = compiled()
    model.compile(keras.optimizers.SGD(Halved()), loss=model.loss, run_eagerly=True)
    drw = keras_ldam.DRW(start="lr_drop", verbose=0)
    assert fit(model, examples, [drw], batch_size=14)["reweighted"] == [0, 0, 1, 1]


def test_a_schedule_that_begins_anew_in_a_later_epoch_has_not_dropped(examples):
    drw = keras_ldam.DRW(start="lr_drop", verbose=0)
    with pytest.warns(UserWarning, match="resumes at epoch 8 .* has made 0 steps"):
        history = fit(scheduled(6), examples, [drw], batch_size=14, initial_epoch=8, epochs=12)
    assert history["reweighted"] == [0, 0, 1, 1]


@pytest.mark.parametrize("accumulated", [None, 2])
def test_a_second_fit_starts_it_where_the_schedule_of_the_first_drops(accumulated, examples):
    for initial_epoch in (0, 3):
        model = scheduled(12, accumulated)
        fit(model, examples, batch_size=14, epochs=3)  # Nine steps.
        drw = keras_ldam.DRW(start="lr_drop", verbose=0)
        epochs = {"initial_epoch": initial_epoch, "epochs": initial_epoch + 3}
        history = fit(model, examples, [drw], batch_size=14, **epochs)
        assert history["reweighted"] == [0, 1, 1]
    refused = scheduled(100, accumulated)
    fit(refused, examples, batch_size=14, epochs=3)
    with pytest.raises(ValueError, match="waits for a drop that the learning rate schedule does"):
        fit(refused, examples, [keras_ldam.DRW(start="lr_drop")], batch_size=14)


def test_a_schedule_without_such_a_drop_is_refused(examples):
    model = compiled()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([100], [0.05, 0.005])
    model.compile(keras.optimizers.SGD(schedule), loss=keras_ldam.LDAM(COUNTS))
    with pytest.raises(ValueError, match="waits for a drop that the learning rate schedule does"):
        fit(model, examples, [keras_ldam.DRW(start="lr_drop")])


def test_a_rate_that_never_drops_ends_with_a_warning(examples):
    with pytest.warns(UserWarning, match="the learning rate never fell to half"):
        fit(compiled(), examples, [keras_ldam.DRW(start="lr_drop")])


def test_a_training_that_resumes_after_the_drop_has_the_weights_at_once(examples, tmp_path):
    values = [0.05, 0.05, 0.005, 0.005]

    class Killed(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    def callbacks():
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        return [keras_ldam.DRW(start="lr_drop", verbose=0), rates(values), backup]

    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), examples, [*callbacks(), Killed()])
    history = fit(compiled(), examples, callbacks())
    assert history["reweighted"] == [1]


def test_a_resumed_training_that_cannot_know_of_a_drop_says_so(examples):
    model = compiled()
    model.optimizer.learning_rate = 0.005
    with pytest.warns(UserWarning, match="whether it has dropped before is unknown"):
        fit(
            model,
            examples,
            [keras_ldam.DRW(start="lr_drop", verbose=0, allow_unreached=True)],
            initial_epoch=2,
        )


@pytest.mark.parametrize(
    ("share", "epochs", "on"), [(0.5, 4, 2), (0.8, 5, 4), (0.99, 4, 3), (0.29, 100, 29)]
)
def test_it_can_start_after_a_share_of_the_epochs(share, epochs, on):
    drw = keras_ldam.DRW(start=share, verbose=0)
    drw.set_model(compiled())
    drw.set_params({"epochs": epochs, "steps": 1})
    drw.on_train_begin()
    for epoch in range(epochs):
        logs = {}
        drw.on_epoch_begin(epoch)
        drw.on_epoch_end(epoch, logs)
        assert logs["reweighted"] == (epoch >= on)


@pytest.mark.parametrize("start", [0.0, 1.0, 2, "later", float("nan"), None])
def test_a_start_that_is_none_gets_a_sentence(start):
    with pytest.raises(ValueError, match="`start"):
        keras_ldam.DRW(start=start)


def test_two_starts_are_one_too_many():
    with pytest.raises(ValueError, match="either `start_epoch` or `start`"):
        keras_ldam.DRW(3, start=0.5)


# ----------------------------------------------------------------------------- losses elsewhere


def test_a_loss_inside_a_train_step_of_ones_own_is_switched(examples):
    loss = keras_ldam.LDAM(COUNTS)
    x, y = examples

    class Own(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return loss(y, y_pred)

    model = Own([keras.Input((6,)), keras_ldam.CosineDense(3)])
    model.compile(keras.optimizers.SGD(0.0))
    history = fit(model, (x, y), [keras_ldam.DRW(2, loss=loss, weights="inverse", verbose=0)])
    assert history["reweighted"] == [0, 0, 1, 1]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(loss.class_weights),
        keras_ldam.class_weights(COUNTS, kind="inverse"),
        rtol=1e-6,
    )
    assert abs(history["loss"][2] - history["loss"][1]) > 1e-3
    with pytest.raises(ValueError, match="pass `loss=`"):
        fit(model, (x, y), [keras_ldam.DRW(2)])


def test_weights_of_an_epoch_need_counts_only():
    found = keras_ldam.DRW(2, counts=[90, 10], weights="inverse").weights_at(3)
    np.testing.assert_allclose(found, keras_ldam.class_weights([90, 10], kind="inverse"))
    with pytest.raises(ValueError, match="unknown before `fit`"):
        keras_ldam.DRW(start="lr_drop", counts=[90, 10]).weights_at(3)


def test_class_weights_set_between_two_fits_are_seen_by_both_steps(examples):
    model = compiled(keras_ldam.CrossEntropy(COUNTS), graph=True)
    model.optimizer.learning_rate = 0.0
    before = fit(model, examples, epochs=1, validation_data=examples)
    keras_ldam.set_class_weights(model, {2: 3.0, 0: 1.0, 1: 0.0})
    after = fit(model, examples, epochs=1, validation_data=examples)
    for name in ("loss", "val_loss"):
        assert abs(after[name][0] - before[name][0]) > 1e-3
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(model.loss.class_weights), [1.0, 0.0, 3.0]
    )


def test_an_evaluation_within_training_has_the_weights_of_the_epoch(examples):
    model = compiled(keras_ldam.CrossEntropy(COUNTS), graph=True)
    model.optimizer.learning_rate = 0.0
    found = []

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(model.evaluate(*examples, batch_size=42, verbose=0))

    callbacks = [keras_ldam.DRW(2, verbose=0), Evaluate()]
    fit(model, examples, callbacks, epochs=3, validation_data=examples)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[1] != pytest.approx(found[2], rel=1e-2)


def test_class_weights_set_after_an_interrupted_validation_are_in_force(examples):
    model = compiled(keras_ldam.CrossEntropy(COUNTS), graph=True)

    class Interrupt(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        callbacks = [keras_ldam.DRW(2, verbose=0), Interrupt()]
        fit(model, examples, callbacks, validation_data=examples)
    keras_ldam.set_class_weights(model, [1.0, 2.0, 3.0])
    fresh = keras_ldam.CrossEntropy(COUNTS, class_weights=[1.0, 2.0, 3.0])
    expected = float(fresh(examples[1], model(examples[0])))
    assert model.evaluate(*examples, batch_size=42, verbose=0) == pytest.approx(expected, rel=1e-5)


def test_a_training_after_an_interrupted_validation_has_its_own_weights(examples):
    model = compiled(keras_ldam.CrossEntropy(COUNTS), graph=True)
    model.optimizer.learning_rate = 0.0
    expected = model.evaluate(*examples, batch_size=42, verbose=0)
    drw, found = keras_ldam.DRW(2, verbose=0), []

    class Interrupt(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    class Evaluate(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(model.evaluate(*examples, batch_size=42, verbose=0))

    with pytest.raises(KeyboardInterrupt):
        fit(model, examples, [drw, Interrupt()], validation_data=examples)
    fit(model, examples, [drw, Evaluate()], epochs=3)
    assert found[:2] == [pytest.approx(expected, rel=1e-5)] * 2
    assert found[2] != pytest.approx(expected, rel=1e-2)


def test_class_weights_that_do_not_fit_all_losses_change_none():
    inputs = keras.Input((4,))
    outputs = {name: keras.layers.Dense(k, name=name)(inputs) for name, k in (("a", 2), ("b", 3))}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"a": keras_ldam.CrossEntropy([3, 4]), "b": keras_ldam.LDAM([3, 4, 5])})
    with pytest.raises(ValueError, match=r"each of the 3 classes\. Received: 2"):
        keras_ldam.set_class_weights(model, [0.5, 1.5])
    for loss in model.loss.values():
        assert np.all(keras.ops.convert_to_numpy(loss.class_weights) == 1)


@pytest.mark.parametrize("of", ["mse", keras_ldam.CrossEntropy(), None])
def test_there_must_be_class_weights_to_set(of):
    with pytest.raises(ValueError, match="no class weights to set"):
        keras_ldam.set_class_weights(of, [1.0, 1.0])


@pytest.mark.parametrize("nested", [False, True])
def test_a_margin_that_is_demanded_of_logits_gets_a_warning_with_the_line_to_change(
    nested, examples
):
    head = [keras.layers.Dense(3)]
    if nested:
        head = [keras.Sequential([keras.Input((6,)), *head])]
    model = keras.Sequential([keras.Input((6,)), *head])
    model.compile("sgd", keras_ldam.LDAM(COUNTS), run_eagerly=True)
    with pytest.warns(UserWarning, match=r"replace it by keras_ldam.CosineDense\(3\)"):
        fit(model, examples, [keras_ldam.DRW(2, verbose=0)], epochs=3)


def test_batch_normalization_of_dropout_gets_a_warning(examples):
    parts = keras.layers.Dropout(0.1), keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((6,)), *parts, keras_ldam.CosineDense(3)])
    model.compile("sgd", keras_ldam.LDAM(COUNTS), run_eagerly=True)
    with pytest.warns(UserWarning, match="put BatchNormalization before Dropout"):
        fit(model, examples, [keras_ldam.DRW(0, verbose=0)], epochs=1)


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        (lambda: keras.layers.Dense(3), keras_ldam.CrossEntropy),
        (lambda: keras_ldam.CosineDense(3), keras_ldam.LDAM),
        # A cosine head of one's own.
        (lambda: keras.layers.UnitNormalization(), keras_ldam.LDAM),
    ],
)
def test_other_heads_and_losses_get_no_warning(head, loss, examples):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3), head()])
    model.compile("sgd", loss(COUNTS), run_eagerly=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*measures margins between cosines")
        fit(model, examples, [keras_ldam.DRW(2, verbose=0)], epochs=3)


@pytest.mark.parametrize("accumulated", [None, 4])
@pytest.mark.parametrize("reduction", ["mean_with_sample_weight", "mean_over_data"])
def test_accumulated_gradients_of_small_batches_get_a_warning_with_the_argument_to_give(
    accumulated, reduction
):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    sgd = keras.optimizers.SGD(0.05, gradient_accumulation_steps=accumulated)
    for optimizer in (sgd, keras.optimizers.LossScaleOptimizer(sgd)):
        model.compile(optimizer, keras_ldam.CrossEntropy(COUNTS, reduction=reduction))
        rule = keras_ldam.DRW(2)
        rule.set_model(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rule.on_train_begin()
        told = [str(each.message) for each in caught]
        if accumulated and reduction == "mean_with_sample_weight":
            assert len(told) == 1 and told[0].endswith('give the loss reduction="mean_over_data".')
            assert "averages the gradients of 4 batches" in told[0]
        else:
            assert not told


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("stuck", [True, False])
def test_predictions_of_one_class_get_a_warning_once_the_weights_are_enabled(
    stuck, pixels, examples
):
    x, y = examples
    if pixels:
        n = len(y) // 4
        x, y = x[: 4 * n].reshape(n, 2, 2, 6), y[: 4 * n].reshape(n, 2, 2)
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(3)])
    model.compile(
        keras.optimizers.SGD(0.0 if stuck else 0.5),
        keras_ldam.CrossEntropy(COUNTS),
        metrics=[keras_ldam.ClassErrors(COUNTS)],
        run_eagerly=True,
    )
    model.layers[-1].set_weights([np.zeros((6, 3)), np.array([1.0, 0.0, 0.0])])
    drw = keras_ldam.DRW(2, weights="inverse", verbose=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, (x, y), [drw], validation_data=(x, y))
    told = [str(each.message) for each in caught if "are one class" in str(each.message)]
    assert len(told) == stuck
    if stuck:
        assert told[0].startswith("After epoch 4, with class weights enabled, all predictions are")


@pytest.mark.parametrize("guesses", [[0, 1, 0, 1], [0, 0, 0, 0]])
def test_chance_on_even_batches_is_not_taken_for_one_class(guesses):
    # Of both guesses half of each class or all of one is right: the same balanced accuracy.
    metric = keras_ldam.ClassErrors([90, 10])
    metric.update_state(np.array([0, 0, 1, 1]), np.eye(2)[guesses])
    assert float(metric.result()["balanced_accuracy"]) == 0.5
    drw, model = keras_ldam.DRW(0, verbose=0), compiled(keras_ldam.LDAM([90, 10]))
    parts = {"loss": model.loss, "metrics": [metric], "trainable_variables": []}
    drw.set_model(types.SimpleNamespace(**parts, train_function=None, test_function=None))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(4):
            drw.on_epoch_begin(epoch)
            drw.on_epoch_end(epoch, {})
    told = [each for each in caught if each.category is UserWarning]
    assert len(told) == (guesses == [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("loss", "broken", "told"),
    [
        (np.nan, False, "After epoch 1 the loss is nan: look for NaN in the examples"),
        (1.0, True, "After epoch 1 weights of 'hidden' are not finite, though the loss is"),
        (1.0, False, None),
    ],
)
def test_a_loss_or_weights_that_are_not_finite_get_a_warning_once(loss, broken, told):
    model = compiled()
    if broken:
        model.layers[0].kernel.assign(np.full((6, 8), np.nan))
    drw = keras_ldam.DRW(1)
    drw.set_model(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in range(2):
            drw.on_epoch_end(epoch, {"loss": loss})
    found = [str(each.message) for each in caught if each.category is UserWarning]
    assert [message[: len(told or "")] for message in found] == ([told] if told else [])


def test_finite_weights_in_half_precision_whose_sum_is_not_get_no_warning():
    weights = keras.Variable(np.full(3, 4e4), dtype="float16", trainable=True)
    model = types.SimpleNamespace(trainable_variables=[weights])
    assert guards.not_finite(model, {"loss": 1.0}) is None


def test_a_share_of_one_epoch_is_refused(examples):
    with pytest.raises(ValueError, match="leaves no epoch before the start"):
        fit(compiled(), examples, [keras_ldam.DRW(start=0.8, allow_unreached=True)], epochs=1)


def test_a_warm_up_from_zero_is_no_drop(examples):
    history = fit(
        compiled(),
        examples,
        [keras_ldam.DRW(start="lr_drop", verbose=0), rates([0.0, 0.1, 0.1, 0.01])],
    )
    assert history["reweighted"] == [0, 0, 0, 1]


def test_another_fit_goes_on_where_the_schedule_was(examples):
    model = compiled()
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([4], [0.05, 0.005])
    model.compile(keras.optimizers.SGD(schedule), loss=keras_ldam.LDAM(COUNTS), run_eagerly=True)
    fit(model, examples, batch_size=14)
    drw = keras_ldam.DRW(start="lr_drop", allow_unreached=True, verbose=0)
    assert fit(model, examples, [drw])["reweighted"] == [0, 0, 0, 0]


def test_the_loss_of_a_validation_falls_while_the_network_learns(rng):
    y = np.repeat(np.arange(3), [120, 40, 12])
    x = (rng.normal(size=(172, 3)) + 2 * np.eye(3)[y]).astype("float32")
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,)), keras_ldam.CosineDense(3)])
    model.compile(keras.optimizers.SGD(0.02), keras_ldam.LDAM([120, 40, 12]))
    drw = keras_ldam.DRW(6, verbose=0)
    losses = fit(model, (x, y), [drw], epochs=8, validation_data=(x, y))["val_loss"]
    assert losses[-1] < losses[0]
    assert all(later < before + 0.05 for before, later in itertools.pairwise(losses))


def test_a_validation_that_is_interrupted_leaves_the_weights_of_the_epoch(examples):
    class Stop(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = compiled()
    with pytest.raises(KeyboardInterrupt):
        fit(model, examples, [keras_ldam.DRW(2, verbose=0), Stop()], validation_data=examples)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.loss.class_weights), 1)


def test_a_log_has_the_state_where_drw_comes_before_it(examples, tmp_path):
    log = keras.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    fit(compiled(), examples, [keras_ldam.DRW(1, verbose=0), log], epochs=2)
    heading, *rows = (tmp_path / "log.csv").read_text().splitlines()
    place = heading.split(",").index("reweighted")
    assert [float(row.split(",")[place]) for row in rows] == [0, 1]


def test_a_callback_that_watches_an_error_works_with_a_mode_and_asks_for_one(examples):
    model = compiled(metrics=[keras_ldam.ClassErrors(COUNTS)])
    settings = {"epochs": 2, "validation_data": examples}
    with pytest.raises(ValueError, match=r"Pass `mode='max'` .* `mode='min'`"):
        fit(model, examples, [keras.callbacks.EarlyStopping("val_balanced_error")], **settings)
    best = keras.callbacks.EarlyStopping("val_balanced_error", mode="min")
    history = fit(model, examples, [best], **settings)
    assert best.best == min(history["val_balanced_error"])
