"""CIFAR-10, long-tailed or step, with ResNet-32: the recipe of the paper's appendix B.

    bin/train --dataset cifar10 --method ldam_drw --imbalance longtail --imbalance_ratio 100

200 epochs, the learning rate multiplied by 0.01 at 160 and again at 180. `results/cifar10.json` has
what full runs gave.
"""

from keras_ldam.experiments.config import Config


def config(method: str) -> Config:
    return Config(dataset="cifar10", method=method, warmup_epochs=5)
