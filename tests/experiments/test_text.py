"""From reviews to ids."""

import numpy as np
import pytest
import tensorflow as tf

from keras_ldam.experiments import text


def words(review):
    return [w.decode() for w in text.split_words(tf.constant([review])).numpy()[0]]


def test_words_are_lower_case_without_markup_and_with_marks_that_judge():
    assert words(b"It's GREAT!<br /><br />10/10, isn't it?") == [
        *["it's", "great", "!", "10", "10", "isn't", "it", "?"]
    ]


def test_letters_of_other_alphabets_stay():
    assert words("Amélie — прекрасно".encode()) == ["amélie", "прекрасно"]


def test_bytes_that_are_not_utf8_and_empty_reviews_are_no_words():
    assert words(b"good\xff\xfefilm") == ["good", "film"]
    assert words(b"") == []


def test_the_vocabulary_is_ordered_by_frequency_then_alphabet():
    assert text.build_vocabulary([b"b a c", b"c b c"], 2) == ("c", "b")
    assert text.build_vocabulary([b"b a"], 9) == ("a", "b")


def test_ids_start_at_two_and_the_last_words_are_kept():
    tokenizer = text.Tokenizer(("good", "film"), max_tokens=3)
    ids = tokenizer(tf.constant([b"film film a good film", b"good", b""]))
    assert ids.numpy().tolist() == [[1, 2, 3], [2, 0, 0], [0, 0, 0]]
    encoded = tokenizer.encode([b"a good film", b""])
    assert [ids.tolist() for ids in encoded] == [[1, 2, 3], []]


def test_texts_without_a_word_get_a_sentence():
    with pytest.raises(ValueError, match="The texts hold no word"):
        text.Tokenizer(text.build_vocabulary([b"...", b""], 10), 5)


@pytest.mark.parametrize("batch", [[], [b""]])
def test_there_is_always_a_column(batch):
    tokenizer = text.Tokenizer(("good",), max_tokens=3)
    ids = tokenizer(tf.constant(batch, dtype=tf.string))
    assert ids.shape == (len(batch), 1)
    assert ids.dtype == np.int32
