"""What the adviser proposes for the paper's own data, and says of data that need nothing."""

import json
import tracemalloc

import numpy as np
import pytest

import keras_ldam
from keras_ldam import advice


def values_of(found):
    return {proposal.name: proposal.value for proposal in found.proposals}


@pytest.mark.parametrize(
    ("counts", "epochs", "settings"),
    [
        (keras_ldam.long_tailed_counts(10, 5000, 100), 200, (0.5, 15, 0.9999, 160)),
        (keras_ldam.step_counts(100, 500, 10), 200, (0.5, 30, 0.9999, 160)),
        (keras_ldam.long_tailed_counts(8142, 1000, 500), 90, (0.3, 30, 0.999, 60)),
    ],
    ids=["cifar10", "cifar100", "inaturalist2018"],
)
def test_the_papers_data_get_the_papers_settings(counts, epochs, settings):
    found = keras_ldam.advise(counts, epochs=epochs)
    assert tuple(values_of(found).values()) == settings
    assert list(values_of(found)) == ["max_margin", "scale", "beta", "start_epoch"]
    assert found.worthwhile
    assert all(proposal.reason and proposal.source for proposal in found.proposals)


def test_margins_constant_and_weights_are_those_of_the_proposals():
    found = keras_ldam.advise([12500, 1250])
    np.testing.assert_allclose(found.margins, [0.2812, 0.5], atol=1e-4)
    np.testing.assert_allclose(found.constant, 2.973, atol=1e-3)
    np.testing.assert_allclose(found.margins, found.constant / found.counts**0.25, rtol=1e-6)
    np.testing.assert_allclose(found.class_weights, [0.2828, 1.7172], atol=1e-4)
    keras_ldam.LDAM(found.counts, max_margin=found["max_margin"], scale=found["scale"])


@pytest.mark.parametrize(
    ("counts", "strength"),
    [
        ([100, 100], "none"),
        ([199, 100], "none"),
        ([200, 100], "mild"),
        ([500, 100], "moderate"),
        ([2000, 100], "strong"),
    ],
)
def test_an_imbalance_has_a_strength_and_a_mild_one_is_told(counts, strength):
    found = keras_ldam.advise(counts)
    assert found.strength == strength
    assert found.worthwhile == (strength != "none")
    assert ("too mild for any of this to matter" in str(found)) == (strength == "none")
    assert ("may well drown" in str(found)) == (strength == "mild")


def test_below_the_least_scale_the_best_geometry_cannot_reach_the_probability():
    found = keras_ldam.advise([100] * 9 + [10])
    reason = next(p.reason for p in found.proposals if p.name == "scale")
    least = float(reason.split("below ")[1].split()[0])
    # Class vectors as far apart as can be: a regular simplex, cosines -1/(K-1) between them.
    scores = np.full(10, -1 / 9)
    scores[9] = 1 - found["max_margin"]

    def probability(scale):
        weights = np.exp(scale * scores)
        return weights[9] / weights.sum()

    assert probability(least - 0.1) < 0.99 < probability(least + 0.1)


@pytest.mark.parametrize(
    ("num_classes", "epochs", "scale", "told"),
    [(100, 8, 15, True), (100, 200, 30, False), (10, 8, 15, False)],
)
def test_many_classes_in_few_epochs_get_the_smaller_scale_and_a_remark(
    num_classes, epochs, scale, told
):
    found = keras_ldam.advise(keras_ldam.long_tailed_counts(num_classes, 500, 10), epochs=epochs)
    assert found["scale"] == scale
    assert ("try both, or train longer" in str(found)) == told
    assert ("features of a plain CNN zero" in str(found)) == told


@pytest.mark.parametrize(("counts", "told"), [([300, 30], True), ([3000, 300], False)])
def test_few_steps_before_the_weights_come_on_are_told(counts, told):
    assert ("there are only 88 steps before" in str(keras_ldam.advise(counts, epochs=10))) == told


def test_a_start_epoch_leaves_epochs_before_and_after_it():
    for epochs in range(2, 30):
        assert 1 <= keras_ldam.advise([90, 10], epochs=epochs)["start_epoch"] < epochs
    found = keras_ldam.advise([90, 10], epochs=1)
    assert "start_epoch" not in values_of(found)
    assert "no time to defer" in str(found)
    with pytest.raises(KeyError, match="no proposal for 'start_epoch'; available: max_margin"):
        found["start_epoch"]


def test_what_is_told_survives_json_and_names_the_classes():
    found = keras_ldam.advise({"cat": 90, "dog": 3})
    told = json.loads(json.dumps(found.to_json()))
    assert told["class_names"] == ["cat", "dog"]
    assert told["counts"] == [90, 3]
    assert told["proposals"][0]["name"] == "max_margin"
    assert "1 of 2 classes have fewer than 5 examples" in str(found)
    row = next(line for line in str(found).splitlines() if line.split()[:2] == ["dog", "3"])
    assert row.split()[2] == "0.5000"


def test_of_many_classes_the_most_frequent_and_the_rarest_are_shown():
    text = str(keras_ldam.advise(np.arange(1, 1001)))
    shown = [line.split()[0] for line in text.split("weights:")[1].splitlines()[2:]]
    assert shown[0] == "999" and shown[-1] == "0" and "…" in shown
    assert len(shown) == 25


