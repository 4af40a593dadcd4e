"""The start of every program: sets TensorFlow's environment, and hides its start-up notes.

TensorFlow 2.21 writes notes to standard error while it is imported, and an error when it first
looks for a GPU where there is none, whatever the log level (tensorflow/tensorflow#100442). A user's
one sentence would drown in them. This module stands beside the package because importing anything
of the package first imports Keras, and with it TensorFlow.
"""

import os
import sys
from pathlib import Path


def main(verb: str | None = None) -> None:
    """Runs a program and exits.

    Args:
        verb: Name of the program; `None` for the one that the first argument names.
    """
    # TensorFlow reads this once, when it is imported. On CPUs with AVX2 only it leaves its fast
    # kernels off unless it is asked, at half the speed; where it is set already this changes
    # nothing.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    has_gpu = any(Path("/dev").glob("nvidia[0-9]*"))
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        from keras_ldam.experiments import cli

        if not has_gpu and "tensorflow" in sys.modules:
            sys.modules["tensorflow"].config.list_physical_devices()
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("keras_ldam"):
            raise
        os.dup2(kept, 2)
        print(
            f"{verb or 'keras-ldam'}: {error.name} is not installed for {sys.executable}. Activate "
            "the environment that `make demo` makes, `. .venv/bin/activate`, or install this "
            "project: pip install '.[experiments]'.",
            file=sys.stderr,
        )
        sys.exit(2)
    finally:
        # Python writes a traceback, if there is one, only after this.
        os.dup2(kept, 2)
        os.close(kept)
    sys.exit(cli.main(verb))
