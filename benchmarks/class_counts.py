"""What the counts of 1,000,000 and 10,000,000 classes cost: advice, losses, metrics and the report.

    python benchmarks/class_counts.py

Nothing here has scores of all classes; see `many_classes.py` for those. Each case runs in a process
of its own, on Keras' JAX backend. `mebibytes` is the most that the process ever had in memory, what
it imports included, which is the row `import`; `seconds` are processor seconds of the case without
imports, of all threads together.
Counts fall as 1/rank from 10,000,000 to 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
BATCH = 256


def nothing(counts, generator):
    """What importing costs."""


def advise(counts, generator):
    """Margins, weights and advice, as text."""
    import keras_ldam

    str(keras_ldam.advise(counts, epochs=90))


def loss(counts, generator):
    """LDAM with class weights, set anew as DRW does."""
    import keras_ldam

    found = keras_ldam.LDAM(counts)
    keras_ldam.set_class_weights(found, keras_ldam.class_weights(counts))


def class_errors(counts, generator):
    """Three compiled steps of ClassErrors and its result, by the best class of each example."""
    import jax

    import keras_ldam

    metric = keras_ldam.ClassErrors(counts)

    @functools.partial(jax.jit, donate_argnums=0)  # As in `fit`.
    def step(state, labels, guesses):
        state = metric.stateless_update_state(state, labels, guesses)
        return state, metric.stateless_result(state)

    state = [variable.value for variable in metric.variables]
    for labels, guesses in _examples(counts, generator):
        state, result = step(state, labels, guesses)
    print({name: float(value) for name, value in result.items()}, file=sys.stderr)


def class_errors_one_by_one(counts, generator):
    """The same without a compiler."""
    import keras_ldam

    metric = keras_ldam.ClassErrors(counts)
    for labels, guesses in _examples(counts, generator):
        metric.update_state(labels, guesses)
        result = metric.result()
    print({name: float(value) for name, value in result.items()}, file=sys.stderr)


def _examples(counts, generator):
    for _ in range(3):
        labels, guesses = generator.integers(0, len(counts), (2, BATCH)).astype("int32")
        yield labels, guesses[:, None]


def report(counts, generator):
    """The page on two models, from their guesses for 1,000,000 examples."""
    import numpy as np

    import keras_ldam.report

    labels, guesses = generator.integers(0, len(counts), 10**6), {}
    for title, better in (("ERM", 0.3), ("LDAM-DRW", 0.5)):
        right = generator.random(len(labels)) < better
        guesses[title] = np.where(right, labels, 0)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        keras_ldam.report.compare_guesses(guesses, labels, counts, folder)


CASES = {
    "import": nothing,
    "advise": advise,
    "LDAM": loss,
    "ClassErrors": class_errors,
    "ClassErrors, not compiled": class_errors_one_by_one,
    "report": report,
}


def measure(case: str, num_classes: int) -> dict:
    """One case in this process."""
    import jax  # noqa: F401
    import keras  # noqa: F401
    import numpy as np

    import keras_ldam
    import keras_ldam.report  # noqa: F401

    counts = np.maximum(1, 10**7 // np.arange(1, num_classes + 1))
    start = time.process_time()
    CASES[case](counts, np.random.default_rng(0))
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 1), "mebibytes": round(peak / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", nargs="+", type=int, default=[10**6, 10**7])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]))))
        return
    rows, load = [], []
    for num_classes in args.classes:
        for case in args.cases:
            load.append(os.getloadavg()[0])
            done = subprocess.run(
                [sys.executable, __file__, "--one", case, str(num_classes)],
                env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append({"classes": num_classes, "case": case, **found})
            print(rows[-1], flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("keras", "jax", "matplotlib")}
    result = {
        "command": shlex.join(["python", "benchmarks/class_counts.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"python": platform.python_version(), **versions},
        "load": [round(min(load), 1), round(max(load), 1)],
        "rows": rows,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
