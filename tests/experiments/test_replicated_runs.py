"""Runs over several devices and machines: the same results, and a sentence for a lost machine."""

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import replicas
import tensorflow as tf
import two_processes
from conftest import small_config

from keras_ldam import distribution, hardware
from keras_ldam.experiments import cli, exporting, place, progress, training
from keras_ldam.experiments.datasets.data import Ragged, Split
from keras_ldam.experiments.datasets.sampling import Batches
from keras_ldam.experiments.run_folder import RunFolder


@pytest.fixture(scope="module")
def mirrored():
    return distribution.make_strategy("mirrored", replicas=2)


# ----------------------------------------------------------------------------- shares


def test_shares_put_together_are_the_batches():
    split = Split(np.arange(21), np.zeros(21, "int32"))
    whole = Batches(split, 8, seed=0).plan(3)
    parts = [Batches(split, 8, seed=0, replicas=4, own=own) for own in
             (range(2), range(2, 4))]  # fmt: skip
    assert [len(part) for part in parts] == [6, 6]
    for step, batch in enumerate(whole):
        shares = [share for part in parts for share in part.plan(3)[2 * step : 2 * step + 2]]
        np.testing.assert_array_equal(np.concatenate(shares), batch)
    assert len(parts[1].plan(3)[-1]) == 0  # 5 examples in shares of 2.


def test_shares_of_sequences_stay_with_their_batch_where_a_small_one_is_not_the_last():
    lengths = np.arange(1, 22)
    split = Split(Ragged(np.ones(lengths.sum(), "int32"), lengths), np.zeros(21, "int32"))
    whole = Batches(split, 8, seed=1)
    cut = Batches(split, 8, seed=1, replicas=2)
    for epoch in range(4):
        for batch, (first, second) in zip(
            whole.plan(epoch), zip(*[iter(cut.plan(epoch))] * 2, strict=True), strict=True
        ):
            np.testing.assert_array_equal(np.concatenate([first, second]), batch)


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused():
    split = Split(np.arange(21), np.zeros(21, "int32"))
    with pytest.raises(ValueError, match=r"number of replicas, 2\. Received: batch_size=9"):
        Batches(split, 9, seed=0, replicas=2)


# ----------------------------------------------------------------------------- a whole run


def test_a_run_goes_on_over_two_devices_and_its_model_is_as_good_as_it_was(tmp_path):
    config = small_config(
        method="ldam_drw", epochs=2, strategy="mirrored", average=0.9, sharpness=0.1
    )
    found = training.train(config, tmp_path / "run", progress=False)
    again = training.evaluate(tmp_path / "run")
    assert again["per_class_error"] == found["last"]["per_class_error"]
    model = RunFolder(tmp_path / "run").load_model()
    assert type(model).__module__.startswith("keras.")
    assert found["config"]["strategy"] == "mirrored"


def test_a_run_goes_on_over_other_devices_and_says_so(tmp_path, mirrored, monkeypatch):
    class CutOffError(Exception):
        pass

    def cut(self, epoch):
        save(self, epoch)
        raise CutOffError

    monkeypatch.setattr(hardware, "cores", lambda: 2)
    monkeypatch.setattr(progress, "EVALUATION_BATCH", 40)  # So that there are several.
    with monkeypatch.context() as patched:
        save = progress.Progress._write_checkpoint
        patched.setattr(progress.Progress, "_write_checkpoint", cut)
        with pytest.raises(CutOffError):
            training.train(small_config(method="ldam_drw"), tmp_path / "run")
    found = training.train(small_config(method="ldam_drw", strategy="cores"), tmp_path / "run")
    assert found["replicas"] == [1, 2]
    again = training.evaluate(tmp_path / "run")  # One batch after the other.
    assert again["per_class_error"] == found["last"]["per_class_error"]


