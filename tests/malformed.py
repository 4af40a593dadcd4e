"""Gives every program malformed input, and looks for tracebacks and for wrong answers.

    python tests/malformed.py             # all of it: more than 1,000 inputs, some minutes
    python tests/malformed.py --every 20  # every twentieth

Inputs are valid ones with one thing changed: a value or a key of a JSON file, a cell of a table,
bytes of an image, an entry of a folder, a flag. A program must refuse the input with one sentence
and exit code 2, or answer as it does without the change, where the change has no meaning. What
could only be guessed at, such as another plausible error in a results file, must still be a
possible value in the answer. The bodies of requests are the business of `tests/load.py`.
"""

import argparse
import contextlib
import copy
import io
import itertools
import json
import math
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]


class Case(NamedTuple):
    """A malformed input and the program that reads it.

    `write` makes the input; `accepts` looks at the answer of a program that does not refuse it, and
    is None where it must be refused.
    """

    name: str
    write: Any
    verb: str
    arguments: list[str]
    accepts: Any = None
    lines: list[bytes] | None = None


# ----------------------------------------------------------------------------- what is changed

VALUES = (
    *(None, True, False, 0, -1, 1.5, 2**70, 1e308, float("nan"), float("inf"), "", "x", "é\x00"),
    *([], {}, [[]], [None], [1], {"x": 1}, [[[[[1]]]]], "../../x", "9" * 400, [1] * 1000),
)
BAD_CELLS = (
    *("-1", "0", "1.5", "nan", "inf", "1e400", "", " ", "n/a", "x", "1,234,5", "1 000 x", "0x10"),
    *(
        "1/2",
        "12%",
        "--3",
        "5,000",
        "5.000",
        "99999999999999999999999",
        "\x00",
        "1\x00",
        "=A1",
    ),
)
BAD_BYTES = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"[",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"1",
    b"[1",
    b"\x80",
)


