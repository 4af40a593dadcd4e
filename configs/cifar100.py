"""CIFAR-100, long-tailed or step, with ResNet-32: the recipe of the paper's appendix B.

    bin/train --dataset cifar100 --method ldam_drw --imbalance longtail --imbalance_ratio 100

200 epochs; the learning rate is multiplied by 0.01 at epochs 160 and 180. `results/cifar100.json`
has the results of full runs.

    bin/train --dataset cifar100 --method bbn --recipe bbn

    bin/train --dataset cifar100 --method ldam_drw --recipe strong

    bin/train --dataset cifar100 --method ldam_drw --recipe fast

`configs/cifar10.py` says where the recipes bbn, strong and fast come from.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    return Config(warmup_epochs=5)


def bbn(method: str) -> Config:
    return Config(warmup_epochs=5, warmup_start=1 / 3, nesterov=True, drop_at=(0.6, 0.8))


def strong(method: str) -> Config:
    return Config(
        max_margin=0.1,
        warmup_epochs=5,
        decay="cosine",
        weight_decay=5e-4,
        augment="autoaugment",
        cutout=16,
    )


def fast(method: str) -> Config:
    return Config(
        network="whitened_cnn",
        epochs=40,
        batch_size=256,
        learning_rate=0.15,
        momentum=0.85,
        nesterov=True,
        weight_decay=5e-4,
        warmup_epochs=5,
        decay="cosine",
    )


RECIPES = {"bbn": bbn, "strong": strong, "fast": fast}