def test_cores_are_given_batches_to_evaluate_side_by_side(mirrored, monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    assert place.Place.of(small_config(strategy="cores")).at_once == 2
    assert place.Place.of(small_config(strategy="mirrored")).at_once == 1


def test_a_run_that_was_begun_on_one_device_may_go_on_elsewhere(tmp_path):
    config = small_config(method="erm")
    RunFolder(tmp_path).create(config, {})
    RunFolder(tmp_path).check(small_config(method="erm", strategy="mirrored", jit="on"))
    with pytest.raises(ValueError, match="precision"):
        RunFolder(tmp_path).check(small_config(method="erm", precision="mixed_bfloat16"))


def test_a_run_over_two_devices_on_jax_leaves_a_model_for_every_backend(on_jax, tmp_path):
    # Class weights and balanced draws, each from the second epoch on.
    flags = ["--dataset=digits", "--epochs=2", "--drop_at=0.5", "--noprogress"]
    flags += ["--strategy=mirrored"]
    done = on_jax(
        "import sys; from keras_ldam.experiments import cli\n"
        "for method in ('ldam_drw', 'ldam_drs'):\n"
        "    run = [f'--method={method}', f'--run_dir={sys.argv[1]}/{method}']\n"
        "    assert cli.main('train', [*sys.argv[2:], *run]) == 0",
        str(tmp_path),
        *flags,
        devices=2,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    drw, drs = (RunFolder(tmp_path / method) for method in ("ldam_drw", "ldam_drs"))
    assert drw.read_results()["replicas"] == drs.read_results()["replicas"] == [2]
    again = training.evaluate(tmp_path / "ldam_drw")
    expected = drw.read_results()["last"]["per_class_error"]
    np.testing.assert_allclose(again["per_class_error"], expected)
    exported = exporting.export(tmp_path / "ldam_drs", tmp_path / "exported")
    loaded = tf.saved_model.load(exported["folder"])
    model = drs.load_model()
    images = np.random.default_rng(0).integers(0, 17, (3, *model.input_shape[1:])).astype("uint8")
    served = loaded.signatures["serving_default"](image=tf.constant(images))
    guesses = np.argmax(model([images]), axis=1)
    np.testing.assert_array_equal(served["probabilities"].numpy().argmax(1), guesses)


# ----------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy=mirrored", "--replicas=5"], "Received: replicas=5"),
        (["--strategy=multiworker"], "needs TF_CONFIG of the form"),
        (["--strategy=mirrored", "--batch_size=33"], "multiple of the number of replicas, 2"),
        (["--strategy=cloud"], "'cloud'"),
        (["--jit=perhaps"], "'perhaps'"),
        (["--precision=mixed_float16"], "needs an accelerator"),
        (["--steps_per_execution=0"], "steps_per_execution"),
    ],
)
def test_wrong_settings_get_a_sentence(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert cli.main("train", ["--smoke", f"--run_dir={tmp_path / 'run'}", *arguments]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("train: ")
    assert re.search(message, told), told
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------- two machines


def test_two_machines_on_jax_train_as_one_device_and_a_lost_one_gets_a_sentence(
    jax_forks, tmp_path
):
    program = Path(two_processes.__file__).read_text()
    addresses = [f"localhost:{port}" for port in replicas.free_ports(2)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((tmp_path / f"{i}.txt").open("w+")) for i in range(2)]
        machines = []
        for index in range(2):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            machine = jax_forks.start(
                program, f"{tmp_path}/{index}.npz", stderr=files[index], TF_CONFIG=json.dumps(task)
            )
            machines.append(stack.enter_context(machine))
            stack.callback(machine.kill)
        codes = [machine.wait(120) for machine in machines]
        assert codes == [1, -signal.SIGKILL], (tmp_path / "0.txt").read_text()[-2000:]
        told = machines[0].stdout.read().decode().splitlines()[-1]
    assert told.startswith("Another worker failed or has stopped (")
    model = two_processes.made(run_eagerly=True)
    loss = two_processes.fit(model)
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as found:
            np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
            for i, weights in enumerate(model.get_weights()):
                np.testing.assert_allclose(found[f"arr_{i}"], weights, rtol=0, atol=1e-5)


def test_a_killed_machine_ends_the_run_and_the_same_command_resumes_it(tmp_path):
    run, outputs = tmp_path / "run", tmp_path / "outputs"
    outputs.mkdir()
    flags = ["--dataset=digits", "--method=erm", "--epochs=8", "--noprogress"]
    flags += ["--strategy=multiworker", "--worker_timeout=60", f"--run_dir={run}"]
    machines = [("train", flags)] * 2
    processes = replicas.start_cluster(cli.main, machines, outputs)
    try:
        deadline = time.monotonic() + 120
        while not list(run.glob("checkpoints/epoch-*.h5")):
            assert time.monotonic() < deadline
            assert processes[0].exitcode is None, (outputs / "0.txt").read_text()[-2000:]
            time.sleep(0.02)
        os.kill(processes[1].pid, signal.SIGKILL)
        assert replicas.ended(processes[0], timeout=60) == 1
    finally:
        replicas.end(processes)
    told = (outputs / "0.txt").read_text().splitlines()[-1]
    assert told.startswith("train: Another worker failed or has stopped")
    assert not (run / "results.json").exists()

    processes = replicas.start_cluster(cli.main, machines, outputs)
    try:
        codes = [replicas.ended(process) for process in processes]
    finally:
        replicas.end(processes)
    assert codes == [0, 0], (outputs / "0.txt").read_text()[-2000:]
    texts = [(outputs / f"{index}.txt").read_text() for index in range(2)]
    assert all("resumes" in text for text in texts)
    answers = [json.loads(text.splitlines()[-1]) for text in texts]
    assert answers[0]["last"] == answers[1]["last"]
    assert len(RunFolder(run).read_history()) == 8
    assert not list((run / "checkpoints").iterdir())
    assert not list(run.glob(".*"))  # The chief alone has written.
