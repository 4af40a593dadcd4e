"""What the machine is said to be, and the threads of TensorFlow in a process of its own."""

import json
import os
import sys
from types import SimpleNamespace

import keras
import pytest
import replicas

from keras_ldam import hardware

PROGRAM = """
import json, os
from unittest import mock
from keras_ldam import hardware
import tensorflow as tf

def chosen(cores, *chains, **environment):
    with mock.patch.object(hardware, "cores", lambda: cores):
        with mock.patch.dict(os.environ, environment):
            hardware.divide_cores(*chains)
    config = tf.config.threading
    return config.get_intra_op_parallelism_threads(), config.get_inter_op_parallelism_threads()

found = {"one": chosen(1), "decided": chosen(8, TF_NUM_INTEROP_THREADS="3")}
found |= {"two": chosen(2), "four replicas": chosen(8, 4), "eight": chosen(8)}
tf.zeros(1)
print(json.dumps({**found, "late": chosen(4)}))
"""


def run(program, folder):
    unset = dict.fromkeys(name for name in os.environ if name.startswith("TF_NUM_"))
    told = folder / "told.txt"
    process = replicas.start(exec, (program, {}), told, **unset)
    assert replicas.ended(process) == 0, told.read_text()[-2000:]
    return json.loads(told.read_text().splitlines()[-1])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="about TensorFlow's threads")
def test_each_direction_gets_half_of_the_cores(tmp_path):
    found = run(PROGRAM, tmp_path)
    assert found["two"] == [1, 2]
    assert found["eight"] == [4, 2]
    assert found["four replicas"] == [2, 4]
    assert found["one"] == found["decided"] == [0, 0]  # TensorFlow's own choice.
    assert found["late"] == found["eight"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_cores_are_those_that_this_process_may_use(tmp_path):
    one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    assert run(one + "from keras_ldam import hardware; print(hardware.cores())", tmp_path) == 1
    assert hardware.cores() == len(os.sched_getaffinity(0))


def as_tensorflow(devices):
    def details(device):
        return {"device_name": device.name} if device.name else {}

    config = SimpleNamespace(
        list_physical_devices=lambda: (
            [SimpleNamespace(device_type="CPU", name="")]
            + [SimpleNamespace(device_type="GPU", name=name) for name in devices]
        ),
        experimental=SimpleNamespace(get_device_details=details),
    )
    return SimpleNamespace(config=config)


def as_jax(devices):
    names = [("gpu", name) for name in devices] or [("cpu", "cpu")]
    found = [SimpleNamespace(platform=platform, device_kind=name) for platform, name in names]
    return SimpleNamespace(local_devices=lambda: found)


def as_torch(devices):
    cuda = SimpleNamespace(device_count=lambda: len(devices), get_device_name=lambda i: devices[i])
    return SimpleNamespace(cuda=cuda)


BACKENDS = {"tensorflow": as_tensorflow, "jax": as_jax, "torch": as_torch}


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_say_which_accelerators_they_were_computed_with(backend, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setitem(sys.modules, backend, BACKENDS[backend](["Card A", "Card B", "Card A"]))
    assert hardware.accelerators() == ["Card A", "Card B", "Card A"]
    assert hardware.describe().startswith("2 × Card A, Card B, ")
    monkeypatch.setitem(sys.modules, backend, BACKENDS[backend]([]))
    assert hardware.accelerators() == []
    assert (
        hardware.describe() == f"{hardware._processor()}, {hardware.cores()} cores, {sys.platform}"
    )


def test_an_accelerator_without_a_name_is_called_by_its_kind(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    monkeypatch.setitem(sys.modules, "tensorflow", as_tensorflow([""]))
    assert hardware.accelerators() == ["GPU"]
