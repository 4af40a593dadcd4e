"""A user's own table: what its columns hold, a sentence for each fault, a run to served rows."""

from __future__ import annotations

import contextlib
import csv
import datetime
import json
import time

import keras
import numpy as np
import pytest

from keras_ldam.experiments import cli, datasets, exporting, models, row_encoder
from keras_ldam.experiments.config import Config
from keras_ldam.experiments.datasets import labeled_rows, records, table, text
from keras_ldam.experiments.datasets.data import OnDisk, Split
from keras_ldam.experiments.models.table_mlp import TableFeatures, table_mlp
from keras_ldam.experiments.recipes import load_recipe
from keras_ldam.experiments.run_folder import RunFolder

HEADER = ("age", "petal length (cm)", "job", "class?", "since", "label")
COUNTS = {"stays": 40, "leaves": 10}


def made_rows():
    """Rows whose class shows in each column; some cells are missing."""
    rng = np.random.default_rng(0)
    rows = []
    for name, count in COUNTS.items():
        leaves = name == "leaves"
        for i in range(count):
            rows.append(
                (
                    "" if i == 3 else 60 - 30 * leaves + i % 5,
                    round(10.0 ** (rng.normal() + 3 * leaves), 3),
                    "NA" if i == 4 else ("cook" if leaves else "pilot"),
                    bool(i % 2),
                    f"20{10 + 10 * leaves}-0{1 + i % 9}-15",
                    name,
                )
            )
    return [rows[i] for i in rng.permutation(len(rows))]


def write_csv(path, rows, header=HEADER):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def config_of(path, **changes):
    return Config(dataset="table", imbalance="none", data_dir=str(path), **changes).resolve()


@pytest.fixture
def churn(tmp_path):
    return write_csv(tmp_path / "churn.csv", made_rows())


def test_numbers_dates_and_categories_are_found_and_gaps_kept(churn):
    data = table.load(config_of(churn))
    assert data.class_names == ("leaves", "stays") and data.counts.tolist() == [8, 32]
    assert [column["kind"] for column in data.columns] == [
        *("number", "number", "category", "category", "date")
    ]
    # The more frequent come first; a missing value is no category.
    assert data.columns[2]["categories"] == ["pilot", "cook"]
    assert sorted(data.columns[3]["categories"]) == ["false", "true"]
    rows = np.concatenate([data.train.examples[np.arange(40)], data.test.examples[np.arange(10)]])
    assert rows.shape == (50, 2 + 4 + 2) and rows.dtype == np.float32
    assert np.isnan(rows[:, 0]).sum() == 2 and not np.isnan(rows[:, 1:]).any()
    assert np.bincount(rows[:, 6].astype(int)).tolist() == [2, 0, 39, 9]
    labels = np.concatenate([data.train.labels, data.test.labels])
    np.testing.assert_array_equal(rows[:, 2] > 16_000, labels == 0)  # Days since 1970.
    assert set(rows[:, 5]) == {0.0}  # No hour.


