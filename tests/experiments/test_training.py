"""A run from beginning to end, and what happens when it is cut off."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import small_config

import keras_ldam
from keras_ldam import files
from keras_ldam.experiments import datasets, feeding, progress, training
from keras_ldam.experiments.datasets.sampling import Batches, epoch_order
from keras_ldam.experiments.place import Place
from keras_ldam.experiments.run_folder import RunFolder
from keras_ldam.losses import LOSSES

SETTINGS = {"max_margin": 0.5, "scale": 30.0, "gradual": False}
SETTINGS |= {"gamma": 1.0, "tau": 1.0, "vs_gamma": 0.3}


class KilledError(Exception):
    """Stands for the end of the process."""


def kill_after(epoch):
    """A callback that ends the process, as far as training can tell, once an epoch is complete."""
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda e, logs: _raise_if(e > epoch))


def _raise_if(condition):
    if condition:
        raise KilledError


def test_a_finished_run_has_its_files_and_its_errors_in_percent(finished_run):
    names = {file.name for file in finished_run.iterdir()}
    expected = {"config.json", "data.json", "history.csv", "model.keras", "results.json"}
    assert expected <= names
    results = json.loads((finished_run / "results.json").read_text())
    assert results["method"] == "ldam_drw"
    assert results["split"] == "test"
    assert len(results["last"]["per_class_error"]) == 10
    assert results["last"]["mean_error"] == pytest.approx(
        np.mean(results["last"]["per_class_error"]), abs=1e-3
    )
    assert 0 < results["last"]["mean_error"] < 60  # Percent; guessing would be 90.
    assert results["best"]["mean_error"] <= results["last"]["mean_error"]
    assert results["last"]["epoch"] == 3
    assert results["seconds"] > 0
    assert results["versions"]["keras"] == keras.__version__
    assert results["versions"]["keras_ldam"] == keras_ldam.__version__
    assert "cores" in results["hardware"]


def test_the_history_shows_when_the_rule_came_on(finished_run):
    rows = RunFolder(finished_run).read_history()
    assert [row["reweighted"] for row in rows] == [0, 0, 1, 1]
    assert rows[2]["learning_rate"] == pytest.approx(0.1 * rows[1]["learning_rate"])


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
    """A short ERM run, for second stages; not to be changed."""
    folder = tmp_path_factory.mktemp("stages") / "first"
    training.train(SECOND.first_stage, folder, progress=False)
    return folder


SECOND = small_config(method="crt", epochs=2, steps_per_epoch=3, drop_at=(), second_epochs=2)


@pytest.fixture(scope="module")
def second_stages(first_stage, tmp_path_factory):
    """Folders of a cRT and an LWS run; not to be changed."""
    folder = tmp_path_factory.mktemp("second")
    for method in ("crt", "lws"):
        config = dataclasses.replace(SECOND, method=method, stage_one=str(first_stage)).resolve()
        training.train(config, folder / method, progress=False)
    return folder


@pytest.mark.parametrize("method", ["crt", "lws"])
def test_a_second_stage_starts_from_the_erm_run_and_moves_its_head_alone(
    first_stage, second_stages, method
):
    earlier, results = (
        RunFolder(path).read_results() for path in (first_stage, second_stages / method)
    )
    assert (results["method"], results["last"]["epoch"]) == (method, 1)
    assert results["last"]["per_class_error"] != earlier["last"]["per_class_error"]
    assert results["seconds"] > earlier["seconds"]
    first, second = (RunFolder(path).load_model() for path in (first_stage, second_stages / method))
    for one, other in zip(first.layers, second.layers, strict=True):
        same = map(np.array_equal, one.get_weights(), other.get_weights())
        assert all(same) == (one.name != "logits"), one.name


def test_a_second_stage_on_other_data_is_refused(first_stage, tmp_path):
    first = shutil.copytree(first_stage, tmp_path / "first")
    data = json.loads((first / "data.json").read_text())
    (first / "data.json").write_text(json.dumps({**data, "class_names": list("abcdefghij")}))
    config = dataclasses.replace(SECOND, stage_one=str(first)).resolve()
    with pytest.raises(ValueError, match="first belongs to a run on other data: its class_names"):
        training.train(config, tmp_path / "second", progress=False)
    assert not (tmp_path / "second").exists()


def test_an_interrupted_second_stage_starts_again_from_the_same_run(
    first_stage, second_stages, tmp_path, monkeypatch
):
    shutil.copytree(first_stage, tmp_path / SECOND.first_stage.run_name)

    def killed(*args, **kwargs):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(training.adjustment, "retrain_head", killed)
        with pytest.raises(KilledError):
            training.train(SECOND, tmp_path / "run", progress=False)
        # The first stage, which is found beside the run, is not trained again.
        patch.setattr(training, "fit", killed)
    resumed = training.train(SECOND, tmp_path / "run", progress=False)
    assert resumed["last"] == RunFolder(second_stages / "crt").read_results()["last"]
    other = dataclasses.replace(SECOND, stage_one=str(first_stage))
    # Another place of the first stage is the same run; other settings are not.
    assert training.train(other, tmp_path / "run", progress=False) == resumed
    unlike = dataclasses.replace(other, learning_rate=0.5)
    with pytest.raises(
        ValueError, match=r"first belongs to a run with learning_rate.*choose another --stage_one"
    ):
        training.train(unlike, tmp_path / "unlike", progress=False)


@pytest.mark.usefixtures("eagerly")
def test_epochs_between_evaluations_have_no_errors_and_the_last_always_has(tmp_path):
    config = small_config(method="erm", epochs=3, steps_per_epoch=2, evaluate_every=2)
    results = training.train(config, tmp_path / "run", progress=False)
    rows = RunFolder(tmp_path / "run").read_history()
    assert ["test_mean_error" in row for row in rows] == [False, True, True]
    assert all("loss" in row for row in rows)
    assert results["last"]["epoch"] == 2
    assert results["best"]["epoch"] in (1, 2)


def test_evaluating_the_saved_model_gives_the_results_of_the_last_epoch(finished_run):
    results = RunFolder(finished_run).read_results()
    again = training.evaluate(finished_run)
    for key, value in results["last"].items():
        if key != "epoch":
            assert again[key] == pytest.approx(value, abs=1e-3), key
    wrong = np.array(again["per_class_error"]) > 0
    margins = again["margins"]
    assert list(margins) == ["train", "test"]
    told = RunFolder(finished_run).read_diagnosis()["splits"]["train"]["warnings"]
    assert again["warnings"] == told
    assert margins["test"]["unit"] == "cosine"
    for name in ("min", "q05", "q50"):
        assert len(margins["train"][name]) == 10
    # A class has an error exactly where its smallest margin is not positive.
    np.testing.assert_array_equal(np.array(margins["test"]["min"]) <= 0, wrong)


def test_a_run_that_is_complete_is_not_repeated(finished_run, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda config: pytest.fail("it trains again"))
    results = training.train(small_config(method="ldam_drw"), finished_run)
    assert results == RunFolder(finished_run).read_results()


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(finished_run, tmp_path, capsys):
    cut = cut_off(small_config(method="ldam_drw"), tmp_path, after=2, every=0.0)
    assert {file.name for file in cut.checkpoints.iterdir()} == {
        "epoch-00002.json",
        "epoch-00002.weights.h5",
    }
    assert_ends_alike(cut, RunFolder(finished_run))
    assert "after epoch 3" in capsys.readouterr().out


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize(
    ("method", "seconds", "left"), [("ldam_drw", 1e9, 0), ("ldam_drs", 0.0, 1), ("bbn", 0.0, 1)]
)
def test_every_rule_is_resumed_whenever_its_checkpoint_was_written(method, seconds, left, tmp_path):
    average = 0.9 if method == "ldam_drs" else 0.0
    config = small_config(method=method, average=average, epochs=3, steps_per_epoch=2)
    cut = cut_off(config, tmp_path, after=1, every=seconds)
    assert [file.name for file in cut.checkpoints.glob("*.json")] == [f"epoch-0000{left}.json"]
    training.train(config, tmp_path / "whole", progress=False)
    assert_ends_alike(cut, RunFolder(tmp_path / "whole"))


def cut_off(config, folder, *, after, every):
    """A run that was killed after an epoch, and wrote a checkpoint every so many seconds."""
    schedule, cut = training.schedule, RunFolder(folder / "cut")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(progress, "CHECKPOINT_SECONDS", every)
        patch.setattr(training, "schedule", lambda *args: [*schedule(*args), kill_after(after)])
        training.train(config, cut.path)
    return cut


def assert_ends_alike(cut, whole):
    training.train(cut.read_config(), cut.path)
    for ours, theirs in zip(cut.read_history(), whole.read_history(), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    first, second = (folder.load_model().get_weights() for folder in (whole, cut))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("eagerly")
def test_tensorboard_shows_one_curve_for_a_run_that_was_cut_off_and_resumed(tmp_path, monkeypatch):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="the package tensorboard is not installed",
    )

    import tensorflow as tf

    def curve(name):
        found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard" / "train"))
        found.Reload()
        return [
            (event.step, float(tf.make_ndarray(event.tensor_proto)))
            for event in found.Tensors(name)
        ]

    config = small_config(method="erm", steps_per_epoch=2)
    schedule, seen = training.schedule, []
    # Epoch 1 is computed twice: its first logs are there, but its checkpoint is not.
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 1e9)

    def die(epoch, logs):
        if epoch == 2:
            seen.extend(curve("epoch_loss"))
            raise KilledError

    monkeypatch.setattr(
        training,
        "schedule",
        lambda *args: [keras.callbacks.LambdaCallback(on_epoch_begin=die), *schedule(*args)],
    )
    with pytest.raises(KilledError):
        training.train(config, tmp_path / "run", tensorboard=True)
    assert [step for step, _ in seen] == [0, 1]  # On disk at once: a killed process closes no file.
    monkeypatch.undo()
    training.train(config, tmp_path / "run", tensorboard=True)
    rows = RunFolder(tmp_path / "run").read_history()
    for name in ("loss", "test_mean_error", "learning_rate"):
        steps, values = zip(*curve(f"epoch_{name}"), strict=True)
        assert steps == (0, 1, 2, 3)
        assert values == pytest.approx([row[name] for row in rows], rel=1e-5)


def test_tensorboard_is_off_by_default_and_named_where_it_is_missing(
    finished_run, tmp_path, monkeypatch
):
    assert not (finished_run / "tensorboard").exists()
    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="is not installed: pip install tensorboard"):
        training.train(small_config(), tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_a_corrupt_checkpoint_gets_a_sentence_and_is_left_alone(tmp_path):
    config = small_config(method="erm")
    RunFolder(tmp_path).create(config, datasets.load(config).describe())
    (tmp_path / "checkpoints" / "epoch-00001.json").write_text(
        '{"epoch": 1, "last": null, "best": null, "seconds": 0}'
    )
    broken = tmp_path / "checkpoints" / "epoch-00001.weights.h5"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"epoch-00001.weights.h5 cannot be read .*remove it"):
        training.train(config, tmp_path)
    assert broken.read_bytes() == b"not a checkpoint"


def test_an_unavailable_dataset_leaves_no_run_folder_behind(tmp_path):
    config = small_config(dataset="folder", method="erm", data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere"):
        training.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_model_gets_a_sentence(finished_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    (copy / "model.keras").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"model.keras cannot be read"):
        training.evaluate(copy)


@pytest.mark.parametrize(
    ("method", "loss"),
    [
        ("erm", "CrossEntropy"),
        ("cb_focal", "Focal"),
        ("m_drw", "LDAM"),
        ("hg_drs", "LDAMHinge"),
        ("la", "LogitAdjusted"),
        ("vs", "VectorScaling"),
        ("ldam_la", "LDAM"),
    ],
)
def test_a_method_names_its_loss(method, loss):
    built = LOSSES[small_config(method=method).loss].make([50, 5], SETTINGS)
    assert type(built).__name__ == loss
    assert built.tau == (method in ("la", "vs", "ldam_la"))
    if method in ("m_drw", "hg_drs"):  # One margin for all; the counts differ.
        assert built.margins.tolist() == [0.5, 0.5]


@pytest.mark.usefixtures("eagerly")
def test_every_epoch_of_a_run_is_planned_as_its_own(tmp_path, monkeypatch):
    planned, plan = [], Batches.plan
    monkeypatch.setattr(
        Batches, "plan", lambda self, epoch: planned.append(epoch) or plan(self, epoch)
    )
    config = small_config(method="erm", epochs=3, steps_per_epoch=2, evaluate_every=3)
    training.train(config, tmp_path / "run", progress=False)
    assert planned == [0, 1, 2]


@pytest.mark.usefixtures("eagerly")
def test_the_precision_is_that_of_the_config_and_checkpoints_are_removed(tmp_path):
    config = small_config(method="erm", epochs=1, steps_per_epoch=1, precision="mixed_bfloat16")
    training.train(config, tmp_path / "run", progress=False)
    model = RunFolder(tmp_path / "run").load_model()
    assert "bfloat16" in {layer.compute_dtype for layer in model.layers}
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.usefixtures("eagerly")
def test_a_model_that_could_not_be_saved_whole_is_not_there(tmp_path, monkeypatch):
    def break_off(self, path):
        Path(path).write_bytes(b"half a mod")
        raise OSError("disk full")

    monkeypatch.setattr(keras.Model, "save", break_off)
    config = small_config(method="erm", epochs=1, steps_per_epoch=1)
    with pytest.raises(OSError, match="disk full"):
        training.train(config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "model.keras").exists()
    assert not RunFolder(tmp_path / "run").complete


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_model_is_compiled_as_the_config_says(optimizer):
    data = datasets.load(small_config())
    config = small_config(
        optimizer=optimizer, learning_rate=0.25, momentum=0.75, weight_decay=0.01, clipnorm=2.0,
        steps_per_execution=3, jit="off",
    )  # fmt: skip
    model = training.compiled_model(config, data)
    assert float(model.optimizer.learning_rate) == 0.25
    assert model.optimizer.global_clipnorm == 2.0
    if optimizer == "sgd":
        assert (model.optimizer.momentum, model.optimizer.coupled_weight_decay) == (0.75, 0.01)
    assert (model.steps_per_execution, model.jit_compile) == (3, False)
    other = training.compiled_model(small_config(optimizer=optimizer, jit="on"), data)
    assert (other.optimizer.global_clipnorm, other.jit_compile) == (None, True)


@pytest.mark.parametrize("mix", ["", "mixup"])
def test_a_step_is_traced_once(mix, tmp_path, monkeypatch):
    # TensorFlow traces it again where it makes variables: those of an optimizer or a metric.
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda *given: traced.append(1) or step(*given))
    config = small_config(method="erm", mix=mix, epochs=1, steps_per_epoch=2)
    training.train(config, tmp_path / "run", progress=False)
    assert traced == [1]


def test_the_loss_has_the_constants_of_the_config():
    data = datasets.load(small_config())
    constants = {"gamma": 2.5, "scale": 20.0, "max_margin": 0.25, "tau": 0.75, "vs_gamma": 0.6}
    constants["gradual"] = True
    for loss, named in LOSSES.items():
        built = training.compiled_model(small_config(loss=loss, **constants), data).loss
        assert {name: getattr(built, name) for name in named.arguments} == {
            name: constants[named.renamed.get(name, name)] for name in named.arguments
        }


def test_rule_and_rate_have_the_constants_of_the_config():
    data = datasets.load(small_config())
    constants = {"beta": 0.9, "epochs": 10, "learning_rate": 1.0, "warmup_epochs": 2}
    config = small_config(method="ldam_drw", start_epoch=6, **constants)
    rate, rule = training.schedule(config)
    expected = [0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert [rate.schedule(epoch) for epoch in range(10)] == pytest.approx(expected)
    assert (rule.start_epoch, rule.weights, rule.beta) == (6, "effective", 0.9)
    config = small_config(method="cb_rs", steps_per_epoch=3, **constants)
    batches = feeding.training_batches(config, data)
    weights = keras_ldam.class_weights(data.counts, beta=0.9)
    expected = epoch_order(data.train.labels, seed=0, epoch=0, weights=weights)
    np.testing.assert_array_equal(batches.order(0), expected)
    assert len(batches) == 3


def test_two_drops_at_one_epoch_both_count():
    config = small_config(epochs=5, drop_at=(0.8, 0.9), drop_factor=0.1, learning_rate=1.0)
    assert config.drop_epochs == (4, 4)
    rate = training.schedule(config)[0].schedule
    assert [rate(epoch) for epoch in (3, 4)] == pytest.approx([1.0, 0.01])


@pytest.mark.usefixtures("eagerly")
def test_two_processes_do_not_train_in_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    config = small_config(method="erm", epochs=1, steps_per_epoch=1)
    folder = RunFolder(tmp_path / "run")
    folder.create(config, datasets.load(config).describe())
    with (
        folder.locked(),
        pytest.raises(ValueError, match=r"another process is training in .*run; wait"),
    ):
        training.train(dataclasses.replace(config, jit="off"), tmp_path / "run")
    assert folder.read_config() == config  # Whoever is refused changes nothing.
    training.train(config, tmp_path / "run")
    assert folder.complete


@pytest.mark.usefixtures("eagerly")
def test_a_run_cut_off_after_its_last_epoch_keeps_the_class_weights(
    finished_run, tmp_path, monkeypatch
):
    config = small_config(method="ldam_drw", epochs=2, steps_per_epoch=1)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(progress.Progress, "finish", die)
        with pytest.raises(KeyboardInterrupt):
            training.train(config, tmp_path / "cut")
    training.train(config, tmp_path / "cut")
    one, two = (RunFolder(path).load_model() for path in (finished_run, tmp_path / "cut"))
    np.testing.assert_array_equal(one.loss.class_weights, two.loss.class_weights)
    assert np.ptp(np.asarray(one.loss.class_weights)) > 0


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])  # The latter scales losses.
def test_what_a_killed_run_has_left_is_taken_up_at_its_last_complete_epoch(
    precision, tmp_path, monkeypatch
):
    keras.config.set_dtype_policy(precision)
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)
    config = small_config(method="erm")
    data, folder = datasets.load(config), RunFolder(tmp_path)
    folder.create(config, data.describe())
    model = training.compiled_model(config, data)
    record = progress.Progress(folder, config, data, Place(), model)
    record.set_model(model)
    for epoch in range(2):
        record.rows.append({"epoch": float(epoch), "loss": 2.0 - epoch})
        record.last, record.best = {"epoch": epoch}, {"epoch": 0}
        record.seconds = 10.0 * (epoch + 1)
        record._write_checkpoint(epoch)
    left = sorted(file.name for file in folder.checkpoints.iterdir())
    assert left == ["epoch-00001.json", "epoch-00001.weights.h5"]

    # Killed before the old checkpoint was removed …
    for suffix in (".json", ".weights.h5"):
        new = folder.checkpoints / f"epoch-00001{suffix}"
        shutil.copy(new, folder.checkpoints / f"epoch-00000{suffix}")
    (folder.checkpoints / "epoch-00000.json").write_text(
        '{"epoch": 0, "last": null, "best": null, "seconds": 0}'
    )
    # … or after the next epoch's row was written and before its weights were.
    folder.write_history([*record.rows, {"epoch": 2.0, "loss": 0.5}])
    again = progress.Progress(folder, config, data, Place(), training.compiled_model(config, data))
    assert again.resume() == 2
    assert again.rows == record.rows
    assert (again.last, again.best, again.seconds) == ({"epoch": 1}, {"epoch": 0}, 20.0)


def test_the_diagnosis_trusts_the_probabilities_that_are_served(finished_run):
    training.evaluate(finished_run)
    test = datasets.load(small_config(method="ldam_drw")).test
    model = RunFolder(finished_run).load_model()
    scores = 30.0 * model.predict(test.examples, verbose=0).astype(np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    told = RunFolder(finished_run).read_diagnosis()["splits"]["test"]["reliability"]
    total = sum(
        n * confidence for n, confidence in zip(told["count"], told["confidence"], strict=True) if n
    )
    assert total / 500 == pytest.approx((1 / powers.sum(axis=1)).mean(), abs=1e-4)


def test_a_process_that_comes_second_finds_the_run_complete(finished_run, tmp_path, monkeypatch):
    # The other process finishes between the first look at the folder and the lock.
    config, folder = small_config(method="ldam_drw"), RunFolder(tmp_path / "run")
    locked = RunFolder.locked

    def finished_meanwhile(self):
        shutil.copytree(finished_run, self.path)
        return locked(self)

    monkeypatch.setattr(RunFolder, "locked", finished_meanwhile)
    monkeypatch.setattr(datasets, "load", lambda config: pytest.fail("it trains again"))
    assert training.train(config, folder.path) == RunFolder(finished_run).read_results()
    assert len(folder.read_history()) == 4


@pytest.mark.usefixtures("eagerly")
def test_a_kill_during_the_first_write_leaves_a_folder_that_trains(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    shutil.rmtree(run / "checkpoints")
    (run / f".partial-{files._host()}-4194305-config.json").write_text('{"data')
    training.train(small_config(method="erm", epochs=1, steps_per_epoch=1), run, progress=False)
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_the_answer_of_a_read_only_run_is_given_all_the_same(finished_run, monkeypatch, capsys):
    def refuse(path, values):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(training, "write_json", refuse)
    found = training.evaluate(finished_run)
    assert found["split"] == "test"
    assert "diagnosis.json was not written: Permission denied" in capsys.readouterr().out


@pytest.mark.usefixtures("eagerly")
def test_what_a_checkpoint_replaces_is_removed_only_once_the_new_one_is_on_the_disk(
    tmp_path, monkeypatch
):
    calls = []
    monkeypatch.setattr(progress, "CHECKPOINT_SECONDS", 0.0)
    for owner, name in ((files.os, "fsync"), (Path, "replace"), (Path, "unlink")):
        real = getattr(owner, name)

        def record(target, *args, real=real, name=name, **kwargs):
            shown = str(Path(f"/proc/self/fd/{target}").readlink() if name == "fsync" else target)
            calls.append((name, shown.removeprefix(str(tmp_path))))
            return real(target, *args, **kwargs)

        monkeypatch.setattr(owner, name, record)
    config = small_config(method="erm", epochs=2, steps_per_epoch=1)
    training.train(config, tmp_path / "run", progress=False)
    prefix = f".partial-{files._host()}-{os.getpid()}"
    first, second = (f"/run/checkpoints/epoch-0000{i}.weights.h5" for i in (0, 1))
    temporary = f"/run/checkpoints/{prefix}-epoch-00001.weights.h5"
    steps = [
        ("fsync", temporary),
        ("replace", temporary),
        ("fsync", "/run/checkpoints"),
        ("unlink", first),
    ]
    places = [calls.index(step, calls.index(("replace", temporary)) - 1) for step in steps]
    assert places == sorted(places)
    model = f"/run/{prefix}-model.keras"
    after = calls[calls.index(("replace", model)) :]
    assert ("fsync", model) in calls and ("fsync", "/run") in after
    assert after.index(("fsync", "/run")) < after.index(("unlink", second))
