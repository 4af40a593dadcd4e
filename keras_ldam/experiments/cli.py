"""The programs: flags in, files out, the answer on standard output.

    keras-ldam train --dataset imdb --method ldam_drw
    keras-ldam evaluate --run_dir runs/imdb-longtail-10-ldam_drw-0

Each verb is also a file in `bin/`. Logs and progress go to standard error, so that programs can be
piped. Wrong input and missing packages end with one sentence and exit code 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from keras_ldam.experiments import config as configuration
from keras_ldam.experiments import models, recipes
from keras_ldam.experiments.config import Config

# A deferred rule starts at the second epoch, so that a smoke run reaches it.
_SMOKE = {"epochs": 2, "steps_per_epoch": 5, "evaluate_every": 2, "start_epoch": 1}
_SMOKE |= {"units": 8, "embedding_dim": 8, "max_tokens": 32}


_DATA = ("data_dir", "imbalance", "imbalance_ratio")
_DATA += ("text_column", "label_column", "category_columns", "ignore_columns", "skip_corrupt")
"""Fields that decide what the classes and their counts are."""


class Verb(NamedTuple):
    """A program: its function, its flags, a summary and examples."""

    run: Callable[[flags.FlagValues], object]
    define: Callable[[flags.FlagValues], None]
    summary: str
    examples: tuple[str, ...]


def main(verb: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Runs a program.

    Args:
        verb: Which one. Defaults to the first argument.
        argv: Arguments after the program's name. Defaults to those of the process.

    Returns:
        The exit code: 0; 2 for wrong input, a missing package, or a file that cannot be read or
        written; 1 if another machine of the run is lost.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if verb is None:
        if not arguments or arguments[0] not in VERBS:
            wanted = bool(arguments) and arguments[0] in ("help", "--help", "-h")
            print(_overview(), file=sys.stdout if wanted else sys.stderr)
            return 0 if wanted else 2
        verb = arguments.pop(0)
    values = flags.FlagValues()
    VERBS[verb].define(values)
    try:
        if any(argument in ("--help", "-h", "--helpfull") for argument in arguments):
            print(_help(verb), flush=True)
            return 0
        rest = values([verb, *arguments])[1:]
        if rest and "inputs" not in values:
            raise ValueError(f"does not take the argument {rest[0]!r}; see --help.")
        if "inputs" in values:
            values.inputs = rest
        output = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            answer = VERBS[verb].run(values)
            # Some programs answer as they go.
            for part in answer if isinstance(answer, Iterator) else [answer]:
                if part is not None:
                    text = part if isinstance(part, str) else json.dumps(part)
                    print(text, file=output, flush=True)
    except (ValueError, ImportError, flags.Error) as error:
        if os.environ.get("KERAS_LDAM_TRACEBACK"):
            raise
        print(f"{verb}: {_one_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        resumes = "; the same command resumes" if verb == "train" else ""
        print(f"{verb}: interrupted{resumes}.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the answers has stopped; what is still buffered must not be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ConnectionError as error:  # Another machine of the run is lost.
        print(f"{verb}: {_one_sentence(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        if os.environ.get("KERAS_LDAM_TRACEBACK"):
            raise
        place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        print(f"{verb}: {place}{error.strerror or _one_sentence(error)}.", file=sys.stderr)
        return 2
    return 0


def _one_sentence(error):
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"unknown flag --{error.flagname}; --help lists the flags."
    text = " ".join(str(error).split())
    return re.sub(r"\(.Non-boolean argument to boolean flag., .*\)$", "must be true or false", text)


# ----------------------------------------------------------------------------- flags and help


def _define_train(values):
    _define_fields(values, [field.name for field in dataclasses.fields(Config)])
    flags.DEFINE_string(
        "run_dir",
        "",
        "run folder; empty: runs/DATASET-IMBALANCE-RATIO-METHOD-SEED, or runs/DATASET-METHOD-SEED "
        "with --imbalance none",
        flag_values=values,
    )
    flags.DEFINE_boolean("progress", True, "show the progress of each epoch", flag_values=values)
    flags.DEFINE_boolean(
        "tensorboard",
        False,
        "log each epoch for TensorBoard, in RUN_DIR/tensorboard; crt and lws: in the folder of "
        "their first stage",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "smoke", False, "a run of seconds: two epochs of few batches", flag_values=values
    )


def _define_fields(values, names):
    """Defines the flags of some fields of the config."""
    define = {tuple: flags.DEFINE_list, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    define |= {bool: flags.DEFINE_boolean, str: flags.DEFINE_string}
    for field in dataclasses.fields(Config):
        if field.name in names:
            make = define[configuration.field_type(field)]
            make(field.name, None, field.metadata["help"], flag_values=values)


def _define_run_dir(values):
    flags.DEFINE_string("run_dir", None, "run folder of bin/train", flag_values=values)


def _define_export(values):
    _define_run_dir(values)
    flags.DEFINE_string(
        "output",
        None,
        "output folder: DIR/NAME for the next version of that name, or DIR/NAME/VERSION",
        flag_values=values,
    )
    flags.DEFINE_list(
        "target_prior",
        None,
        "frequencies of the classes where the model is used: a number for each, in the order of "
        "class_names in the run's data.json, separated by commas; default: the model answers as "
        "trained",
        flag_values=values,
    )
    flags.DEFINE_list(
        "source_prior",
        None,
        "frequencies of the classes that the model has learned; default: those of the training "
        "examples after the run's re-weighting or re-sampling",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "resize", False, "for images: accept files of any size, and resize them", flag_values=values
    )
    flags.DEFINE_boolean(
        "calibrate",
        False,
        "fit the temperature of the probabilities on the examples that the run's "
        "--validation_fraction held out, for the class frequencies of the target prior, or without "
        "it for those that the model has learned",
        flag_values=values,
    )


def _define_predict(values):
    flags.DEFINE_string(
        "model", None, "folder of bin/export, of a name or a version", flag_values=values
    )
    flags.DEFINE_integer("batch_size", 64, "inputs in a batch", flag_values=values)
    flags.DEFINE_boolean(
        "probabilities", True, "print every class's probability", flag_values=values
    )
    flags.DEFINE_list("inputs", [], "", flag_values=values)
    values.set_gnu_getopt(True)


def _define_serve(values):
    flags.DEFINE_string(
        "model", None, "folder of bin/export, of a name or a version", flag_values=values
    )
    flags.DEFINE_string(
        "name", None, "model name in the URL; default: that of the folder", flag_values=values
    )
    flags.DEFINE_string(
        "host",
        "127.0.0.1",
        "address to listen at; 0.0.0.0 lets other machines in, without any authentication",
        flag_values=values,
    )
    flags.DEFINE_integer("port", 8501, "HTTP port; 0: any free one", flag_values=values)


def _define_report(values):
    flags.DEFINE_string(
        "results_dir",
        "results",
        "folder of DATASET.json, to which runs are added",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output_dir", "", "folder of page and figures; empty: reports/DATASET", flag_values=values
    )
    flags.DEFINE_list(
        "figures",
        None,
        "draw only these figures, as PNG and without the page; default: page and all figures",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "only_ours",
        False,
        "omit from the printed table methods and columns without a run, and other people's runs",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "diagnose",
        True,
        "evaluate one seed of each method, unless it is evaluated already, for the figures of "
        "margins, confusions and reliability",
        flag_values=values,
    )
    flags.DEFINE_list("inputs", [], "", flag_values=values)
    values.set_gnu_getopt(True)


def _define_advise(values):
    flags.DEFINE_string(
        "counts",
        None,
        "file with a line for each class, COUNT or NAME,COUNT; or JSON: a list of counts, an "
        "object of names and counts, or a run's data.json",
        flag_values=values,
    )
    _define_fields(values, ("dataset", *_DATA, "epochs"))
    flags.DEFINE_boolean("json", False, "print JSON instead of text", flag_values=values)


def config_from(values: flags.FlagValues) -> Config:
    """Returns the resolved config: flags override the recipe, which overrides defaults."""
    recipe = recipes.load_recipe(
        values.dataset or Config.dataset, values.method or Config.method, values.recipe or ""
    )
    if values.smoke:
        recipe = dataclasses.replace(recipe, **_SMOKE, warmup_epochs=0)
    names = [field.name for field in dataclasses.fields(Config)]
    given = _given(values, names)
    config = dataclasses.replace(recipe, **given).resolve()
    if config.imbalance == "none" and "imbalance_ratio" in given and "imbalance" not in given:
        raise ValueError(
            "--imbalance_ratio needs --imbalance longtail or step for this dataset, whose examples "
            "are used as they are."
        )
    if config.network:
        models.named(config.network)  # An unknown one is refused before the data are read.
    return config


def _given(values, names):
    """The flags of some names that the user has typed."""
    typed = {name: values[name].value for name in names if values[name].value is not None}
    return {
        name: _numbers(name, value) if isinstance(value, list) else value
        for name, value in typed.items()
    }


def _numbers(name, texts):
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        received = ",".join(texts)
        raise ValueError(
            f"--{name} must be numbers separated by commas. Received: {received}"
        ) from None


def _overview():
    lines = ["usage: keras-ldam VERB [--flags]   (or bin/VERB; --help after a verb)", ""]
    lines += [f"  {name:10}{verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(lines)


def _help(name):
    verb = VERBS[name]
    values = flags.FlagValues()
    verb.define(values)
    fields = {field.name: field for field in dataclasses.fields(Config)}
    lines = [verb.summary[0].upper() + verb.summary[1:] + ".", "", "Examples:"]
    lines += [f"  {example}" for example in verb.examples]
    lines += ["", "Flags:"]
    for flag in sorted(values, key=lambda flag: list(fields).index(flag) if flag in fields else -1):
        if flag == "inputs":
            continue
        lines.append(f"  --{flag}  {values[flag].help}")
        if flag not in fields or name != "train":
            if values[flag].default not in (None, "", []):
                lines.append(f"      default: {values[flag].default!r}")
        else:
            meta = fields[flag].metadata
            if meta["choices"]:
                lines.append(f"      one of: {', '.join(c for c in meta['choices'] if c)}")
            default = fields[flag].default
            lines.append(f"      default: {default!r}, unless the dataset's recipe sets it")
    return "\n".join(lines)


# ----------------------------------------------------------------------------- the verbs


def _train(values):
    from keras_ldam.experiments import training

    config = config_from(values)
    run_dir = values.run_dir or f"runs/{config.run_name}"
    results = training.train(
        config, run_dir, progress=values.progress, tensorboard=values.tensorboard
    )
    return {
        "run_dir": str(run_dir),
        **{key: results[key] for key in ("dataset", "method", "seed", "split", "last", "best")},
        "seconds": results["seconds"],
    }


def _evaluate(values):
    from keras_ldam.experiments import training

    return training.evaluate(_run_dir(values))


def _export(values):
    run_dir = _run_dir(values)
    if not values.output:
        raise ValueError("--output is needed: DIR/NAME or DIR/NAME/VERSION.")
    priors = _given(values, ("target_prior", "source_prior"))
    from keras_ldam.experiments import exporting

    return exporting.export(
        run_dir, values.output, resize=values.resize, calibrate=values.calibrate, **priors
    )


def _predict(values):
    if not values.model:
        raise ValueError("--model is needed: the folder of bin/export.")
    from keras_ldam.serving import predictor

    if values.inputs:
        lines = (os.fsencode(text) for text in values.inputs)
    else:
        lines = predictor.lines_of(sys.stdin.buffer)
    return predictor.Predictor(values.model).predict(
        lines, batch_size=values.batch_size, probabilities=values.probabilities
    )


def _serve(values):
    if not values.model:
        raise ValueError("--model is needed: the folder of bin/export.")
    from keras_ldam.serving import server

    return server.serve(values.model, name=values.name, host=values.host, port=values.port)


def _report(values):
    from keras_ldam.experiments import tables

    tables.check_figures(values.figures)
    tables.gather(values.inputs)  # Wrong input is refused before any work.
    for run_dir in tables.to_diagnose(values.inputs) if values.diagnose else ():
        from keras_ldam.experiments import training

        print(f"evaluates {run_dir}", flush=True)
        try:
            training.evaluate(run_dir)
        except (ValueError, ImportError) as error:
            # Its data may be elsewhere; the rest is reported anyway.
            print(f"{run_dir} cannot be evaluated here: {error}", flush=True)
    return tables.write(
        values.inputs,
        results_dir=values.results_dir,
        output_dir=values.output_dir or None,
        figures=values.figures,
        only_ours=values.only_ours,
    )


def _advise(values):
    from keras_ldam import advice

    if (values.counts is None) == (values.dataset is None):
        raise ValueError("give either --counts FILE or --dataset NAME.")
    if values.counts is not None:
        for name in _given(values, _DATA):
            raise ValueError(f"--{name} goes with --dataset; the counts of a file are as they are.")
        counts = advice.read_counts(values.counts)
        epochs = Config.epochs if values.epochs is None else values.epochs
    else:
        from keras_ldam.experiments import datasets

        config = _without_method(values, _DATA)
        data = datasets.load(config)
        counts = dict(zip(data.class_names, data.counts.tolist(), strict=True))
        epochs = config.epochs if values.epochs is None else values.epochs
    found = advice.advise(counts, epochs=epochs)
    return found.to_json() if values.json else str(found)


def _without_method(values, names):
    """The resolved config of a dataset's recipe, and of some flags, where no method matters."""
    recipe = recipes.load_recipe(values.dataset or Config.dataset, Config.method)
    return dataclasses.replace(recipe, **_given(values, names)).resolve()


