"""A user's own texts: every layout and form of file, a sentence for each fault, and a run."""

from __future__ import annotations

import codecs
import csv
import json
import re

import numpy as np
import pytest

from keras_ldam.experiments import cli, datasets, exporting
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import records, text
from keras_ldam.experiments.recipes import load_recipe
from keras_ldam.experiments.run_folder import RunFolder

WORDS = {"praise": "lovely superb", "complaint": "broken awful", "question": "where when"}
COUNTS = {"praise": 20, "complaint": 10, "question": 5}


def made_rows(counts=COUNTS):
    """Pairs of a text, which no other row has, and its label, classes in turn."""
    rows = [
        (f"{WORDS[name]} thing number {name}{i}", name)
        for name, n in counts.items()
        for i in range(n)
    ]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def write_csv(path, rows, header=("text", "label"), delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture
def tickets(tmp_path):
    return write_csv(tmp_path / "tickets.csv", made_rows())


def read(path, **changes):
    """The texts of a path as `text` reads them; words and network are not needed for most tests."""
    config = Config(dataset="text", imbalance="none", data_dir=str(path), **changes).resolve()
    return text.read(config)


def parts_of(found):
    """The texts and class names of training and test rows."""
    return [
        sorted((found.texts[i], found.class_names[found.labels[i]]) for i in part)
        for part in (found.train, found.test)
    ]


def test_a_fifth_of_each_class_is_held_out_and_the_counts_are_those_of_the_file(tickets, capsys):
    found = read(tickets)
    assert found.class_names == ("complaint", "praise", "question")
    assert np.bincount(found.labels[found.train]).tolist() == [8, 16, 4]
    assert np.bincount(found.labels[found.test]).tolist() == [2, 4, 1]
    assert found.test_name == "validation"
    assert parts_of(read(tickets, seed=5)) == parts_of(found)
    assert sorted([*parts_of(found)[0], *parts_of(found)[1]]) == sorted(made_rows())
    assert "a fifth of each class is held out" in capsys.readouterr().out


def test_texts_that_the_imbalance_leaves_out_may_be_validated_on(tickets):
    how = {"imbalance_ratio": 2.0, "method": "erm", "validation_fraction": 0.25, "left_out": True}
    data = datasets.load(Config(dataset="text", data_dir=str(tickets), **how).resolve())
    # Of 8, 16 and 4 texts 4, 2 and 2 are kept, in the order of the classes.
    assert data.counts.tolist() == [3, 1, 1]
    assert np.bincount(data.test.labels).tolist() == [5, 15, 3]
    assert data.test_name == "validation"


def test_every_form_of_file_gives_the_same_texts(tickets, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    rows, expected = made_rows(), parts_of(read(tickets))
    write_csv(tmp_path / "a.tsv", rows, delimiter="\t")
    write_csv(tmp_path / "semicolons.csv", rows, delimiter=";")
    objects = [json.dumps({"label": name, "text": words}) for words, name in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(objects))
    columns = dict(zip(("text", "label"), zip(*rows, strict=True), strict=True))
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    contents = tickets.read_text(encoding="utf-8")
    (tmp_path / "utf16.csv").write_text(contents, encoding="utf-16")
    (tmp_path / "mark.csv").write_bytes(codecs.BOM_UTF8 + contents.encode())
    for name in ("a.tsv", "semicolons.csv", "a.jsonl", "a.parquet", "utf16.csv", "mark.csv"):
        assert parts_of(read(tmp_path / name)) == expected, name


def test_a_delimiter_inside_quotes_is_none(tickets, tmp_path):
    rows = ['"text, as it was written, in full";"label";Screen 15" wide']
    rows += [f'"{words}";"{name}";no' for words, name in made_rows()]
    (tmp_path / "quoted.csv").write_text("\n".join(rows))
    found = read(tmp_path / "quoted.csv", text_column="text, as it was written, in full")
    assert parts_of(found) == parts_of(read(tickets))


def test_training_and_test_rows_are_those_of_two_files_or_of_the_column_split(tmp_path):
    train, test = made_rows(), made_rows({"praise": 3, "complaint": 3, "question": 3})
    test = [(f"new {words}", name) for words, name in test]
    (tmp_path / "two").mkdir()
    write_csv(tmp_path / "two" / "train.csv", train)
    write_csv(tmp_path / "two" / "test.csv", test)
    both = [(*row, "train") for row in train] + [(*row, "test") for row in test]
    write_csv(tmp_path / "one.csv", both, header=("text", "label", "split"))
    for path in (tmp_path / "two", tmp_path / "one.csv"):
        found = read(path)
        assert parts_of(found) == [sorted(train), sorted(test)]
        assert found.test_name == "test"


def test_class_folders_of_text_files_are_read_whole_or_in_parts(tmp_path):
    rows = made_rows()
    for number, (words, name) in enumerate(rows):
        for root in (tmp_path / "whole", tmp_path / "parts" / "train", tmp_path / "parts" / "test"):
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)
            new = "new " if root.name == "test" else ""
            (folder / f"{number}.txt").write_text(f"{new}{words}\n")
    whole = read(tmp_path / "whole")
    assert np.bincount(whole.labels[whole.train]).tolist() == [8, 16, 4]
    parts = read(tmp_path / "parts")
    assert parts_of(parts)[0] == sorted(rows)
    assert parts.test_name == "test" and len(parts.test) == len(rows)


def test_texts_on_both_sides_are_counted_and_said(tmp_path, capsys):
    rows = made_rows({"praise": 10, "complaint": 10})
    both = [(*row, "train") for row in rows] + [(*row, "test") for row in rows[:7]]
    both.append(("another", "praise", "test"))
    path = write_csv(tmp_path / "a.csv", both, header=("text", "label", "split"))
    text.load(Config(dataset="text", imbalance="none", data_dir=str(path)).resolve())
    assert "7 of the 8 test texts are training texts too" in capsys.readouterr().out


def test_a_row_that_is_left_out_makes_no_class(tmp_path):
    rows = [(f"text {i}", "ab"[i % 2]) for i in range(20)]
    found = read(write_csv(tmp_path / "a.csv", [*rows, ("", "c")]), skip_corrupt=True)
    assert found.class_names == ("a", "b") and len(found.skipped) == 1


def test_classes_called_by_whole_numbers_are_in_the_order_of_their_values(tmp_path):
    rows = [(f"text {i}", label) for label in (10, 9, 2) for i in range(2)]
    assert read(write_csv(tmp_path / "a.csv", rows)).class_names == ("2", "9", "10")


def test_columns_are_found_by_usual_names_or_named(tmp_path):
    rows = [(i, words, name) for i, (words, name) in enumerate(made_rows())]
    path = write_csv(tmp_path / "a.csv", rows, header=("id", "Review", "Class"))
    assert parts_of(read(path)) == parts_of(read(path, text_column="Review", label_column="Class"))
    path = write_csv(tmp_path / "b.csv", rows, header=("id", "said", "queue"))
    assert len(read(path, text_column="said", label_column="queue").texts) == len(rows)


def test_rows_that_cannot_be_used_are_left_out_and_counted_where_that_is_asked_for(tmp_path):
    rows = [*made_rows(), ("", "praise"), ("no label", "")]
    path = write_csv(tmp_path / "a.csv", rows)
    found = read(path, skip_corrupt=True)
    assert len(found.texts) == len(rows) - 2
    assert sorted(found.skipped) == ["a.csv, line 37", "a.csv, line 38"]


def test_another_file_with_the_same_counts_has_another_fingerprint(tickets, tmp_path):
    other = write_csv(tmp_path / "b.csv", [(f"{words}!", name) for words, name in made_rows()])
    first, second = read(tickets), read(other)
    assert first.fingerprint != second.fingerprint
    assert first.fingerprint == read(tickets).fingerprint


GOOD = "fine words,praise\nother words,complaint\n" * 3
FAULTS = {
    "empty": (b"", "a.csv is empty"),
    "header only": (b"text,label\n", "with the names of columns, and no row"),
    "no text column": (
        b"words,label\n" + GOOD.encode(),
        "no column with a usual name for the texts",
    ),
    "no label column": (
        b"text,queue\n" + GOOD.encode(),
        "no column with a usual name for the labels",
    ),
    "two text columns": (
        b"text,review,label\na,b,c\n",
        "2 columns with a usual name for the texts",
    ),
    "a name twice": (b"text,text,label\na,b,c\n", "two columns with the name 'text'"),
    "a column without a name": (b",text,label\n0,a,b\n", "column 1 has no name"),
    "cells missing": (f"text,label\n{GOOD}alone\n".encode(), "line 8 has 1 cells"),
    "an open quote": (
        f'text,label\n{GOOD}"never closed,praise\n{GOOD}'.encode(),
        "line 8: a quote opens and is not closed up to the end of the file",
    ),
    "a stray quote": (
        f'text,label\n{GOOD}"closed" early,praise\n'.encode(),
        "line 8: a quote closes in the middle of a cell",
    ),
    "mixed encodings": (
        f"text,label\n{GOOD}".encode() + "caf\xe9,praise\n".encode("latin-1"),
        "line 8 is not UTF-8: convert the whole file",
    ),
    "UTF-16 without a mark": (f"text,label\n{GOOD}".encode("utf-16-le"), "line 1 holds a NUL"),
    "cut UTF-16": (f"text,label\n{GOOD}".encode("utf-16")[:-1], "is not UTF-16"),
    "a long line": (b"text,label\n" + b"a" * (2**20 + 2), "line 2 is longer than 1,048,576 bytes"),
    "a long cell": (
        b'text,label\n"' + (b"a" * 999 + b"\n") * 1100 + b'",praise\n',
        "line 2: a cell that goes on to line 1050 is longer than 1,048,576 characters; shorten it",
    ),
    "carriage returns": (
        f"text,label\n{GOOD}".replace("\n", "\r").encode(),
        "line 1: a carriage return alone ends no line; end lines in line feeds",
    ),
    "a megabyte of carriage returns": (
        b"text,label\r" + b"words,praise\r" * 99_999,
        "line 1 is longer than 1,048,576 bytes; lines end in line feeds",
    ),
    "numbers": (b"text,label\n1.5,a\n2,b\n", "line 2: column 'text' holds numbers, as here 1.5"),
    "an empty text": (
        f"text,label\n{GOOD} ,praise\n".encode(),
        "line 8: the text, in column 'text'",
    ),
    "no label": (f"text,label\n{GOOD}words,\n".encode(), "line 8: the label, in column 'label'"),
    "one class": (b"text,label\na,b\nc,b\n", "has the one value 'b'; at least two"),
    "a class of one": (
        f"text,label\n{GOOD}words,question\n".encode(),
        "line 8 is the only row with the label 'question'",
    ),
    "a label in test only": (
        b"text,label,split\na,b,train\nc,d,train\ne,f,test\n",
        "line 4 has the label 'f', and no training row has it",
    ),
    "an unknown part": (
        b"text,label,split\na,b,train\nc,d,later\n",
        "line 3: column 'split' is 'later'",
    ),
    "no training row": (b"text,label,split\na,b,test\nc,d,test\n", "has no training row"),
    "an identifier for labels": (
        ("text,label\n" + "".join(f"words,{i}\n" for i in range(200))).encode(),
        "has 200 different values in the first 200 rows: it identifies rows",
    ),
}


@pytest.mark.parametrize(("contents", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_file_gets_a_sentence_with_its_place(contents, message, tmp_path):
    (tmp_path / "a.csv").write_bytes(contents)
    with pytest.raises(ValueError) as raised:
        read(tmp_path / "a.csv")
    assert message in str(raised.value) and str(tmp_path / "a.csv") in str(raised.value)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'["a", "b"]\n', "line 1 is not a JSON object"),
        (
            "a.jsonl",
            b'{"text": "a", "text": "b"}\n',
            "line 1 is not JSON: it has the key 'text' twice",
        ),
        ("a.jsonl", b'{"text": ["a"], "label": "b"}\n', "line 1: column 'text' holds ['a'], and"),
        ("a.jsonl", b'{"text": "a", "label": {"b": 1}}\n', "line 1: column 'label' holds {'b': 1}"),
        (
            "a.jsonl",
            b'{"text": "\\u0000", "label": "b"}\n',
            "line 1: the text, in column 'text', holds a NUL",
        ),
        ("a.jsonl", b'{"text": "\\ud800", "label": "b"}\n', "holds half of a surrogate pair"),
        ("a.parquet", b"PAR1 and nothing else", "is not a Parquet file"),
        ("a.xlsx", b"anything", "is not a file of rows by its name"),
    ],
)
def test_a_fault_of_another_form_gets_a_sentence(name, contents, message, tmp_path):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=r"a\.[a-z]+") as raised:
        read(tmp_path / name)
    assert message in str(raised.value)


