"""How much time and memory a step takes with 10,000 to 1,000,000 classes, one device.

    python benchmarks/many_classes.py

A step is one forward and backward pass of a head with K class vectors and its loss, for a batch of
features: Keras' own cross-entropy on `Dense`, with sparse labels and with one-hot ones, which the
step makes of them; `LDAM` on `CosineDense` with all scores at once; both losses in chunks of
classes, as `keras_ldam.ChunkedTraining` computes them; and `LDAM` with sampled negatives. Each case
runs in a process of its own. Memory is what the compiler of JAX lays out for the step beyond what
goes in and what comes out, the class vectors and their gradient, which are the same for all.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

CASES = (
    "keras_one_hot",
    "keras",
    "ldam",
    "chunked_cross_entropy",
    "chunked_ldam",
    "sampled_ldam",
)
FILE = Path(__file__).with_suffix(".json")


def measure(case: str, classes: int, features: int, batch: int, chunk: int, steps: int) -> dict:
    """One case in this process: seconds of the fastest step, and bytes."""
    import keras
    import numpy as np

    import keras_ldam

    generator = np.random.default_rng(0)
    counts = np.maximum(1, 10**6 // np.arange(1, classes + 1))
    if case in ("keras_one_hot", "keras", "chunked_cross_entropy"):
        head = keras.layers.Dense(classes)
        loss = keras_ldam.CrossEntropy()
        if case == "keras":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if case == "keras_one_hot":

            def loss(y_true, y_pred):
                y_true = keras.ops.one_hot(keras.ops.reshape(y_true, (-1,)), classes)
                return keras.losses.categorical_crossentropy(y_true, y_pred, from_logits=True)
    else:
        head = keras_ldam.CosineDense(classes)
        loss = keras_ldam.LDAM(counts, gradual=False)
    model = keras.Sequential([keras.Input((features,)), head])
    if case.startswith("chunked"):
        model = keras_ldam.ChunkedTraining(model, chunk_size=chunk)
    if case.startswith("sampled"):
        model = keras_ldam.ChunkedTraining(model, negatives=min(chunk, classes), seed=0)
    x = generator.normal(size=(batch, features)).astype("float32")
    y = generator.integers(0, classes, batch).astype("int32")
    step, memory = compiled(model, loss, x, y)
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds[1:]), "bytes": memory}


def compiled(model, loss, x, y):
    """A function that computes the loss and all gradients once, and bytes if they are known."""
    import keras

    model.compile(loss=loss)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function
        def run():
            with tf.GradientTape() as tape:
                value = model.compute_loss(x, y, model(x, training=True), None)
            return tape.gradient(value, model.trainable_variables)

        run.get_concrete_function()
        return run, None
    import jax

    state = [v.value for v in model.trainable_variables]
    rest = [v.value for v in model.non_trainable_variables]

    @jax.jit
    @jax.grad
    def gradient(state):
        y_pred, _ = model.stateless_call(state, rest, x, training=True)
        value, _ = model.stateless_compute_loss(state, rest, [], x=x, y=y, y_pred=y_pred)
        return value

    ready = gradient.lower(state).compile()
    memory = ready.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(ready(state)), memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow"])
    parser.add_argument("--classes", nargs="+", type=int, default=[1_000_000, 100_000, 10_000])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        case, classes = args.one[0], int(args.one[1])
        found = measure(case, classes, args.features, args.batch, args.chunk, args.steps)
        print(json.dumps(found))
        return
    load, rows = [os.getloadavg()[0]], {}
    for number in range(args.rounds):
        for classes in args.classes:
            for backend in args.backends:
                for case in CASES:
                    found = one(args, backend, classes, case)
                    rows.setdefault((backend, classes, case), []).append(found)
                    load.append(os.getloadavg()[0])
                    print(number, backend, classes, case, found, flush=True)
                    write(args, rows, load)


def write(args: argparse.Namespace, rows: dict, load: list[float]) -> None:
    """Writes what has been measured so far."""
    versions = {name: importlib.metadata.version(name) for name in ("keras", "tensorflow", "jax")}
    result = {
        "command": shlex.join(["python", "benchmarks/many_classes.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"python": platform.python_version(), **versions},
        "load": [round(min(load), 1), round(max(load), 1)],
        "features": args.features,
        "batch": args.batch,
        "chunk": args.chunk,
        "rows": [
            {
                "backend": backend,
                "classes": classes,
                "case": case,
                "seconds": round(min(each["seconds"] for each in row), 4),
                "megabytes": row[0]["bytes"] and round(row[0]["bytes"] / 1e6, 1),
            }
            for (backend, classes, case), row in rows.items()
        ],
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")


def one(args, backend, classes, case):
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--one", case, str(classes)]
    for name in ("features", "batch", "chunk", "steps"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(
        command,
        env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
