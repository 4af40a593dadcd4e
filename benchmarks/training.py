"""How fast ResNet-32 trains, against PyTorch and plain Keras, and what the loss costs.

    python benchmarks/training.py --torch_python PYTHON

PYTHON is that of an environment with torch; without it PyTorch is left out. Writes
`benchmarks/training.json`, and `benchmarks/README.md` from it and its like (see `readme.py`).

Every contestant trains the same network on batches of 128 images of 32x32 pixels, ten classes,
with momentum and weight decay. They stay in processes of their own, have compiled and warmed up
before the first round, and take turns in an order that rotates, so that a slow minute of the
machine hits everyone. Each turn gives one rate, without its first steps; medians are reported, with
the smallest and largest. Ours augments its images in the step; the others are given a batch that is
ready, which favours them. PyTorch works channels last. The losses are measured in the same way,
forward and backward, on made scores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import readme
from rounds import (
    ROUNDS,
    WARM,
    Process,
    cached_batch,
    command,
    fitted,
    rate,
    run,
    serve,
    spread,
    take_turns,
    untuned,
)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
BATCH, STEPS, CLASSES = 128, 11, 10
PIPELINE_STEPS = 31
"""More than the pipeline reads ahead."""
COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
LOSS_SIZES = {10: 128, 1000: 256, 8142: 256, 100_000: 64}
"""Batch for each number of classes."""

CONTESTANTS = {
    "ours_float32": "ours",
    "ours_bfloat16": "ours",
    "ours_float32_xla": "ours",
    "ours_float32_cross_entropy": "ours",
    "ours_float32_from_pipeline": "ours",
    "convolutions_float32": "ours",
    "ours_one_replica": "replicas",
    "ours_two_replicas": "replicas",
    "ours_two_replicas_xla": "replicas",
    "keras_float32": "keras",
    "keras_bfloat16": "keras",
    "torch_float32": "torch",
    "torch_bfloat16": "torch",
}
"""Which process each contestant lives in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="Python of an environment with torch")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--process", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process:
        serve(PROCESSES[given.process]())
        return
    if given.memory:
        print(json.dumps(memory_of_loss(given.memory[0], int(given.memory[1]))))
        return
    (HERE / "training.json").write_text(json.dumps(measure(given), indent=1) + "\n")
    readme.write()


# ----------------------------------------------------------------------------- the rounds


def measure(given: argparse.Namespace) -> dict:
    """All measurements."""
    from keras_ldam import hardware
    from keras_ldam.results import versions

    pythons = dict.fromkeys(("ours", "replicas", "keras", "losses"), sys.executable)
    if given.torch_python:
        pythons["torch"] = given.torch_python
    processes = {
        name: Process(python, __file__, "--process", name) for name, python in pythons.items()
    }
    names = [(n, p) for n, p in CONTESTANTS.items() if p in processes]
    names += [(f"{loss}_{k}", "losses") for k in LOSS_SIZES for loss in LOSSES]
    found, about, load = take_turns(processes, names, given.rounds)
    memory = {
        f"{loss}_{k}": json.loads(run(sys.executable, __file__, "--memory", loss, str(k)))
        for k in LOSS_SIZES
        for loss in LOSSES
    }
    training = {n: spread(found[n]) for n in CONTESTANTS if n in found}
    losses = {
        str(k): {
            loss: {**spread(found[f"{loss}_{k}"]), "peak_mb": memory[f"{loss}_{k}"]}
            for loss in LOSSES
        }
        for k in LOSS_SIZES
    }
    return {
        "command": command("benchmarks/training.py", given.rounds),
        "images_per_second": training,
        "loss_milliseconds": losses,
        "loss_batches": {str(k): batch for k, batch in LOSS_SIZES.items()},
        "ratios": ratios({n: v["median"] for n, v in training.items()}, losses),
        "rounds": given.rounds,
        "steps_a_turn": STEPS - WARM,
        "batch": BATCH,
        "load_average": load,
        "hardware": hardware.describe(),
        "versions": {**versions(), **about.get("torch", {})},
    }


def ratios(rates: dict, losses: dict) -> dict:
    """The comparisons that the table is about, as far as there is something to compare."""
    pairs = {
        "float32_to_torch": ("ours_float32", "torch_float32"),
        "bfloat16_to_torch": ("ours_bfloat16", "torch_bfloat16"),
        "float32_to_keras": ("ours_float32", "keras_float32"),
        "convolutions_to_torch": ("convolutions_float32", "torch_float32"),
        "convolutions_to_keras": ("convolutions_float32", "keras_float32"),
        "bfloat16_to_keras": ("ours_bfloat16", "keras_bfloat16"),
        "bfloat16_to_float32": ("ours_bfloat16", "ours_float32"),
        "xla_to_none": ("ours_float32_xla", "ours_float32"),
        "ldam_to_cross_entropy": ("ours_float32", "ours_float32_cross_entropy"),
        "pipeline_to_cached_batch": ("ours_float32_from_pipeline", "ours_float32"),
        "two_replicas_to_one": ("ours_two_replicas", "ours_one_replica"),
        "two_replicas_xla_to_one": ("ours_two_replicas_xla", "ours_one_replica"),
    }
    found = {n: round(rates[a] / rates[b], 2) for n, (a, b) in pairs.items() if b in rates}
    for k, of in losses.items():
        for what in ("median", "peak_mb"):
            ratio = of["ldam"][what] / max(of["keras_cross_entropy"][what], 1e-9)
            found[f"ldam_to_cross_entropy_{k}_{'time' if what == 'median' else 'memory'}"] = round(
                ratio, 2
            )
    more = losses["10"]["ldam"]["median"] - losses["10"]["keras_cross_entropy"]["median"]
    found["ldam_more_of_a_step_percent"] = round(
        100 * more / (1000 * BATCH / rates["ours_float32"]), 2
    )
    return found


