"""Settings and fixtures that several test modules share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ldam import training
from keras_ldam.config import Config

# Two devices, for what is done on several; everything else goes on the first.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# Small runs take as long to compile as to train; one configuration serves many tests.
SMALL = {
    "dataset": "digits",
    "imbalance_ratio": 20.0,
    "epochs": 4,
    "batch_size": 32,
    "optimizer": "adam",
    "learning_rate": 2e-3,
    "drop_at": (0.5,),
    "drop_factor": 0.1,
}


def small_config(**changes) -> Config:
    """A resolved config of a run of seconds."""
    return Config(**{**SMALL, **changes}).resolve()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The folder of a finished run of LDAM-DRW on digits; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "digits-ldam_drw-0"
    training.train(small_config(method="ldam_drw"), folder)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def float32_policy():
    """Each test starts under the default precision, whatever the one before has set."""
    keras.config.set_dtype_policy("float32")