def test_every_form_of_file_gives_the_same_rows(tmp_path, churn):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    rows = [dict(zip(HEADER, row, strict=True)) for row in made_rows()]
    for row in rows:
        row["age"] = None if row["age"] == "" else row["age"]
        row["job"] = None if row["job"] == "NA" else row["job"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for row in rows:
        row["since"] = datetime.date.fromisoformat(row["since"])
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    expected = table.load(config_of(churn))
    everything = np.arange(len(expected.train))
    for name in ("a.jsonl", "a.parquet"):
        found = table.load(config_of(tmp_path / name))
        assert found.columns == expected.columns
        np.testing.assert_array_equal(
            found.train.examples[everything], expected.train.examples[everything]
        )


@pytest.fixture
def from_parquet(tmp_path):
    """Loads a table of these columns, and of twelve labels, from a Parquet file."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    def load(**columns):
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({**columns, "label": [b"x", b"y"] * 6}), path)
        return table.load(config_of(path))

    return load


def test_times_of_a_zone_are_read_in_utc_up_to_the_nanosecond(from_parquet):
    import pyarrow

    when = datetime.datetime(2026, 11, 30, 0, 30, tzinfo=datetime.UTC)
    expected = list(row_encoder.date_parts("2026-11-30T00:30Z"))
    nanoseconds = int(when.timestamp()) * 10**9 + 1
    for times in (
        pyarrow.array([when] * 12, pyarrow.timestamp("us", "America/New_York")),
        pyarrow.array([nanoseconds] * 12, pyarrow.timestamp("ns", "Asia/Tokyo")),
        pyarrow.array([nanoseconds] * 12, pyarrow.timestamp("ns")),
        [when.isoformat()] * 12,
        ["2026-11-30 00:30:00+0000"] * 12,
    ):
        data = from_parquet(when=times)
        assert data.columns[0]["kind"] == "date"
        np.testing.assert_allclose(data.train.examples[np.array([0])], [expected])
    with pytest.raises(ValueError, match=r"a\.parquet: column 'when' cannot be read from row 1 on"):
        from_parquet(when=pyarrow.array([10**15] * 12, pyarrow.timestamp("s")))


def test_bytes_are_read_as_text_or_refused_with_their_row(from_parquet):
    data = from_parquet(job=["é".encode(), b"ham"] * 6)
    assert data.class_names == ("x", "y")
    assert sorted(data.columns[0]["categories"]) == ["ham", "é"]
    with pytest.raises(ValueError, match="row 2: column 'job' holds bytes that are not UTF-8"):
        from_parquet(job=[b"ham", b"\xff"] * 6)


def test_columns_can_be_left_out_or_taken_for_categories(churn):
    data = table.load(
        config_of(churn, ignore_columns="since, job", category_columns="age", label_column="label")
    )
    assert [column["name"] for column in data.columns] == ["age", "petal length (cm)", "class?"]
    assert data.columns[0]["kind"] == "category" and "60" in data.columns[0]["categories"]


def test_categories_of_training_alone_are_known_and_one_of_a_single_row_is_not(tmp_path):
    rows = [("a", "x", "train"), ("a", "y", "train"), ("b", "x", "train"), ("c", "y", "test")]
    path = write_csv(tmp_path / "a.csv", rows, header=("job", "label", "split"))
    data = table.load(config_of(path))
    assert data.columns == ({"name": "job", "kind": "category", "categories": ["a"]},)
    assert sorted(data.train.examples[np.arange(3)].ravel().tolist()) == [1, 2, 2]
    assert data.test.examples[np.arange(1)].tolist() == [[1]]
    known = [{"name": "job", "kind": "category", "categories": ["c", "b"]}]
    data = table.load(config_of(path), columns=known)
    assert sorted(data.train.examples[np.arange(3)].ravel().tolist()) == [1, 1, 3]
    assert data.test.examples[np.arange(1)].tolist() == [[2]]
    with pytest.raises(ValueError, match="has other columns than the run's data, as 'age'"):
        table.load(config_of(path), columns=[{"name": "age", "kind": "number"}])


def test_columns_and_rows_on_both_sides_are_said(tmp_path, capsys):
    rows = [(i, "ab"[i % 2], i % 2, "train") for i in range(10)]
    rows += [(*row[:3], "test") for row in rows[:4]] + [(99, "a", 0, "test")]
    table.load(config_of(write_csv(tmp_path / "a.csv", rows, ("x", "c", "label", "split"))))
    said = capsys.readouterr().out
    assert "4 of the 5 test rows are training rows too" in said
    assert "columns: numbers x; categories c\n" in said
    # What is evaluated counts: here rows that are held out of the training rows.
    twice = [(i // 2, "a", i // 2 % 2, "train") for i in range(40)]
    path = write_csv(tmp_path / "b.csv", [*twice, (99, "a", 0, "test"), (98, "a", 1, "test")])
    path.write_text(path.read_text().replace(",".join(HEADER), "x,c,label,split"))
    table.load(config_of(path, validation_fraction=0.25))
    assert "of the 10 validation rows are training rows too" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0", "0.0", "1", "1.0"], ("0", "1")),
        (["True", "TRUE", "false", "False"], ("false", "true")),
        (["2.0", "10.0", "10.0", "2.0"], ("2", "10")),
        (["1.10", "1.1", "1.10", "1.1"], ("1.1", "1.10")),
        (["None", "some", "some", "None"], ("None", "some")),
    ],
)
def test_a_label_is_one_class_in_all_spellings(labels, names, tmp_path):
    path = write_csv(tmp_path / "a.csv", [(i, label) for i, label in enumerate(labels * 3)], "xy")
    assert table.load(config_of(path)).class_names == names


@pytest.mark.parametrize("word", ["NA", "nan", "?", "NULL", ""])
def test_a_missing_label_is_no_class(word, tmp_path):
    rows = [(i, "ab"[i % 2]) for i in range(10)]
    path = write_csv(tmp_path / "a.csv", [*rows, (10, word)], "xy")
    with pytest.raises(ValueError, match=r"line 12: the label, in column 'y', is missing"):
        table.load(config_of(path))
    data = table.load(config_of(path, skip_corrupt=True))
    assert data.class_names == ("a", "b") and len(data.skipped) == 1


def test_a_column_whose_name_has_a_comma_can_be_named(tmp_path):
    rows = [(i, i, "ab"[i % 2]) for i in range(10)]
    path = write_csv(tmp_path / "a.csv", rows, ("Income, yearly", "age", "label"))
    data = table.load(config_of(path, ignore_columns='"Income, yearly"'))
    assert [column["name"] for column in data.columns] == ["age"]


def test_rows_stay_on_the_disk_until_they_are_asked_for(churn):
    data = table.load(config_of(churn))
    for split in (data.train, data.test):
        assert isinstance(split.examples, OnDisk) and isinstance(split.examples.values, np.memmap)
    assert data.train.examples.values is data.test.examples.values
    taken = data.train.take(np.array([5, 1]))
    assert taken.examples.values is data.train.examples.values
    np.testing.assert_array_equal(
        taken.examples[np.arange(2)], data.train.examples[np.array([5, 1])]
    )
    batches = list(data.test.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]


GOOD = "1,a,x\n2,b,y\n" * 4
FAULTS = {
    "infinite": (f"n,c,label\n{GOOD}inf,a,x\n", "line 10: column 'n' holds inf, which is infinite"),
    "too large": (
        f"n,c,label\n{GOOD}1e39,a,x\n",
        "line 10: column 'n' holds 1e39, which is infinite",
    ),
    "a word among numbers": (
        f"n,c,label\n{GOOD}many,a,x\n",
        "line 10: column 'n' holds numbers, and here",
    ),
    "a date among numbers": (
        f"n,c,label\n{GOOD}2026-11-29,a,x\n",
        "line 10: column 'n' holds numbers, and here '2026",
    ),
    "an impossible date": (
        "n,label\n" + "2026-02-28,x\n2026-02-27,y\n" * 4 + "2026-02-30,x\n",
        "line 10: column 'n' holds dates, and here '2026-02-30'",
    ),
    "a time elsewhere": (
        "n,label\n" + "2026-02-28T10:00+01:00,x\n2026-02-28T10:00Z,y\n" * 4,
        "line 2: column 'n' holds a time that is not in UTC, 2026-02-28T10:00+01:00: convert",
    ),
    "a time elsewhere among dates": (
        "n,label\n" + "2026-02-28T10:00Z,x\n2026-02-27,y\n" * 4 + "2026-02-28 10:00-0330,x\n",
        "line 10: column 'n' holds a time that is not in UTC, 2026-02-28 10:00-0330: convert",
    ),
    "an empty column": ("n,c,label\n" + ",a,x\n,b,y\n" * 4, "column 'n' of"),
    "only labels": ("label\nx\ny\n", "no column but that of the labels"),
    "no label column": ("n,c,queue\n1,a,x\n", "no column with a usual name for the labels"),
    "an identifier": (
        "n,name,label\n" + "".join(f"1,id{i},{i % 2}\n" for i in range(120)),
        "column 'name' of",
    ),
    "one class": ("n,label\n1,x\n2,x\n", "has the one value 'x'"),
    "numbers for labels": (
        "n,label\n" + "".join(f"{i % 7},{i / 7}\n" for i in range(150)),
        "has 150 different values in the first 150 rows: it identifies rows",
    ),
}


@pytest.mark.parametrize(("contents", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_table_gets_a_sentence_with_its_place(contents, message, tmp_path):
    (tmp_path / "a.csv").write_text(contents)
    with pytest.raises(ValueError) as raised:
        table.load(config_of(tmp_path / "a.csv"))
    assert message in str(raised.value) and str(tmp_path / "a.csv") in str(raised.value)


def test_a_whole_number_of_any_length_gets_a_sentence_or_is_a_label(tmp_path):
    path, long = tmp_path / "a.jsonl", "9" * 400
    path.write_text(f'{{"n": 1, "label": {long}}}\n{{"n": 2, "label": 1}}\n' * 4)
    assert table.load(config_of(path)).class_names == ("1", long)
    path.write_text(f'{{"n": 1, "label": "a"}}\n{{"n": {long}, "label": "b"}}\n' * 4)
    with pytest.raises(ValueError, match=r"line 2: column 'n' holds 9+, which is infinite"):
        table.load(config_of(path))


@pytest.mark.parametrize(("sign", "message"), [("\\u0000", "a NUL"), ("\\ud800", "half of a surr")])
def test_a_category_that_no_server_takes_is_refused_with_its_line(sign, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"job": "a", "label": "x"}\n' * 2 + f'{{"job": "{sign}", "label": "y"}}\n' * 2)
    with pytest.raises(ValueError, match=f"line 3: column 'job' holds {message}"):
        table.load(config_of(path))


def test_codes_with_underscores_are_categories(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("code,n,label\n" + "10_200,1,x\n1_0200,2,y\n" * 4)
    assert [column["kind"] for column in table.load(config_of(path)).columns] == [
        "category",
        "number",
    ]


def test_a_hundred_thousand_columns_are_named_at_once(tmp_path):
    path = tmp_path / "wide.csv"
    names = [f"c{i}" for i in range(100_000)]
    path.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    start = time.process_time()
    (chunk,) = records.Records(path).chunks()
    assert len(chunk.columns) == len(names) and time.process_time() - start < 20


def test_rows_without_any_label_are_no_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("n,text,label\n1,one,\n2,two,\n")
    for load in (table.load, text.load):
        config = config_of(path, skip_corrupt=True)
        with pytest.raises(ValueError, match="has no value; at least two classes"):
            load(config)


@pytest.mark.parametrize(
    ("word", "said"), [('"oops"', "oops"), ('"1_000"', "1_000"), ("true", "T")]
)
@pytest.mark.parametrize("rows", [10, 10_050])
def test_a_word_is_no_number_wherever_it_comes_and_gets_its_line(rows, word, said, tmp_path):
    lines = [json.dumps({"n": i % 9, "label": i % 2}) for i in range(rows)]
    lines.append(f'{{"n": {word}, "label": 1}}')
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    place = f"line {rows + 1}: column 'n' holds numbers, and here '{said}"
    with pytest.raises(ValueError, match=place):
        table.load(config_of(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *(
            (missing, None)
            for missing in ("", "NA", "\u3000n/a ", "nan", "null", "None", "?", None)
        ),
        ("-1.5e3", -1500),
        (" 7\xa0", 7),
        (3, 3),
    ],
)
def test_a_number_is_served_as_it_is_read_in_training(cell, number, tmp_path):
    pytest.importorskip("tensorflow")
    from keras_ldam.serving import exported

    rows = [(1, 0, "train"), (cell, 1, "train"), (1, 0, "test")]
    lines = [json.dumps(dict(zip(("n", "label", "split"), row, strict=True))) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    train = table.load(config_of(tmp_path / "a.jsonl")).train
    found = train.examples[np.flatnonzero(train.labels)].item(), exported._number("n", cell)
    np.testing.assert_equal(found, [np.nan if number is None else number] * 2)


@pytest.mark.parametrize("cell", ["1_000", "1,5", "many", True, [1], "2026-11-29"])
def test_what_training_does_not_take_for_a_number_is_not_served(cell):
    pytest.importorskip("tensorflow")
    from keras_ldam.serving import exported

    with pytest.raises(exported.RefusedError, match="column 'n' must be a number, not"):
        exported._number("n", cell)


def test_an_unknown_column_gets_a_sentence(churn):
    for name in ("ignore_columns", "category_columns"):
        with pytest.raises(
            ValueError, match=rf"`{name}` names 'wage', and .* has the columns 'age'"
        ):
            table.load(config_of(churn, **{name: "wage"}))


# ----------------------------------------------------------------------------- encoding


COLUMNS = (
    {"name": "n", "kind": "number"},
    {"name": "when", "kind": "date"},
    {"name": "job", "kind": "category", "categories": ["a", "true", "10"]},
    {"name": "none", "kind": "category", "categories": []},
)


def test_the_graph_encodes_dates_and_categories_as_python_does():
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(1)
    dates = ["", "2026-11-29T14:30", "2024-02-29 23:59:59", "1969-12-31T00:00:01.5Z", " NA "]
    first = datetime.datetime(1, 1, 1)
    dates[1:1] = [f"2026-11-29T14:30{zero}" for zero in ("+00:00", "-00:00", "+0000", ":05.5+00")]
    dates += [
        (first + datetime.timedelta(int(day), hours=int(day) % 24)).isoformat()
        for day in rng.integers(0, 3_652_058, 41)
    ]
    jobs = ["a", " a ", "TRUE", "True", "other", "", "null", "?", "n/a", "None", "10.0", "1.0"]
    jobs += ["10", "a.0"] + [""] * 36
    encode = row_encoder.graph(COLUMNS)
    given = {"n": tf.range(50.0), "when": tf.constant(dates), "job": tf.constant(jobs)}
    found = encode({**given, "none": tf.constant(["", "x"] * 25)}).numpy()
    expected = [row_encoder.date_parts(row_encoder.category(date)) for date in dates]
    missing = (np.nan,) * len(row_encoder.DATE_PARTS)
    np.testing.assert_allclose(
        found[:, 1:5], np.array([parts or missing for parts in expected], np.float32), atol=1e-3
    )
    assert found[:14, 5].tolist() == [2, 2, 3, 3, 1, 0, 0, 0, 0, 0, 4, 1, 4, 1]
    ids = {"": 0, "a": 2, "true": 3, "10": 4}
    assert [ids.get(row_encoder.category(job), 1) for job in jobs] == found[:, 5].tolist()
    assert found[:4, 6].tolist() == [0, 1, 0, 1]
    assert row_encoder.width(COLUMNS) == (5, [5, 2])
    given["none"] = tf.constant([""] * 50)
    for wrong in (
        "29.11.2026",
        "2026-02-30",
        "2023-02-29",
        "1900-02-29",
        "2026-04-31",
        "0000-01-01",
        "2026-11-29T14:30+02:00",
        "2026-11-29T14:30-00:30",
        "2026-11-29-00",
        "2026-11-29T14:30+00:00Z",
    ):
        assert row_encoder.date_parts(wrong) is None
        with pytest.raises(tf.errors.InvalidArgumentError, match="a date must be like 2026-11-29"):
            encode({**given, "when": tf.constant([wrong, *dates[1:]])})


def test_the_graph_knows_the_spaces_and_capitals_that_python_knows():
    tf = pytest.importorskip("tensorflow")
    spaces = [sign for sign in map(chr, range(0x110000)) if sign.isspace()]
    near = ["\u200b", "\ufeff", "\u180e", "\u2060", "\x1b", "!"]  # No spaces.
    words = ["cook", "NA", "tRUE", "c\xa0k", "fal\u017fe", "\u212a", "İ", ""]
    texts = [f"{a}{word}{a}{b}" for word in words for a in spaces + near for b in (a, " ")]
    names = sorted({row_encoder.category(text) for text in texts} - {""})
    encode = row_encoder.graph([{"name": "c", "kind": "category", "categories": names}])
    ids = {"": 0} | {name: number for number, name in enumerate(names, start=2)}
    expected = [[ids[row_encoder.category(text)]] for text in texts]
    assert encode({"c": tf.constant(texts)}).numpy().tolist() == expected
    encode = row_encoder.graph([{"name": "d", "kind": "date"}])
    dates = tf.constant([f"{space}2020-01-01{space}" for space in spaces])
    assert set(encode({"d": dates}).numpy()[:, 0]) == {row_encoder.date_parts("2020-01-01")[0]}


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("1.50", 1.5),
        ("10", 10),
        ("100.0", 100.0),
        ("0.0000001", 1e-7),
        ("-2.500", -2.5),
        ("1.10", 1.1),
    ],
)
def test_a_number_is_the_same_category_in_a_table_and_in_json(cell, number):
    tf = pytest.importorskip("tensorflow")
    from keras_ldam.serving import exported

    name = row_encoder.category(cell)
    assert row_encoder.category(labeled_rows.as_text(number)) == name
    encode = row_encoder.graph([{"name": "c", "kind": "category", "categories": [name]}])
    asked = [cell.encode(), exported._text("c", number)]
    assert encode({"c": tf.constant(asked)}).numpy().tolist() == [[2], [2]]


@pytest.mark.parametrize("text", ["1.05", "1.2.0", "v1.50", "1.", ".50", "1.5", "100"])
def test_what_is_no_decimal_with_zeros_at_its_end_stays_as_it_is(text):
    assert row_encoder.category(text) == text


def test_features_of_numbers_and_categories_by_hand():
    layer = TableFeatures(2, [3, 2], bins=2, size=2)
    rows = np.array([[0, 5, 2, 0], [10, 5, 1, 1], [np.nan, 5, 0, 0], [20, 5, 2, 1]], np.float32)
    layer.build(rows.shape)
    layer.adapt(rows)
    found = keras.ops.convert_to_numpy(layer(rows))
    assert found.shape == layer.compute_output_shape(rows.shape) == (4, 2 * 4 + 2 * 2)
    deviation = np.std([0, 10, 20])
    np.testing.assert_allclose(found[:, 0], [-10 / deviation, 0, 0, 10 / deviation], rtol=1e-5)
    assert not found[:, 1].any()  # A constant tells nothing.
    # Edges at 0, 20, 20 by rows and values: the first bin is all of it.
    np.testing.assert_allclose(found[:, 2], [0, 0.5, 0, 1], rtol=1e-6)
    assert found[:, 6].tolist() == [0, 0, 1, 0] and not found[:, 7].any()
    vectors = keras.ops.convert_to_numpy(layer.vectors.embeddings)
    assert len(vectors) == 5  # No two columns share a vector.
    np.testing.assert_allclose(found[:, 8:10], vectors[[2, 1, 0, 2]])
    np.testing.assert_allclose(found[:, 10:], vectors[[3, 4, 3, 4]])


def test_skewed_numbers_are_spread_over_the_bins():
    values = np.concatenate([np.zeros(900), 10.0 ** np.linspace(0, 9, 100)])[:, None]
    layer = TableFeatures(1)
    layer.build(values.shape)
    layer.adapt(values)
    found = keras.ops.convert_to_numpy(layer(np.array([[1.0], [1e2], [1e4], [1e6], [1e8]])))
    through = found[:, 1:17].sum(axis=1)
    assert (np.diff(through) > 0.5).all()
    assert np.isfinite(found).all() and np.abs(found).max() <= 5


def test_a_saved_network_of_tables_gives_the_same_scores(tmp_path, rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    rows = np.concatenate([rng.normal(size=(30, 3)), rng.integers(0, 900, (30, 1))], 1)
    rows = rows.astype(np.float32)
    rows[4, 1] = np.nan
    model = table_mlp(head=keras.layers.Dense(2), examples=rows, numbers=3, ids=[900], width=8)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for scores in (model, again):
        assert np.isfinite(keras.ops.convert_to_numpy(scores(rows))).all()
    np.testing.assert_array_equal(
        *(keras.ops.convert_to_numpy(keras.ops.cast(m(rows), "float32")) for m in (model, again))
    )
    other = rows.copy()
    other[:, 3] = (other[:, 3] + 1) % 900  # In bfloat16 it would be the same category.
    features = model.get_layer("features")
    assert not np.allclose(
        *(keras.ops.convert_to_numpy(features(x))[:, -8:] for x in (rows, other))
    )


def test_the_network_is_trained_on_jax(on_jax):
    code = """
import keras, numpy as np
from keras_ldam.experiments.models.table_mlp import table_mlp

rows = np.float32([[1, 0], [2, 2], [np.nan, 1], [3, 2]])
model = table_mlp(head=keras.layers.Dense(2), examples=rows, numbers=1, ids=[3], width=4)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
assert np.isfinite(model.fit(rows, np.array([0, 1, 0, 1]), verbose=0).history["loss"]).all()
"""
    done = on_jax(code)
    assert done.returncode == 0, done.stderr


def test_a_table_is_refused_by_networks_of_other_forms(churn):
    config = config_of(churn, network="mlp")
    with pytest.raises(ValueError, match="`network` must be one of table_mlp for rows"):
        models.build(config, datasets.load(config))


# ----------------------------------------------------------------------------- from file to answer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder with a table, a finished run on it and its export; not to be changed."""
    folder = tmp_path_factory.mktemp("tables")
    write_csv(folder / "churn.csv", made_rows())
    flags = ["--dataset=table", f"--data_dir={folder / 'churn.csv'}", f"--run_dir={folder / 'run'}"]
    flags += ["--epochs=6", "--drop_at=0.5", "--batch_size=8", "--validation_fraction=0.25"]
    assert cli.main("train", [*flags, "--noprogress"]) == 0
    assert cli.main("export", [f"--run_dir={folder / 'run'}", f"--output={folder / 'churn'}"]) == 0
    return folder


ROWS = (
    {"age": 62, "petal length (cm)": 1.5, "job": "pilot", "class?": True, "since": "2010-03-15"},
    {
        "age": "31",
        "petal length (cm)": 2000,
        "job": "cook",
        "class?": "FALSE",
        "since": "2020-03-15",
    },
    {"age": None, "job": "astronaut"},
)


def test_rows_are_evaluated_and_predicted_as_trained(trained, capsys):
    assert cli.main("evaluate", [f"--run_dir={trained / 'run'}"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_error"] == 0
    bad = [
        '{"age": 1e400}', "not json", "[1]", '{"wage": 3}', '{"age": "old"}', '{"since": "1.2.3"}',
        '{"job": [1]}', '{"job": "\\u0000"}',
    ]  # fmt: skip
    lines = [json.dumps(row) for row in ROWS] + bad
    assert cli.main("predict", [f"--model={trained / 'churn'}", *lines]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["line"] for answer in answers] == list(range(1, len(lines) + 1))
    assert [answer.get("label") for answer in answers[:2]] == ["stays", "leaves"]
    errors = [answer["error"] for answer in answers[3:]]
    expected = (
        "'age' is infinite", "is not JSON", "must be a JSON object", "unknown column 'wage'; known",
        "'age' must be a number, not 'old'", "column since: a date must be like",
        "'job' must be a text", "NUL",
    )  # fmt: skip
    for error, sentence in zip(errors, expected, strict=True):
        assert sentence in error

    folder = RunFolder(trained / "run")
    config, data = folder.read_config(), folder.read_data()
    (trained / "rows.jsonl").write_text(
        "\n".join(
            json.dumps({**row, "label": name, "split": part})
            for row, name, part in [
                *((row, "stays", "test") for row in ROWS),
                *((ROWS[0], n, "train") for n in COUNTS),
            ]
        )
    )
    some = table.load(config_of(trained / "rows.jsonl"), columns=data["columns"])
    scores = keras.ops.convert_to_numpy(folder.load_model()(some.test.examples[np.arange(3)]))
    exponents = np.exp(scores * config.score_scale)
    np.testing.assert_allclose(
        [answer["probabilities"] for answer in answers[:3]],
        exponents / exponents.sum(axis=1, keepdims=True),
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_export_says_what_its_columns_are(trained):
    facts = json.loads((trained / "churn" / "1" / "export.json").read_text())
    assert facts["input"] == "row"
    assert facts["columns"][1] == {
        "name": "petal length (cm)", "kind": "number", "argument": "petal_length__cm_",
    }  # fmt: skip
    assert [column["kind"] for column in facts["columns"]] == [*("number",) * 2, *("text",) * 3]
    card = (trained / "churn" / "1" / "model_card.md").read_text()
    for words in ("rows of a table", "any may be missing", "dates that are not like 2026-11-29"):
        assert words in card


def test_a_table_is_calibrated_with_the_categories_of_the_run(trained, tmp_path, monkeypatch):
    given = []
    load = datasets.load
    monkeypatch.setattr(datasets, "load", lambda *a, **k: given.append(k) or load(*a, **k))
    with contextlib.suppress(ValueError):  # All validation rows may be right.
        exporting.export(trained / "run", tmp_path / "calibrated", calibrate=True)
    assert given == [{}, {"columns": RunFolder(trained / "run").read_data()["columns"]}]


def test_the_recipe_and_the_split_of_the_file_are_kept(trained):
    assert load_recipe("table", "erm").resolve().run_name == "table-erm-0"
    with pytest.raises(ValueError, match="belongs to a run on other data: its files differ"):
        data = {**RunFolder(trained / "run").read_data(), "fingerprint": "another"}
        RunFolder(trained / "run").check_data(data)
    assert (
        records.fingerprint([trained / "churn.csv"])
        == RunFolder(trained / "run").read_data()["fingerprint"]
    )
    with pytest.raises(ValueError, match="labels of type"):
        Split(OnDisk(np.zeros((2, 1)), np.arange(2)), np.zeros(1))