# ----------------------------------------------------------------------------- contestants


def made_images(count):
    import numpy as np

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, generator.integers(0, CLASSES, count).astype(np.int32)


def our_model(model_class=None, *, precision="float32", loss="LDAM", jit=False):
    import keras

    import keras_ldam
    from keras_ldam.models.resnet32 import resnet32
    from keras_ldam.optimizers import MomentumSGD

    head = (
        keras_ldam.CosineDense(CLASSES)
        if loss == "LDAM"
        else keras.layers.Dense(CLASSES, dtype="float32")
    )
    model = resnet32(head=head, dtype=precision)
    if model_class is not None:
        model = model_class(model.inputs, model.outputs)
    model.compile(
        MomentumSGD(0.1, momentum=0.9, coupled_weight_decay=2e-4),
        loss=getattr(keras_ldam, loss)(COUNTS),
        metrics=["sparse_categorical_accuracy"],
        jit_compile=jit,
    )
    return model


def ours():
    import numpy as np

    from keras_ldam import training
    from keras_ldam.datasets.data import Split
    from keras_ldam.datasets.sampling import Batches, EpochClock

    batch = cached_batch(*made_images(BATCH), STEPS)
    images, labels = made_images(50_000)
    order = np.random.default_rng(1).permutation(len(labels))[: BATCH * PIPELINE_STEPS]
    batches = Batches(Split(images[order], labels[order]), BATCH, seed=0, num_classes=CLASSES)
    model = our_model()
    return {}, {
        "ours_float32": fitted(model, batch, BATCH),
        "ours_bfloat16": fitted(our_model(precision="mixed_bfloat16"), batch, BATCH),
        "ours_float32_xla": fitted(our_model(jit=True), batch, BATCH),
        "ours_float32_cross_entropy": fitted(our_model(loss="CrossEntropy"), batch, BATCH),
        "ours_float32_from_pipeline": fitted(
            model, training.feed(batches), BATCH, callbacks=[EpochClock(batches)]
        ),
        "convolutions_float32": convolutions(images[:BATCH]),
    }


def convolutions(images):
    """ResNet-32's convolutions with their gradients, and nothing between them."""
    import tensorflow as tf

    generator = tf.random.Generator.from_seed(0)
    filters, strides, before = [], [], 3
    for stage, size in enumerate((16, 32, 64)):
        for number in range(11 if stage == 0 else 10):
            spread = (2 / (9 * before)) ** 0.5  # The values stay as large as they are.
            filters.append(tf.Variable(spread * generator.normal((3, 3, before, size))))
            strides.append(2 if stage and not number else 1)
            before = size
    x = tf.constant(images, tf.float32) / 255

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            y = x
            for kernel, stride in zip(filters, strides, strict=True):
                y = tf.nn.conv2d(y, kernel, stride, "SAME")
            total = tf.reduce_sum(y)
        # A number of each gradient, so that none is left out.
        return [tf.reshape(one, (-1,))[0] for one in tape.gradient(total, filters)]

    def turn():
        ends = []
        for _ in range(STEPS):
            step()[0].numpy()
            ends.append(time.perf_counter())
        return rate(ends, BATCH)

    return turn


