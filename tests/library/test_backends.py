"""The library on the other backends: the same tests once more in a process with each."""

import importlib.util
from pathlib import Path

import keras
import pytest
from conftest import WITHOUT_TENSORFLOW
from forks import Forks

TESTS = Path(__file__).parent
SHARED = {
    "losses": (
        "test_each_loss_equals_the_oracle",
        "test_gradients_equal_numerical_ones",
        "test_labels_above_256_survive_bfloat16",
        "test_inside_compiled_code_a_label_that_is_no_class_weighs_nan",
        "test_steps_that_a_mask_leaves_out_have_no_weight",
        "test_the_share_of_the_margins_has_no_gradient",
    ),
    "averaging": ("test_tensors_of_tensorflow_are_taken_on_every_backend",),
    "chunked": ("test_training_in_chunks_is_training_with_all_scores_at_once[cross-entropy]",),
    "layers": (
        "test_it_gives_the_cosine_of_features_and_class_vectors",
        "test_features_that_are_all_zero_send_no_gradient_back",
        "test_a_mask_goes_on_to_the_loss",
    ),
    "metrics": (
        "test_it_agrees_with_scikit_learn_over_several_batches",
        "test_what_a_mask_leaves_out_is_no_error_in_evaluate",
    ),
    "callbacks": (
        "test_drw_equals_two_fits_with_the_weights_set_by_hand_between",
        "test_validation_has_the_weights_from_the_first_epoch_on_so_that_its_loss_never_jumps",
        "test_it_starts_in_the_epoch_that_is_trained_at_the_dropped_rate[True]",
        "test_a_loss_inside_a_train_step_of_ones_own_is_switched",
        "test_class_weights_set_between_two_fits_are_seen_by_both_steps",
    ),
    "evaluation": ("test_a_cosine_heads_margins_are_its_own_and_its_probabilities_are_scaled",),
    "targets": (
        "test_unknown_answers_count_nowhere",
        "test_a_batch_of_void_pixels_changes_nothing_in_fit",
    ),
}
"""Formulas, gradients, masks, and what a compiled `fit` sees. `make test-lean` runs all on JAX and
`make test-backends` on each backend, which takes minutes: JAX compiles each operation anew."""

RUN = """
import sys
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_losses_layers_metrics_callbacks_and_diagnostics_do_the_same_on_another_backend(
    backend, request
):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("this is the other backend already")
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    tests = [str(TESTS / f"test_{room}.py::{name}") for room in SHARED for name in SHARED[room]]
    if backend == "jax":
        done = request.getfixturevalue("on_jax")(RUN, "-x", *tests)
    else:
        forks = Forks(WITHOUT_TENSORFLOW, KERAS_BACKEND=backend)
        done = forks.run(RUN, "-x", *tests)
        forks.end()
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
