"""The start of every program: imports the library without TensorFlow's start-up notes.

TensorFlow 2.21 writes some notes to standard error while it is imported, and an error when it first
looks for a GPU where there is none, whatever the log level (tensorflow/tensorflow#100442). A user's
one sentence would drown in them. This module stands beside the package since importing anything of
the package imports Keras, and so TensorFlow, first.
"""

import os
import sys
from pathlib import Path


def main(verb: str | None = None) -> None:
    """Runs the program `verb` (None: the one that the first argument names) and exits."""
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
    finally:
        # Python writes a traceback, if there is one, only after this.
        os.dup2(kept, 2)
        os.close(kept)
    sys.exit(cli.main(verb))