def replicas():
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    from keras_ldam import distribution

    strategy = distribution.make_strategy("mirrored", replicas=2)
    images, labels = made_images(BATCH)
    shares = (
        tf.data.Dataset.from_tensor_slices((images, labels)).batch(BATCH // 2).cache().repeat(STEPS)
    )
    feed = distribution.distribute(strategy, untuned(shares), STEPS)
    with strategy.scope():
        two = our_model(distribution.ReplicatedModel)
        two_xla = our_model(distribution.ReplicatedModel, jit=True)
    return {}, {
        "ours_one_replica": fitted(our_model(), cached_batch(images, labels, STEPS), BATCH),
        "ours_two_replicas": fitted(two, feed, BATCH),
        "ours_two_replicas_xla": fitted(two_xla, feed, BATCH),
    }


def plain_keras():
    """ResNet-32 from Keras' own layers, as one writes it."""
    import keras
    from keras import layers

    def convolution(x, filters, strides=1):
        if strides > 1:
            x = layers.ZeroPadding2D(1)(x)
        padding = "same" if strides == 1 else "valid"
        x = layers.Conv2D(filters, 3, strides, padding, use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    def model():
        images = keras.Input((32, 32, 3))
        x = layers.ReLU()(convolution(images, 16))
        for stage, filters in enumerate((16, 32, 64)):
            for block in range(5):
                strides = 2 if stage and not block else 1
                shortcut = x
                if strides > 1:
                    side = filters // 4
                    shortcut = keras.ops.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (side, side)))
                x = convolution(layers.ReLU()(convolution(x, filters, strides)), filters)
                x = layers.ReLU()(layers.Add()([x, shortcut]))
        scores = layers.Dense(CLASSES, dtype="float32")(layers.GlobalAveragePooling2D()(x))
        built = keras.Model(images, scores)
        built.compile(
            keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=2e-4),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        return built

    images, labels = made_images(BATCH)
    batch = cached_batch(images.astype("float32") / 255, labels, STEPS)
    contestants = {"keras_float32": fitted(model(), batch, BATCH)}
    keras.config.set_dtype_policy("mixed_bfloat16")
    contestants["keras_bfloat16"] = fitted(model(), batch, BATCH)
    return {}, contestants


def torch_model():
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, before, filters, stride):
            super().__init__()
            self.first = nn.Conv2d(before, filters, 3, stride, 1, bias=False)
            self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norms = nn.ModuleList(nn.BatchNorm2d(filters) for _ in range(2))
            self.stride, self.side = stride, (filters - before) // 2

        def forward(self, x):
            y = functional.relu(self.norms[0](self.first(x)))
            y = self.norms[1](self.second(y))
            if self.stride > 1:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))
            return functional.relu(y + x)

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            blocks, before = [], 16
            for stage, filters in enumerate((16, 32, 64)):
                for block in range(5):
                    blocks.append(Block(before, filters, 2 if stage and not block else 1))
                    before = filters
            self.blocks = nn.Sequential(*blocks)
            self.vectors = nn.Parameter(torch.randn(64, CLASSES))

        def forward(self, x):
            x = self.blocks(functional.relu(self.norm(self.stem(x)))).mean((2, 3)).float()
            with torch.autocast("cpu", enabled=False):
                return functional.normalize(x) @ functional.normalize(self.vectors, dim=0)

    return ResNet().to(memory_format=torch.channels_last)


def pytorch():
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    margins = torch.tensor(COUNTS, dtype=torch.float32) ** -0.25
    margins *= 0.5 / margins.max()
    weights = torch.ones(CLASSES)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (BATCH,))

    def contestant(bfloat16):
        model = torch_model()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)

        def turn():
            ends = []
            for _ in range(STEPS):
                with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                    scores = model(images)
                lowered = scores - functional.one_hot(labels, CLASSES) * margins
                loss = functional.cross_entropy(30 * lowered, labels, weight=weights)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                ends.append(time.perf_counter())
            return rate(ends, BATCH)

        return turn

    about = {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    return about, {"torch_float32": contestant(False), "torch_bfloat16": contestant(True)}


# ----------------------------------------------------------------------------- the loss alone

LOSSES = ("keras_cross_entropy", "cross_entropy", "ldam")


def loss_step(name, num_classes):
    """A compiled forward and backward pass."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_ldam

    counts = np.maximum(2, 1000 // (1 + np.arange(num_classes)))
    loss = {
        "keras_cross_entropy": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "cross_entropy": lambda: keras_ldam.CrossEntropy(counts),
        "ldam": lambda: keras_ldam.LDAM(counts),
    }[name]()

    @tf.function
    def step(labels, scores):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            value = loss(labels, scores)
        return value, tape.gradient(value, scores)

    return step


def losses():
    import numpy as np
    import tensorflow as tf

    contestants = {}
    generator = np.random.default_rng(0)
    for k, batch in LOSS_SIZES.items():
        scores = tf.constant(generator.uniform(-1, 1, (batch, k)).astype("float32"))
        labels = tf.constant(generator.integers(0, k, batch).astype("int32"))
        for name in LOSSES:
            step = loss_step(name, k)

            def turn(step=step, labels=labels, scores=scores):
                times = []
                for _ in range(9):
                    begun = time.perf_counter()
                    step(labels, scores)
                    times.append(time.perf_counter() - begun)
                return 1000 * statistics.median(times)

            contestants[f"{name}_{k}"] = turn
    return {}, contestants


def memory_of_loss(name, num_classes):
    """MB that a pass needs at its peak beyond its inputs; in a process of its own."""
    import resource

    import tensorflow as tf

    # Enough scores that everything else is small beside them.
    batch = max(1, 40_000_000 // num_classes)
    step = loss_step(name, num_classes)
    labels, scores = tf.zeros([batch], tf.int32), tf.zeros([batch, num_classes])
    step(labels[:2], scores[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(labels, scores)
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6, 1)


PROCESSES = {
    "ours": ours,
    "replicas": replicas,
    "keras": plain_keras,
    "torch": pytorch,
    "losses": losses,
}

if __name__ == "__main__":
    main()