def test_what_is_wrong_with_a_folder_or_a_name_gets_a_sentence(tmp_path, tickets):
    with pytest.raises(ValueError, match="dataset text needs --data_dir"):
        read("")
    with pytest.raises(ValueError, match=r"nowhere is not an existing file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no column 'body' for the texts; its columns are 'text'"):
        read(tickets, text_column="body")
    folder = tmp_path / "two"
    folder.mkdir()
    write_csv(folder / "test.csv", made_rows())
    with pytest.raises(ValueError, match="has no file of rows called train"):
        read(folder)
    write_csv(folder / "train.csv", made_rows(), header=("review", "label"))
    with pytest.raises(ValueError, match=r"test\.csv has no column 'review', and .*train\.csv has"):
        read(folder)
    write_csv(folder / "train.tsv", made_rows())
    with pytest.raises(ValueError, match=r"both train\.csv and train\.tsv: keep one"):
        read(folder)


def test_a_line_beyond_the_limit_is_not_read_whole(tmp_path):
    with open(tmp_path / "a.csv", "wb") as file:
        file.write(b"text,label\n")
        file.truncate(5 * 2**30)  # Of zeros, which take no place on the disk.
    with pytest.raises(ValueError, match="line 2 is longer than"):
        list(records.lines(tmp_path / "a.csv"))