@pytest.mark.parametrize(
    ("counts", "epochs", "message"),
    [
        ([10, 0], 5, "Received: 0 for class 1"),
        ([10], 5, "at least two classes"),
        ([10, 2.5], 5, "Received: 2.5 for class 1"),
        ([10, 5], 0, "`epochs` must be a whole number of at least 1. Received: 0"),
        ([10, 5], 2.5, "Received: 2.5"),
        ([10, 5], "ten", "Received: 'ten'"),
    ],
)
def test_counts_and_epochs_out_of_range_get_a_sentence(counts, epochs, message):
    with pytest.raises(ValueError, match=message):
        keras_ldam.advise(counts, epochs=epochs)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("120\n7\n", [120, 7]),
        ("120, 7", [120, 7]),
        ("120 7 3\n", [120, 7, 3]),
        ("[120, 7]", [120, 7]),
        ('{"counts": [120, 7], "vocabulary": null}', [120, 7]),
        ('{"counts": [120, 7], "class_names": ["a", "b"]}', {"a": 120, "b": 7}),
        ('{"a": 120, "b": 7}', {"a": 120, "b": 7}),
        ("\ufeffcat,120\ndog,7\n", {"cat": 120, "dog": 7}),
        ("class,count\n\ncat,120\ndog,7\n", {"cat": 120, "dog": 7}),
        ("0,500\n2,30\n1,50\n", {"0": 500, "2": 30, "1": 50}),
        ("1,120\n2,7\n", {"1": 120, "2": 7}),
        ('"cat; tame"\t120\ndog\t7\n', {"cat; tame": 120, "dog": 7}),
        ('class,count\n"cat, tame","5,120"\ndog,40\n', {"cat, tame": 5120, "dog": 40}),
    ],
)
def test_counts_are_read_as_people_write_them(tmp_path, text, counts):
    file = tmp_path / "counts"
    file.write_text(text, encoding="utf-8")
    found = advice.read_counts(file)
    assert (found if isinstance(found, dict) else found.tolist()) == counts
    keras_ldam.advise(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least two classes"),
        (b"cat,120\ndog,0\n", "Received: 0 for class 1 .dog."),
        (b"cat,120\ndog,many\n", "line 2 does not end in a count: 'many'"),
        (b'"cat","5,12"\ndog,3\n', "line 1 does not end in a count: '5,12'"),
        (b"cat,12x\ndog,3\n", "line 1 does not end in a count: '12x'"),
        (b"cat,120\ncat,7\n", "'cat' appears twice"),
        (b"[1, 2", "not valid JSON"),
        (b'{"a": [3], "b": 4}', "must be whole numbers"),
        (b"\xff\xfe\x00", "it is not text"),
        (b"cat,5000,100,400\ndog,50,9,9\n", "line 1 has 4 fields, so its count is ambiguous"),
        (b"class,count,percent\ncat,5000,99\ndog,50,1\n", "line 2 has 3 fields"),
        (b"cat,1,234\ndog,50\n", "line 1 has 3 fields"),
        (b"1,234\n5,678\n", "line 1 is ambiguous: '1,234'"),
        (b"cat;5.000\ndog;50\n", "line 1 is ambiguous: '5.000' may group thousands"),
        (b"cat,n/a\ndog,50\n", "line 1 does not end in a count: 'n/a'"),
        (b"cat,50\ndog,7\nTotal,57\n", "line 3 .Total. is the sum of the other counts"),
        (b'{"cat": 50, "cat": 7, "dog": 1}', "'cat' appears twice"),
        (b'{"counts": [50, 7], "class_names": ["cat", "cat"]}', "'cat' appears twice"),
    ],
)
def test_a_file_without_counts_gets_a_sentence_with_its_name(tmp_path, content, message):
    file = tmp_path / "counts.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"counts.csv.*{message}"):
        advice.read_counts(file)


def test_counts_by_number_come_in_class_order():
    assert keras_ldam.advise({"0": 500, "2": 30, "1": 50}).to_json()["counts"] == [500, 50, 30]


def test_a_count_that_may_be_a_total_is_asked_about():
    assert "equals the sum of all others" in str(keras_ldam.advise({"a": 50, "b": 7, "c": 57}))
    assert "equals the sum" not in str(keras_ldam.advise({"a": 50, "b": 7, "c": 56}))


def test_true_and_false_are_the_classes_one_and_zero():
    assert keras_ldam.advise({True: 90, False: 5}).counts.tolist() == [5, 90]
    assert keras_ldam.advise({1.0: 90, 0.0: 5}).counts.tolist() == [5, 90]


def test_millions_of_classes_need_memory_for_numbers_alone():
    # A name for each class would be ten times as much as its count.
    counts = np.maximum(1, 10**6 // np.arange(1, 10**6 + 1))
    tracemalloc.start()
    found = keras_ldam.advise(counts)
    text = str(found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * len(counts)  # Bytes; 10**7 classes take ten times as much, under 1 GB.
    assert "1,000,000 classes" in text and "  999999 " in text
    assert found.class_names[-1] == "999999" and found.class_names[:2] == ("0", "1")
