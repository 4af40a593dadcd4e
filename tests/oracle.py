"""The paper's formulas once more, in NumPy and float64, written without a look at the library."""

import numpy as np


def margins(counts, max_margin):
    raw = np.asarray(counts, dtype=np.float64) ** -0.25
    return max_margin * raw / raw.max()


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def cross_entropy(y, z):
    return np.array([-log_softmax(row)[label] for row, label in zip(z, y, strict=True)])


def ldam(y, z, margins, scale, offsets=0.0):
    losses = []
    for row, label in zip(np.asarray(z, np.float64), y, strict=True):
        lowered = row.copy()
        lowered[label] -= margins[label]
        losses.append(-log_softmax(scale * lowered + offsets)[label])
    return np.array(losses)


def adjustment(counts, tau):
    return tau * np.log(np.asarray(counts, np.float64) / np.sum(counts))


def logit_adjusted(y, z, counts, tau, scale):
    return cross_entropy(y, scale * np.asarray(z, np.float64) + adjustment(counts, tau))


def vector_scaling(y, z, counts, gamma, tau, scale):
    """As in Kini et al.'s paper: a factor (n_j/n_max)^γ and an offset for each class."""
    factors = (np.asarray(counts, np.float64) / np.max(counts)) ** gamma
    return cross_entropy(y, factors * scale * np.asarray(z) + adjustment(counts, tau))


def binary_vector_scaling(y, z, counts, gamma, tau, scale):
    """As in Kini et al.'s paper for one score f: log(1 + exp(ι_y) exp(-Δ_y y f)), y = ±1."""
    counts, y = np.asarray(counts, np.float64), np.asarray(y)
    factors = (counts / counts.max()) ** gamma
    offset = tau * np.log(counts[1] / counts[0]) * np.where(y == 1, 1, -1)
    signed = np.asarray(z, np.float64) * np.where(y == 1, 1, -1)
    return np.logaddexp(0.0, -(factors[y] * scale * signed + offset))


def binary_ldam(y, z, margins, scale):
    """LDAM for one score: margins are those of the negatives and of the positives."""
    y, z = np.asarray(y), np.asarray(z, np.float64)
    room = np.where(y == 1, z - margins[1], -z - margins[0])
    return np.logaddexp(0.0, -scale * room)


def ldam_hinge(y, z, margins, scale):
    losses = []
    for row, label in zip(np.asarray(z, np.float64), y, strict=True):
        rival = np.delete(row, label).max()
        losses.append(scale * max(rival - row[label] + margins[label], 0.0))
    return np.array(losses)


def focal(y, z, gamma):
    entropy = cross_entropy(y, np.asarray(z, np.float64))
    return (1 - np.exp(-entropy)) ** gamma * entropy


def sigmoid_focal(y, z, gamma):
    """The form of Cui et al.'s TensorFlow code: the factor is exp(-γ·y·z - γ·log(1 + e^-z))."""
    z = np.asarray(z, np.float64)
    labels = np.eye(z.shape[-1])[y]
    entropy = np.maximum(z, 0) - z * labels + np.log1p(np.exp(-np.abs(z)))
    factor = np.exp(-gamma * labels * z - gamma * np.log1p(np.exp(-z)))
    return (factor * entropy).sum(axis=-1)


def weighted_mean(losses, weights):
    return (weights * losses).sum() / weights.sum()
