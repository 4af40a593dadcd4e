"""What the card of an export says."""

from pathlib import Path

import keras
import made_exports
import tensorflow as tf
from made_exports import small_model

import keras_ldam
from keras_ldam.export.card import model_card
from keras_ldam.serving.predictor import Predictor


def limits_in(folder):
    card = (folder / "model_card.md").read_text()
    return card.partition("## Limits")[2].partition("## Versions")[0]


def test_the_card_names_the_rarest_class_and_lists_the_first_hundred():
    facts = {
        "name": "birds", "version": 1, "created": "today", "input": "image", "scale": 30.0,
        "temperature": 1.0, "target_prior": None, "versions": {},
        "class_names": ["a|b", *(f"bird {j}" for j in range(1, 150))],
        "counts": [9, 3, *[5] * 148],
    }  # fmt: skip
    card = model_card(facts)
    assert "The rarest class, bird 1, had 3 training examples, the most frequent 9." in card
    assert "| 0 | a\\|b | 9 |" in card
    assert "| 99 | bird 99 |" in card and "| 100 |" not in card
    assert "export.json lists the other 50 classes." in card


def test_the_card_of_texts_tells_only_what_their_tokenizer_does(text_export, tmp_path):
    card = limits_in(text_export)
    assert "- Only the last 10 words of a text are read.\n" in card and "contain no word" in card
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    folder = keras_ldam.export_saved_model(
        model,
        tmp_path / "m",
        class_names=["a", "b"],
        tokenizer=lambda text: tf.cast(tf.strings.length(text)[:, None], tf.float32),
        temperature=2.0,
        details={"config": {"max_tokens": 256}},
    )
    card = limits_in(folder)
    assert "Only the last" not in card and "- Refused: texts that are empty, contain a NUL" in card
    (answer,) = Predictor(folder).predict([b"..."])
    assert "error" not in answer
    assert "not calibrated" not in (folder / "model_card.md").read_text()


def test_the_card_of_rows_tells_only_what_their_encoder_does(tmp_path):
    vector = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    folder = keras_ldam.export_saved_model(
        vector, tmp_path / "m", class_names=["a", "b"], columns={"y": "number"}
    )
    (answer,) = Predictor(folder).predict([b"{}"])
    assert answer["error"] == "y is missing"
    of_vectors, of_rows = limits_in(folder), limits_in(made_exports.of_rows(tmp_path))
    assert "- Refused: rows in which a number is missing.\n- Refused: infinite num" in of_vectors
    for word in ("may be missing", "dates", "NUL"):
        assert word not in of_vectors
    assert "missing" not in of_rows and "dates" not in of_rows
    assert "- Refused: texts that contain a NUL byte, exceed 100000 bytes" in of_rows


def test_the_card_takes_details_as_they_are_and_says_what_the_answers_are_for(tmp_path):
    def card(name, **given):
        names = ["fine\nline|x", "b"]
        folder = keras_ldam.export_saved_model(
            small_model(), tmp_path / name, class_names=names, scale=1.0, **given
        )
        return (Path(folder) / "model_card.md").read_text()

    plain = card("m", details={"dataset": "birds", "results": {"accuracy": 0.9}})
    assert "| 0 | fine line\\|x |" in plain and "trained on" not in plain
    assert "where every class matters equally" in plain and "images of a wrong shape" in plain
    shifted = card("n", target_prior=[9, 1], source_prior=[1, 1], resize=True)
    assert "every class matters" not in shifted and "as frequent as target_prior" in shifted
    assert "files of other sizes are resized" in shifted


def test_a_card_of_ones_own_is_written_as_it_is(tmp_path):
    folder = keras_ldam.export_saved_model(
        small_model(), tmp_path / "n", class_names=["a", "b"], scale=1.0, card="# Mine\n"
    )
    assert (folder / "model_card.md").read_text() == "# Mine\n"