def changed_trees(tree: Any, *, most: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yields JSON files that differ from a tree in one place, each with a name."""
    draw = random.Random(seed)
    places = list(_places(tree))
    options = [(place, value) for place in places for value in (*VALUES, "delete", "add")]
    draw.shuffle(options)
    for place, value in options[:most]:
        other = copy.deepcopy(tree)
        *way, last = place
        parent = other
        for step in way:
            parent = parent[step]
        if value == "delete":
            del parent[last]
        elif value == "add":
            parent.insert(last, None) if isinstance(parent, list) else parent.update(new=None)
        else:
            parent[last] = value
        yield f"{'.'.join(map(str, place))} = {value!r:.40}", json.dumps(other).encode()
    text = json.dumps(tree).encode()
    for number, contents in enumerate(
        (*BAD_BYTES, b"[" * 10**5, text[:-1], text[: len(text) // 2])
    ):
        yield f"bytes {number}", contents
    yield "UTF-16", text.decode().encode("utf-16")
    yield "a byte that is not UTF-8", text.replace(b'"', b'"\xff', 1)


def _places(tree: Any, way: tuple = ()) -> Iterator[tuple]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree[:2])
    for key, value in items:
        yield (*way, key)
        if isinstance(value, dict | list) and value:
            yield from _places(value, (*way, key))


# ----------------------------------------------------------------------------- valid inputs

FLAGS = ["--dataset=digits", "--epochs=2", "--start_epoch=1", "--batch_size=256", "--noprogress"]


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """Within it figures are made and not drawn, and no network is trained to read flags only."""
    from keras_ldam.experiments import cli
    from keras_ldam.report import canvas

    page = sys.modules["keras_ldam.report.page"]
    png, svg, verb = canvas.png, page.svg, cli.VERBS["train"]

    def run(values: Any) -> Any:
        if values.run_dir:
            return verb.run(values)
        return {"config": cli.config_from(values).to_json()}

    canvas.png = lambda draw, *_: b"a figure"
    page.svg = lambda draw, runs, *_: draw(runs, canvas.Canvas()) and "<svg></svg>"
    cli.VERBS["train"] = verb._replace(run=run)
    try:
        yield
    finally:
        canvas.png, page.svg = png, svg
        cli.VERBS["train"] = verb


class Valid:
    """A finished run, its results file, exports, images and counts; made once."""

    @_quick()
    def __init__(self, folder: Path) -> None:
        import made_exports
        import made_images

        self.folder = folder
        self.run, self.results = folder / "run", folder / "results" / "digits.json"
        self._do("train", *FLAGS, f"--run_dir={self.run}")
        self._do("evaluate", f"--run_dir={self.run}")
        self._do("report", f"--results_dir={self.results.parent}", "--output_dir=x", str(self.run))
        self.digits = made_exports.of_digits(folder)
        self.images = folder / "images"
        made_images.write_folder(self.images, [6, 4, 3])
        self.picture = (self.images / "class_0" / "0000.jpg").read_bytes()

    def _do(self, verb: str, *arguments: str) -> None:
        code, _, error = ask(verb, list(arguments))
        if code:
            raise RuntimeError(f"{verb} refuses what is valid: {error}")


def ask(verb: str, arguments: list[str], lines: list[bytes] | None = None) -> tuple[int, str, str]:
    """Runs a program in this process; returns its code, its answer and what it says."""
    from keras_ldam.experiments import cli

    out, err, given = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(lines or [])))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(verb, arguments)
    except SystemExit as error:
        code = 70 if error.code is None else error.code
    except Exception:
        code = 70
        err.write(traceback.format_exc())
    finally:
        sys.stdin = given
    return code, out.getvalue(), err.getvalue()


# ----------------------------------------------------------------------------- the cases


def counts_files(valid: Valid) -> Iterator[Case]:
    path = valid.folder / "counts"
    rows = [["cat", "5000"], ["dog", "50"], ["bird", "7"]]
    arguments = [f"--counts={path}", "--json"]

    def same(answer: str) -> bool:
        found = json.loads(answer)
        return found["counts"] == [5000, 50, 7] and found["class_names"] in (
            ["cat", "dog", "bird"],
            ["0", "1", "2"],
        )

    for separator, place, cell in itertools.product(",;\t", range(3), BAD_CELLS):
        table = copy.deepcopy(rows)
        table[place][1] = cell
        text = "\n".join(separator.join(row) for row in table) + "\n"
        if cell in ("5,000", "5.000") or (cell == "x" and place == 0):
            continue  # What these mean depends on the other lines; see the tests of the advice.
        yield Case(f"{separator}{place}{cell!r}", _bytes(path, text), "advise", arguments)
    plain = "\n".join(",".join(row) for row in rows)
    for number, text in enumerate(
        (
            plain.replace("\n", "\r\n"), "\ufeff" + plain, plain + "\n\n\n",
            plain.replace(",", "\t"),
            plain.replace(",", ";"), "class,count\n" + plain, plain.replace(",", " , "),
            plain.replace("cat", '"cat"'), plain.replace("5000", "5000.0"),
        )
    ):  # fmt: skip
        yield Case(f"same {number}", _bytes(path, text), "advise", arguments, same)
    for number, text in enumerate(
        (
            plain + "\ncat,3", plain + "\ntotal,5057", plain + "\n,4", plain + "\na,b,c,4",
            "cat,1", "5", "1,2,x", "class,count", plain.encode("utf-16"), plain.encode("utf-16-le"),
            b"\x89PNG\r\n" + plain.encode(), plain.encode() + b"\xff", "{" + plain, "[1,2",
            "[1, 0]",
            '{"cat": 5, "cat": 6, "dog": 1}', '{"counts": [1, 2], "class_names": ["a"]}',
            "[[1],[2]]",
            "[5000, null]", '["a", "b"]', '{"a": 1, "b": "x"}', '{"a": {"b": 1}, "c": 2}',
            "[" * 10**5,
        )
    ):  # fmt: skip
        yield Case(f"refused {number}", _bytes(path, text), "advise", arguments)
    for name, contents in changed_trees(
        {"counts": [9, 3], "class_names": ["a", "b"]}, most=60, seed=1
    ):
        possible = _counts_are(9, 3)
        yield Case(f"data.json {name}", _bytes(path, contents), "advise", arguments, possible)


def _counts_are(*counts: int):
    """Whether an answer has these counts, or another number where one was put in."""

    def accepts(answer: str) -> bool:
        found = json.loads(answer)["counts"]
        return len(found) >= 2 and all(n in (*counts, 1, 0, True, 2**70) and n >= 1 for n in found)

    return accepts


def results_files(valid: Valid) -> Iterator[Case]:
    path = valid.folder / "changed" / "digits.json"
    arguments = [f"--results_dir={path.parent}", f"--output_dir={path.parent / 'page'}", str(path)]
    tree = json.loads(valid.results.read_text())
    for name, contents in changed_trees(tree, most=250, seed=2):
        yield Case(f"results {name}", _bytes(path, contents), "report", arguments, possible_table)


def possible_table(answer: str) -> bool:
    """Whether all numbers in a table of errors are percentages."""
    cells = [
        cell.strip(" *") for row in answer.splitlines() if row[:1] == "|" for cell in row.split("|")
    ]
    numbers = []
    for cell in cells:
        with contextlib.suppress(ValueError):
            numbers.append(float(cell.split("±")[0].split("(")[0]))
    return bool(numbers) and all(0 <= number <= 100 for number in numbers)


def run_folders(valid: Valid) -> Iterator[Case]:
    folder = valid.folder / "changed-run"
    outputs = valid.folder / "outputs"
    pages = [f"--results_dir={outputs}", f"--output_dir={outputs / 'page'}"]
    verbs = {
        "report": [*pages, "--nodiagnose", str(folder)],
        "export": [f"--run_dir={folder}", f"--output={outputs / 'export'}"],
        "evaluate": [f"--run_dir={folder}"],
        "train": [*FLAGS, f"--run_dir={folder}"],
    }
    accepts = {"report": possible_table, "export": None, "evaluate": None, "train": None}
    original = json.loads((valid.run / "data.json").read_text())
    last = json.loads((valid.run / "results.json").read_text())["last"]

    def exported(answer: str) -> bool:
        found = json.loads(answer)
        return all(found[name] == original[name] for name in ("class_names", "counts"))

    def evaluated(answer: str) -> bool:
        return json.loads(answer)["per_class_error"] == last["per_class_error"]

    accepts |= {"export": exported, "evaluate": evaluated, "train": lambda answer: True}
    for seed, (file, most) in enumerate(
        {"config": 60, "data": 60, "results": 80, "diagnosis": 50}.items()
    ):
        tree = json.loads((valid.run / f"{file}.json").read_text())
        for number, (name, contents) in enumerate(changed_trees(tree, most=most, seed=seed)):
            verb = "report" if file == "diagnosis" else list(verbs)[number % 4]
            write = _folder(valid.run, folder, f"{file}.json", contents, outputs)
            yield Case(f"{verb} {file} {name}", write, verb, verbs[verb], accepts[verb])
    history = (valid.run / "history.csv").read_text()
    for number, text in enumerate(
        (
            *("", "\x00", "a\n", "epoch\n", "epoch\nx\n", "epoch,loss\n0,1,2,3\n", "loss\n1\n"),
            *(history.replace("0,", f"{cell},", 1) for cell in BAD_CELLS if "," not in cell),
            history + "9" * 10**5, history[:-20], history.replace("epoch", "epoch,epoch"),
            b"\xff\xfe",
        )
    ):  # fmt: skip
        contents = text if isinstance(text, bytes) else text.encode()
        write = _folder(valid.run, folder, "history.csv", contents, outputs)
        yield Case(f"history {number}", write, "report", verbs["report"], possible_table)
    model = (valid.run / "model.keras").read_bytes()
    for number, contents in enumerate((*BAD_BYTES[:4], model[:100], model[:-100], model[1:])):
        write = _folder(valid.run, folder, "model.keras", contents, outputs)
        for verb in ("evaluate", "export"):  # The first byte is of a part that nobody reads.
            yield Case(f"{verb} model {number}", write, verb, verbs[verb], accepts[verb])


def images(valid: Valid) -> Iterator[Case]:
    """A folder of images with one that is not one, or that is not where it should be."""
    root, draw = valid.folder / "own", random.Random(3)
    arguments = ["--dataset=folder", f"--data_dir={root}", "--json"]
    picture = valid.picture
    contents = [
        b"",
        b"\x00" * 100,
        picture[:20],
        picture[: len(picture) // 2],
        b"GIF89a",
        b"BM",
        b"RIFF",
    ]
    contents += [
        b"\x89PNG\r\n\x1a\n",
        b"<html>",
        picture[2:],
        b"\xff\xd8\xff",
        b"RIFF\x00\x00\x00\x00WEBP",
    ]

    def intact(answer: str) -> bool:  # Some changes of bytes leave an image.
        return sum(json.loads(answer)["counts"]) >= 10

    for number, some in enumerate(contents):
        write = _images(valid.images, root, "class_1/0001.jpg", some)
        yield Case(f"image {number}", write, "advise", arguments)
    for number in range(40):
        some = bytearray(picture)
        for _ in range(draw.choice((1, 5, 50))):
            some[draw.randrange(len(some))] = draw.randrange(256)
        write = _images(valid.images, root, "class_1/0001.jpg", bytes(some))
        yield Case(f"noise {number}", write, "advise", arguments, intact)
    for number, change in enumerate(
        (
            lambda root: shutil.rmtree(root),
            lambda root: (shutil.rmtree(root), root.write_bytes(b"")),
            lambda root: [shutil.rmtree(path) for path in sorted(root.iterdir())[1:]],
            lambda root: (root / "class_3").mkdir(),
            lambda root: (root / "class_0" / "more").mkdir(),
            lambda root: (root / "class_0" / "notes.txt").write_text("x"),
            lambda root: (root / "class_0" / "a.jpg").symlink_to("nowhere.jpg"),
            lambda root: (root / "class_0" / "a.jpg").symlink_to("a.jpg"),
            lambda root: Path(os.fsdecode(os.fsencode(root) + b"/\xff")).mkdir(),
            lambda root: os.mkfifo(root / "class_0" / "a.jpg"),
            lambda root: (root / "train").mkdir(),
            lambda root: (root / "class_1").rename(root / "class_0" / "class_1"),
        )
    ):
        yield Case(f"folder {number}", _tree(valid.images, root, change), "advise", arguments)


WORDS = "text,label\nfine words,praise\nother words,complaint\nmore,praise\nlast,complaint\n"
CELLS = "n,c,label\n1,a,x\n2,b,y\n3,a,x\n4,b,y\n5,a,x\n6,b,y\n"


def rows_files(valid: Valid) -> Iterator[Case]:
    """Texts and tables of a user's own; `advise` reads them as `train` does."""
    folder = valid.folder / "rows"

    def case(
        kind: str, name: str, contents: str | bytes, *flags: str, ending: str = "csv", counts=None
    ):
        path = folder / f"a.{ending}"
        same = None if counts is None else lambda a: sorted(json.loads(a)["counts"]) == counts
        arguments = [f"--dataset={kind}", f"--data_dir={path}", "--json", *flags]
        return Case(f"{kind} {ending} {name}", _bytes(path, contents), "advise", arguments, same)

    for kind, valid_text, counts in (("text", WORDS, [2, 2]), ("table", CELLS, [3, 3])):
        tabs, semicolons = valid_text.replace(",", "\t"), valid_text.replace(",", ";")
        for name, contents in {
            "plain": valid_text,
            "BOM": "\ufeff" + valid_text,
            "CRLF": valid_text.replace("\n", "\r\n"),
            "UTF-16": valid_text.encode("utf-16"),
            "semicolons": semicolons,
            "empty lines": valid_text + "\n\n",
        }.items():
            yield case(kind, name, contents, counts=_kept(counts))
        yield case(kind, "plain", tabs, ending="tsv", counts=_kept(counts))
        first, *rest = valid_text.splitlines(keepends=True)
        for name, contents in {
            "empty": "",
            "a heading": first,
            "NUL": valid_text + "\0,praise\n",
            "NULs": bytes(99),
            "UTF-16 without a mark": valid_text.encode("utf-16-le"),
            "big-endian": valid_text.encode("utf-16-be"),
            "cut UTF-16": valid_text.encode("utf-16")[:-1],
            "mixed": valid_text.encode() + b"caf\xe9,x\n",
            "open quote": valid_text + '"never,praise\n',
            "stray quote": valid_text + '"a" b,praise\n',
            "a long line": valid_text + "a" * 2**21 + ",praise\n",
            "no label": valid_text.replace("label", "queue"),
            "ragged": valid_text + "1,2,3,4,5\n",
            "short": valid_text + "1\n",
            "a name twice": "label," + valid_text,
            "no name": first.replace("label", "") + "".join(rest),
            "JSON": '{"a": 1}',
            "PNG": b"\x89PNG\r\n" * 9,
        }.items():
            yield case(kind, name, contents)
        for name in ("no such column", "text" if kind == "table" else "words"):
            yield case(kind, f"label_column={name}", valid_text, f"--label_column={name}")
        lines = "".join(f'{{"text": "w{i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(6))
        for name, contents in {
            "cut": lines[:-9],
            "a list": lines + "[1]\n",
            "a number": lines + "3\n",
            "nested": "[" * 10**5,
            "a key twice": lines + '{"text": "a", "text": "b", "label": "a"}\n',
            "an object for a label": lines + '{"text": "a", "label": {"a": 1}}\n',
            "a list for a text": lines + '{"text": ["a"], "label": "a"}\n',
            "half a pair": lines + '{"text": "\\ud800", "label": "a"}\n',
            "empty": "",
            "NUL": lines + "\0\n",
        }.items():
            yield case(kind, name, contents, ending="jsonl")
        for contents in (b"", b"PAR1", b"PAR1" + bytes(99) + b"PAR1", WORDS.encode()):
            yield case(kind, f"bytes {contents[:8]}", contents, ending="parquet")
    ids = "text,label\n" + "".join(f"words,{i}\n" for i in range(200))
    yield case("text", "an identifier for labels", ids)
    yield case("text", "one class", "text,label\na,b\nc,b\n")
    yield case("table", "one class", "n,label\n1,b\n2,b\n")
    for cell in ("inf", "-inf", "1e400", "Infinity", "many", "2026-02-30"):
        yield case("table", cell, CELLS + f"{cell},a,x\n")
    yield case("table", "nothing in a column", "n,c,label\n" + ",a,x\n,b,y\n" * 3)


def _kept(counts: list[int]) -> list[int]:
    """What training keeps of so many rows, a fifth of each class being held out."""
    return [n - max(1, round(n / 5)) for n in counts]


def lines(valid: Valid) -> Iterator[Case]:
    """Paths of images, and images, for `predict`; each line has an answer or an error."""
    folder, draw = valid.folder / "asked", random.Random(4)
    folder.mkdir(exist_ok=True)
    good = folder / "good.png"
    made_png(good)
    given = [b"", b"nowhere.png", b"\x00", b"\xff", b"/", b"..", b"x" * 5000, str(folder).encode()]
    whole = good.read_bytes()
    for number in range(60):
        some = bytearray(whole)
        for _ in range(draw.choice((1, 3, 30))):
            some[draw.randrange(len(some))] = draw.randrange(256)
        (folder / f"{number}.png").write_bytes(bytes(some[: draw.choice((len(some), 30))]))
        given.append(str(folder / f"{number}.png").encode())
    names = [str(digit) for digit in range(10)]
    for number, line in enumerate(given):

        def accepts(answer: str) -> bool:
            first, second = map(json.loads, answer.splitlines())
            right = ("error" in first) != (first.get("label") in names)
            return right and second.get("label") in names  # The next line is answered all the same.

        asked = [line, str(good).encode()]
        yield Case(f"line {number}", None, "predict", [f"--model={valid.digits}"], accepts, asked)


def made_png(path: Path) -> None:
    import numpy as np
    from PIL import Image

    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)


def flags(valid: Valid) -> Iterator[Case]:
    """Values of flags; `train` itself is not run."""
    import dataclasses

    from keras_ldam.experiments.config import Config

    values = ("nan", "inf", "-1", "1e400", "", "x", "1.5.2", "None", "[]", "é", "1,x", "0x10")
    for field, value in itertools.product(dataclasses.fields(Config), values):

        def accepts(answer: str, name: str = field.name) -> bool:
            number = json.loads(answer)["config"][name]
            return not isinstance(number, float) or math.isfinite(number)

        yield Case(f"--{field.name}={value}", None, "train", [f"--{field.name}={value}"], accepts)
    for verb in ("train", "evaluate", "export", "predict", "serve", "report", "advise", "samples"):
        for arguments in (["--nothing"], ["--run_dir"], ["--seed=x", "a"], ["--model=\x00"]):
            yield Case(f"{verb} {arguments}", None, verb, arguments, lambda answer: False)


def _bytes(path: Path, contents: str | bytes):
    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())

    return write


