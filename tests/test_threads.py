"""The threads of TensorFlow, in a process in which it has computed nothing yet."""

import json
import os
import subprocess
import sys

import keras
import pytest

from keras_ldam import threads

PROGRAM = """
import json, os
from unittest import mock
from keras_ldam import threads
import tensorflow as tf

def chosen(cores, **environment):
    with mock.patch.object(threads, "cores", lambda: cores):
        with mock.patch.dict(os.environ, environment):
            threads.for_two_directions()
    config = tf.config.threading
    return config.get_intra_op_parallelism_threads(), config.get_inter_op_parallelism_threads()

found = {"one": chosen(1), "decided": chosen(8, TF_NUM_INTEROP_THREADS="3")}
found |= {"two": chosen(2), "eight": chosen(8)}
tf.zeros(1)
print(json.dumps({**found, "late": chosen(4)}))
"""


def run(program):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TF_NUM_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**kept, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="about TensorFlow's threads")
def test_each_direction_gets_half_of_the_cores():
    found = run(PROGRAM)
    assert found["two"] == [1, 2]
    assert found["eight"] == [4, 2]
    assert found["one"] == found["decided"] == [0, 0]  # TensorFlow's own choice.
    assert found["late"] == found["eight"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_cores_are_those_that_this_process_may_use():
    one = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    assert run(one + "from keras_ldam import threads; print(threads.cores())") == 1
    assert threads.cores() == len(os.sched_getaffinity(0))
