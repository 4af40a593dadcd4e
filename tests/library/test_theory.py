"""The paper's trade-off: the closed form against numerical minimization."""

import numpy as np
import pytest
from scipy import optimize

import keras_ldam
from keras_ldam.report import theory


@pytest.mark.parametrize("ratio", [1, 2, 10, 100, 1000])
@pytest.mark.parametrize("prior", [None, (1, 1), (10, 1), (1, 5)])
def test_for_two_classes_a_minimizer_finds_the_closed_form(ratio, prior):
    n_1, n_2, beta = 100 * ratio, 100, 0.7
    p_1, p_2 = (0.5, 0.5) if prior is None else np.array(prior) / sum(prior)

    def bound(gamma):  # Written out here, as the paper has it; a test prior weighs by √p.
        return np.sqrt(p_1 / n_1) / gamma + np.sqrt(p_2 / n_2) / (beta - gamma)

    found = optimize.minimize_scalar(
        bound, bounds=(1e-6, beta - 1e-6), method="bounded", options={"xatol": 1e-10}
    )
    best = theory.best_margins([n_1, n_2], total=beta, test_prior=prior)
    np.testing.assert_allclose(best, [found.x, beta - found.x], rtol=1e-5)
    np.testing.assert_allclose(best.sum(), beta)
    tried = theory.minimized([n_1, n_2], test_prior=prior)
    np.testing.assert_allclose(tried, found.x / beta, atol=1e-4)


def test_the_closed_form_is_that_of_theorem_3():
    n_1, n_2, beta = 5000, 50, 1.3
    expected = beta * n_2**0.25 / (n_1**0.25 + n_2**0.25)
    np.testing.assert_allclose(theory.best_margins([n_1, n_2], total=beta)[0], expected)
    np.testing.assert_allclose(theory.bound([1, 2], [4, 16]), 1 / 2 + 1 / 8)


def test_classes_as_frequent_at_test_time_as_in_training_get_equal_margins():
    np.testing.assert_allclose(
        theory.best_margins([900, 90, 10], test_prior=[900, 90, 10]), np.full(3, 1 / 3)
    )


@pytest.mark.parametrize("prior", [None, [8, 4, 2, 1, 1]])
def test_for_more_classes_a_minimizer_finds_the_margins_of_the_loss(prior):
    counts = np.array([5000, 1200, 400, 90, 10])

    def bound(raw):  # A softmax keeps the margins positive and their sum 1.
        gammas = np.exp(raw) / np.exp(raw).sum()
        return theory.bound(gammas, counts, test_prior=prior)

    found = optimize.minimize(bound, np.zeros(5), method="BFGS", options={"gtol": 1e-9})
    gammas = np.exp(found.x) / np.exp(found.x).sum()
    np.testing.assert_allclose(theory.best_margins(counts, test_prior=prior), gammas, rtol=1e-3)
    loss = keras_ldam.LDAM(counts, max_margin=0.5, test_prior=prior)
    np.testing.assert_allclose(loss.margins / loss.margins.max(), gammas / gammas.max(), rtol=1e-3)


def test_a_balanced_prior_is_no_prior():
    counts, gammas = [70, 7], [[0.2, 0.8], [0.5, 0.5]]
    np.testing.assert_allclose(
        theory.bound(gammas, counts, test_prior=[0.5, 0.5]), theory.bound(gammas, counts)
    )