def _folder(source: Path, folder: Path, file: str, contents: bytes, outputs: Path):
    def write() -> None:
        for old in (folder, outputs):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(source, folder)
        (folder / file).write_bytes(contents)

    return write


def _images(source: Path, folder: Path, file: str, contents: bytes):
    return _tree(source, folder, lambda root: (root / file).write_bytes(contents))


def _tree(source: Path, folder: Path, change):
    def write() -> None:
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.unlink(missing_ok=True)
        shutil.copytree(source, folder)
        change(folder)

    return write


KINDS = (counts_files, results_files, run_folders, images, rows_files, lines, flags)


def problems(valid: Any, *, every: int = 1, kinds: tuple = KINDS) -> Iterator[str]:
    """Yields a sentence for each wrong reaction, and at last how many inputs there were."""
    with _quick():
        number = 0
        for kind in kinds:
            for case in itertools.islice(kind(valid), 0, None, every):
                if case.write is not None:
                    case.write()
                reaction = ask(case.verb, case.arguments, case.lines)
                number += 1
                found = _wrong(case, *reaction)
                if found:
                    yield f"{kind.__name__}: {case.name}: {found}"
    yield f"{number} inputs"


def _wrong(case: Case, code: int, answer: str, said: str) -> str:
    said = said.strip()
    if "Traceback" in said or code not in (0, 2):
        return f"code {code}, {said[-600:]}"
    if code == 0:
        if case.accepts is None:
            return f"not refused: {answer[:200]}"
        try:
            right = case.accepts(answer)
        except Exception as error:
            return f"answer cannot be read ({error!r}): {answer[:200]}"
        return "" if right else f"wrong answer: {answer[:300]}"
    last = said.splitlines()[-1] if said else ""
    if not last.startswith(f"{case.verb}: ") or len(last) > 700:
        return f"no sentence: {said[-300:]}"
    return "" if not answer else f"refused, and answered: {answer[:200]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="every so manyth input of each kind")
    parser.add_argument("--kinds", nargs="*", help=", ".join(kind.__name__ for kind in KINDS))
    arguments = parser.parse_args()
    kinds = tuple(k for k in KINDS if not arguments.kinds or k.__name__ in arguments.kinds)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # Whatever is written by default lands here.
        for sentence in problems(Valid(Path(folder).resolve()), every=arguments.every, kinds=kinds):
            print(sentence, flush=True)
            wrong += not sentence.endswith(" inputs")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
