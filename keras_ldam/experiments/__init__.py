"""The experiments: datasets, networks, training runs, and the tables of the paper.

Importing this registers the layers of every network, so that Keras can load the model of a run.
"""

from keras_ldam.experiments import models

__all__ = ["models"]
