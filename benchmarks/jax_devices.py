"""Several devices on JAX: throughput of divided batches, memory of divided classes.

    python benchmarks/jax_devices.py memory        # 1, 2, 4 and 8 virtual devices, 10^6 classes
    python benchmarks/jax_devices.py throughput    # 1 and 2 virtual devices on two cores

`memory` compiles loss and gradient of `LDAM` on a `CosineDense`, divided by
`keras_ldam.ShardedClasses`, asks JAX's compiler how much memory each device needs, runs the step
once, and compares loss and gradient with those of one device. `throughput` trains a small
convolutional network by plain `fit`, on one device and on two under `keras_ldam.ShardedBatches`, in
turns; both have all cores of this process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")


def memory(classes: int, features: int, batch: int, devices: list[int]) -> dict:
    """Bytes a device by the number of devices, and the differences from one."""
    import jax
    import keras
    import numpy as np

    import keras_ldam

    generator = np.random.default_rng(0)
    counts = np.maximum(1, 10**6 // np.arange(1, classes + 1))
    x = generator.normal(size=(batch, features)).astype("float32")
    y = generator.integers(0, classes, batch).astype("int32")
    start = generator.normal(size=(features, classes)).astype("float32")
    names, rows, expected = keras.distribution.list_devices(), [], None
    for number in devices:
        sharded = keras_ldam.ShardedClasses(classes, devices=names[:number])
        keras.distribution.set_distribution(None if number == 1 else sharded)
        model = keras.Sequential([keras.Input((features,)), keras_ldam.CosineDense(classes)])
        model.layers[-1].kernel.assign(start)
        model.compile(loss=keras_ldam.LDAM(counts, gradual=False))
        state = [v.value for v in model.trainable_variables]
        layouts = (None, [v.sharding for v in state])

        @jax.jit
        def loss(state, model=model):
            y_pred, _ = model.stateless_call(state, [], x, training=True)
            return model.stateless_compute_loss(state, [], [], x=x, y=y, y_pred=y_pred)[0]

        step = jax.jit(jax.value_and_grad(loss), out_shardings=layouts).lower(state).compile()
        planned = step.memory_analysis()
        value, gradient = step(state)
        found = float(value), np.asarray(gradient[0])
        expected = expected or found
        rows.append(
            {
                "devices": number,
                "variables": planned.argument_size_in_bytes,
                "gradient": planned.output_size_in_bytes,
                "temporary": planned.temp_size_in_bytes,
                "loss_difference": abs(found[0] - expected[0]),
                "gradient_difference": float(np.abs(found[1] - expected[1]).max()),
                "largest_gradient": float(np.abs(expected[1]).max()),
            }
        )
        print(rows[-1], flush=True)
        del model, state, step, gradient, found
    return {"classes": classes, "features": features, "batch": batch, "rows": rows}


def throughput(batch: int, steps: int, rounds: int) -> dict:
    """Examples a second by the number of devices."""
    import keras
    import numpy as np

    import keras_ldam

    generator = np.random.default_rng(0)
    x = generator.normal(size=(batch * steps, 32, 32, 3)).astype("float32")
    y = generator.integers(0, 10, len(x)).astype("int32")
    names, models = keras.distribution.list_devices(), {}

    def distribution(number):
        return None if number == 1 else keras_ldam.ShardedBatches(devices=names[:number])

    for number in (1, 2):
        keras.distribution.set_distribution(distribution(number))
        layers = [keras.Input((32, 32, 3))]
        for filters, strides in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2)):
            layers.append(keras.layers.Conv2D(filters, 3, strides, padding="same", use_bias=False))
            layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
        layers += [keras.layers.GlobalAveragePooling2D(), keras_ldam.CosineDense(10)]
        models[number] = keras.Sequential(layers)
        models[number].compile("sgd", loss=keras_ldam.LDAM([1000 // (j + 1) for j in range(10)]))
    found = {number: [] for number in models}
    for turn in range(rounds + 1):
        for number, model in models.items():
            keras.distribution.set_distribution(distribution(number))
            start = time.perf_counter()
            model.fit(x, y, batch_size=batch, verbose=0, shuffle=False)
            if turn:  # The first compiles.
                found[number].append(len(x) / (time.perf_counter() - start))
            print(number, found[number][-1:], flush=True)
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    return {
        "batch": batch,
        "examples_per_second": {n: [round(v, 1) for v in part] for n, part in found.items()},
        "two_to_one": round(statistics.median(ratios), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("memory", "throughput"))
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--batch", type=int, help="64 for memory, 128 for throughput")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=FILE)
    args = parser.parse_args()
    number = max(args.devices) if args.what == "memory" else 2
    # Before JAX is imported.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={number}"
    os.environ["KERAS_BACKEND"], os.environ["JAX_PLATFORMS"] = "jax", "cpu"
    load = [os.getloadavg()[0]]
    if args.what == "memory":
        result = memory(args.classes, args.features, args.batch or 64, args.devices)
    else:
        result = throughput(args.batch or 128, args.steps, args.rounds)
    load.append(os.getloadavg()[0])
    names = ("keras", "jax", "jaxlib", "numpy")
    about = {
        "command": f"python benchmarks/jax_devices.py {args.what}",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, virtual devices",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in names},
        },
        "load": [round(min(load), 1), round(max(load), 1)],
    }
    written = json.loads(args.output.read_text()) if args.output.exists() else {}
    written[args.what] = {**about, **result}
    args.output.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