def _run_dir(values):
    if not values.run_dir:
        raise ValueError("--run_dir is needed: the run folder of bin/train.")
    return Path(values.run_dir)


def _define_samples(values):
    _define_fields(values, ("dataset", "data_dir", "seed"))
    flags.DEFINE_string("output_dir", "samples", "folder for the images", flag_values=values)
    flags.DEFINE_integer("number", 5, "number of images", lower_bound=1, flag_values=values)


def _samples(values):
    from keras_ldam.experiments import datasets

    config = _without_method(values, ("data_dir", "seed"))
    return "\n".join(datasets.write_samples(config, values.output_dir, values.number))


VERBS = {
    "train": Verb(
        _train,
        _define_train,
        "train one method on one dataset; the same command resumes an interrupted run",
        (
            "bin/train",
            "bin/train --dataset imdb --method ldam_drw --seed 1",
            "bin/train --dataset cifar10 --method erm --imbalance step --imbalance_ratio 10",
            "bin/train --dataset text --data_dir tickets.csv --label_column queue",
            "bin/train --dataset table --data_dir churn.csv --label_column churned",
            "bin/train --dataset examples/my_dataset.py",
        ),
    ),
    "samples": Verb(
        _samples,
        _define_samples,
        "write some test images as files, to try a model on, and list them",
        ("bin/samples --dataset digits --output_dir samples --number 3",),
    ),
    "evaluate": Verb(
        _evaluate,
        _define_run_dir,
        "evaluate the model of a finished run, class by class",
        ("bin/evaluate --run_dir runs/digits-longtail-20-ldam_drw-0",),
    ),
    "export": Verb(
        _export,
        _define_export,
        "export the model of a finished run as a SavedModel for servers",
        (
            "bin/export --run_dir runs/digits-longtail-20-ldam_drw-0 --output exports/digits",
            "bin/export --run_dir runs/imdb-longtail-10-erm-0 --output exports/imdb "
            "--target_prior 0.3,0.7",
        ),
    ),
    "predict": Verb(
        _predict,
        _define_predict,
        "answer lines of text, rows as JSON, or image files, with an exported model",
        (
            "bin/predict --model exports/imdb 'A waste of two hours.'",
            "bin/predict --model exports/imdb < reviews.txt > answers.jsonl",
            "bin/predict --model exports/churn < rows.jsonl",
            "ls images/*.png | bin/predict --model exports/digits",
        ),
    ),
    "serve": Verb(
        _serve,
        _define_serve,
        "answer over HTTP with an exported model, by KServe's server",
        (
            "bin/serve --model exports/imdb",
            'curl -d \'{"instances": ["A waste of two hours."]}\' '
            "localhost:8501/v1/models/imdb:predict",
        ),
    ),
    "report": Verb(
        _report,
        _define_report,
        "compare runs: a table beside the paper's, figures, and one page",
        (
            "bin/report runs/digits-*",
            "bin/report results/imdb.json",
            "bin/report results/digits.json --figures margins --output_dir docs/digits",
        ),
    ),
    "advise": Verb(
        _advise,
        _define_advise,
        "suggest margins, weights and hyper-parameters from class counts",
        (
            "bin/advise --dataset digits",
            "bin/advise --counts counts.csv --epochs 90",
        ),
    ),
}
"""The programs by name."""
