"""CIFAR-10, long-tailed or step, with ResNet-32: the recipe of the paper's appendix B.

    bin/train --dataset cifar10 --method ldam_drw --imbalance longtail --imbalance_ratio 100

200 epochs; the learning rate is multiplied by 0.01 at epochs 160 and 180. `results/cifar10.json`
has the results of full runs.
"""

from keras_ldam.experiments.config import Config


def recipe(method: str) -> Config:
    return Config(warmup_epochs=5)
