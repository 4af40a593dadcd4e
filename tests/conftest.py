"""Settings and fixtures that several test modules share.

TensorFlow and what needs it are imported by the fixtures: the process that leads the workers needs
none of it.
"""

import contextlib
import fcntl
import functools
import gc
import importlib.util
import io
import os
import pickle
import shutil
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# XLA takes longer to compile than what it has compiled takes to run.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)
if os.environ.get("KERAS_BACKEND") == "jax" and "device_count" not in os.environ["XLA_FLAGS"]:
    # For what is done on several devices; everything else is done on the first.
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
if "PYTEST_XDIST_WORKER" in os.environ:
    # The cores are shared with the other workers; programs that tests start inherit this.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np
import pytest
from forks import Forks

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


def pytest_configure(config):
    """Makes two devices, for what is done on several; everything else goes on the first."""
    if config.getoption("dist", "no") != "no":
        return  # The leader of several workers, which does no test itself.
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return  # Importing it takes longer than many a test.
    if importlib.util.find_spec("tensorflow") is None:
        return
    with _without_start_up_notes():
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
        )


def pytest_collection_finish():
    """To look for garbage among all that has been imported takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 5, 4)


@contextlib.contextmanager
def _without_start_up_notes():
    """TensorFlow writes some whatever the log level; see `keras_ldam_program`."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def without_graphs():
    """Within it, models train eagerly: tracing takes far longer than a few steps."""
    import keras

    # Where it is defined: Keras asks of a model that it loads whether it has a method of its own.
    owner = next(kind for kind in keras.Model.__mro__ if "compile" in vars(kind))
    compiled = owner.compile

    @functools.wraps(compiled)
    def eager(self, *args, **settings):
        return compiled(self, *args, **{"run_eagerly": True, **settings})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, "compile", eager)
        yield


@pytest.fixture
def eagerly():
    """For tests in which models train a few steps, and which are not about graphs."""
    with without_graphs():
        yield


def small_config(**changes):
    """A resolved `Config` of a run of seconds."""
    from keras_ldam.experiments.config import Config

    return Config(**{**SMALL, **changes}).resolve()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Makes what tests in several workers need in the worker that needs it first.

    Call it with a name, and a function of a folder that returns what can be pickled.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def once(name, make):
        folder, value = base / name, base / f"{name}.pickle"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not value.exists():
                folder.mkdir()
                value.write_bytes(pickle.dumps(make(folder)))
        return pickle.loads(value.read_bytes())

    return once


@pytest.fixture(scope="session")
def finished_run(made_once):
    """The folder of a finished run of LDAM-DRW on digits; not to be changed."""
    from keras_ldam.experiments import training

    def make(folder):
        training.train(small_config(method="ldam_drw"), folder / "digits-ldam_drw-0")
        return folder / "digits-ldam_drw-0"

    return made_once("finished", make)


@pytest.fixture(scope="session")
def digits_export(finished_run, made_once):
    """What `export` says of the finished run on digits; not to be changed."""
    from keras_ldam.experiments import exporting

    return made_once("exported", lambda folder: exporting.export(finished_run, folder / "digits"))


@pytest.fixture(scope="session")
def text_model():
    """An untrained model of texts of three words, and its tokenizer."""
    import keras

    from keras_ldam.experiments import text

    inputs = keras.Input((None,), dtype="int32")
    # Masked, so that the answer to a text does not depend on how long the others are.
    vectors = keras.layers.Embedding(5, 3, mask_zero=True)(inputs)
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(vectors))
    return keras.Model(inputs, outputs), text.Tokenizer(("a", "good", "film"), 10)


@pytest.fixture(scope="session")
def text_export(text_model, tmp_path_factory):
    """The folder of the exported `text_model`; not to be changed."""
    import keras_ldam

    model, tokenizer = text_model
    return keras_ldam.export_saved_model(
        model,
        tmp_path_factory.mktemp("exports") / "text",
        class_names=["negative", "positive"],
        tokenizer=tokenizer,
    )


@pytest.fixture(scope="session")
def compared_runs(finished_run, made_once):
    """Two finished and evaluated runs: ERM and LDAM-DRW on digits; not to be changed."""
    from keras_ldam.experiments import training

    def make(folder):
        training.train(small_config(method="erm"), folder / "erm")
        shutil.copytree(finished_run, folder / "ldam_drw")
        for name in ("erm", "ldam_drw"):
            training.evaluate(folder / name)
        return [folder / "erm", folder / "ldam_drw"]

    return made_once("compared", make)


@pytest.fixture(scope="session")
def reported(compared_runs, made_once):
    """What `bin/report` printed of the two runs, and its folder: results, page and figures.

    Not to be changed.
    """
    from keras_ldam.experiments import cli

    def make(folder):
        arguments = [*map(str, compared_runs), f"--results_dir={folder}", f"--output_dir={folder}"]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert cli.main("report", arguments) == 0
        return printed.getvalue(), folder

    return made_once("reported", make)


def needs_jax():
    """Skips what `make test` has no reason to start another process for."""
    import keras

    if keras.backend.backend() != "jax":
        pytest.skip("`make test-lean` runs it")


WITHOUT_TENSORFLOW = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "tensorflow_text"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import keras_ldam
"""


@pytest.fixture(scope="session")
def jax_forks():
    """Starts programs on JAX; TensorFlow cannot be imported."""
    pytest.importorskip("jax")
    forks = Forks(
        WITHOUT_TENSORFLOW,
        KERAS_BACKEND="jax",
        JAX_PLATFORMS="cpu",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # Compiling takes longer than running.
    )
    yield forks
    forks.end()


@pytest.fixture(scope="session")
def on_jax(jax_forks):
    """Runs programs, and returns what `subprocess.run` would; TensorFlow cannot be imported."""

    def run(program, *arguments, devices=1, **settings):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        return jax_forks.run(program, *arguments, XLA_FLAGS=flags, **settings)

    return run


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def same_start():
    """Each test starts under the default precision and with the same seed, whatever was before."""
    import keras

    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