# ----------------------------------------------------------------------------- from file to answer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with a file and a finished run on it; not to be changed."""
    folder = tmp_path_factory.mktemp("texts")
    write_csv(folder / "tickets.csv", made_rows())
    flags = [f"--data_dir={folder / 'tickets.csv'}", f"--run_dir={folder / 'run'}"]
    flags += ["--epochs=10", "--drop_at=0.5", "--units=4", "--embedding_dim=8", "--batch_size=8"]
    assert (
        cli.main("train", ["--dataset=text", *flags, "--learning_rate=0.02", "--noprogress"]) == 0
    )
    return folder


def test_texts_are_trained_evaluated_exported_and_predicted_by_the_programs(trained, capsys):
    run = trained / "run"
    assert cli.main("evaluate", [f"--run_dir={run}"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["split"] == "validation" and evaluated["mean_error"] == 0
    assert (
        cli.main("export", [f"--run_dir={run}", f"--output={trained / 'exports' / 'queue'}"]) == 0
    )
    capsys.readouterr()
    given = ["This is superb, lovely!", "awful and broken", "Where? When?"]
    assert cli.main("predict", [f"--model={trained / 'exports' / 'queue'}", *given]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["label"] for answer in answers] == ["praise", "complaint", "question"]

    folder = RunFolder(run)
    config = folder.read_config()
    tokenizer = datasets.declared("text").serving(config, folder.read_data())["tokenizer"]
    scores = folder.load_model()(tokenizer(given)).numpy() * config.score_scale
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    served = [answer["probabilities"] for answer in answers]
    np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-6)


def test_a_run_refuses_another_file_with_the_same_counts_and_words(trained, tmp_path):
    rows = [(words.upper(), name) for words, name in made_rows()]
    other = write_csv(tmp_path / "other.csv", rows)
    config = json.loads((trained / "run" / "config.json").read_text())
    data = datasets.load(Config.from_json({**config, "data_dir": str(other)}))
    assert data.counts.tolist() == [8, 16, 4]
    with pytest.raises(ValueError, match="belongs to a run on other data: its files differ"):
        RunFolder(trained / "run").check_data(data.describe())


def test_training_texts_without_a_word_are_told(tmp_path, capsys):
    wordless = [("." * n, "question") for n in range(1, 6)]  # Some are held out.
    file = write_csv(tmp_path / "texts.csv", [*made_rows(), *wordless])
    config = Config(dataset="text", data_dir=str(file), imbalance="none", validation_fraction=0.2)
    datasets.load(config.resolve())
    assert re.search("Training texts without a word: [1-5]", capsys.readouterr().out)


def test_the_recipe_makes_no_imbalance():
    config = load_recipe("text", "ldam_drw").resolve()
    assert config.imbalance == "none" and config.run_name == "text-ldam_drw-0"
    assert exporting.learned_frequencies(config, np.array([8, 16, 4])).tolist() == [1 / 3] * 3
