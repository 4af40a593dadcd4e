"""The programs: flags in, files out, the answer on standard output.

    keras-ldam train --dataset imdb --method ldam_drw
    keras-ldam evaluate --run_dir runs/imdb-ldam_drw-0

Each verb is also a file in `bin/`. Logs and progress go to standard error, so that programs can be
piped. Wrong input ends with one sentence and exit code 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from keras_ldam import config as configuration
from keras_ldam.config import Config

_SMOKE = {"epochs": 2, "units": 8, "embedding_dim": 8, "max_tokens": 32}


class Verb(NamedTuple):
    """A program: what it does, the flags it has, and how it is typed."""

    run: Callable[[flags.FlagValues], object]
    define: Callable[[flags.FlagValues], None]
    summary: str
    examples: tuple[str, ...]


def main(verb: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Runs a program.

    Args:
        verb: Which one; None to take it from the first argument.
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0, or 2 for wrong input.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if verb is None:
        if not arguments or arguments[0] not in VERBS:
            wanted = bool(arguments) and arguments[0] in ("help", "--help", "-h")
            print(_overview(), file=sys.stdout if wanted else sys.stderr)
            return 0 if wanted else 2
        verb = arguments.pop(0)
    if any(argument in ("--help", "-h", "--helpfull") for argument in arguments):
        print(_help(verb))
        return 0
    values = flags.FlagValues()
    VERBS[verb].define(values)
    try:
        rest = values([verb, *arguments])[1:]
        if rest and "inputs" not in values:
            raise ValueError(f"does not take the argument {rest[0]!r}; see --help.")
        if "inputs" in values:
            values.inputs = rest
        with contextlib.redirect_stdout(sys.stderr):
            answer = VERBS[verb].run(values)
    except (ValueError, flags.Error) as error:
        if os.environ.get("KERAS_LDAM_TRACEBACK"):
            raise
        print(f"{verb}: {_one_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{verb}: interrupted; the same command resumes.", file=sys.stderr)
        return 130
    if answer is not None:
        print(answer if isinstance(answer, str) else json.dumps(answer))
    return 0


def run_console() -> None:
    """The console command `keras-ldam`."""
    sys.exit(main())


def _one_sentence(error):
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"unknown flag --{error.flagname}; --help lists the flags."
    return " ".join(str(error).split())


# ----------------------------------------------------------------------------- flags and help


def _define_train(values):
    for field in dataclasses.fields(Config):
        _define_field(values, field)
    flags.DEFINE_string(
        "run_dir", "", "run folder; empty: runs/DATASET-METHOD-SEED", flag_values=values
    )
    flags.DEFINE_boolean(
        "smoke", False, "a run of seconds: few epochs, a small network", flag_values=values
    )


def _define_field(values, field):
    kind, help = configuration.field_type(field), field.metadata["help"]
    if kind is tuple:
        flags.DEFINE_list(field.name, None, help, flag_values=values)
    elif kind is int:
        flags.DEFINE_integer(field.name, None, help, flag_values=values)
    elif kind is float:
        flags.DEFINE_float(field.name, None, help, flag_values=values)
    elif kind is bool:
        flags.DEFINE_boolean(field.name, None, help, flag_values=values)
    else:
        flags.DEFINE_string(field.name, None, help, flag_values=values)


def _define_run_dir(values):
    flags.DEFINE_string("run_dir", None, "run folder that bin/train has made", flag_values=values)


def config_from(values: flags.FlagValues) -> Config:
    """Flag over recipe over default; resolved."""
    defaults = Config()
    dataset = values.dataset if values.dataset is not None else defaults.dataset
    method = values.method if values.method is not None else defaults.method
    config = configuration.load_recipe(dataset, method)
    if values.smoke:
        config = dataclasses.replace(config, **_SMOKE, warmup_epochs=0)
    given = {}
    for field in dataclasses.fields(Config):
        value = values[field.name].value
        if value is not None:
            given[field.name] = _numbers(field.name, value) if isinstance(value, list) else value
    return dataclasses.replace(config, **given).resolve()


def _numbers(name, texts):
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between; got {texts!r}.") from None


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
        if flag in fields:
            meta = fields[flag].metadata
            if meta["choices"]:
                lines.append(f"      one of: {', '.join(c for c in meta['choices'] if c)}")
            default = fields[flag].default
            lines.append(f"      default: {default!r}, unless the dataset's recipe sets it")
    return "\n".join(lines)


# ----------------------------------------------------------------------------- the verbs


def _train(values):
    from keras_ldam import training

    config = config_from(values)
    run_dir = values.run_dir or f"runs/{config.dataset}-{config.method}-{config.seed}"
    results = training.train(config, run_dir)
    return {
        "run_dir": str(run_dir),
        **{key: results[key] for key in ("dataset", "method", "seed", "split", "last", "best")},
        "seconds": results["seconds"],
    }


def _evaluate(values):
    from keras_ldam import training

    return training.evaluate(_run_dir(values))


def _run_dir(values):
    if not values.run_dir:
        raise ValueError("--run_dir is needed: the run folder that bin/train has made.")
    return Path(values.run_dir)


VERBS = {
    "train": Verb(
        _train,
        _define_train,
        "train one method on one dataset; resumes a run that was cut off",
        (
            "bin/train",
            "bin/train --dataset imdb --method ldam_drw --seed 1",
            "bin/train --dataset cifar10 --method erm --imbalance step --imbalance_ratio 10",
        ),
    ),
    "evaluate": Verb(
        _evaluate,
        _define_run_dir,
        "evaluate the model of a finished run, class by class",
        ("bin/evaluate --run_dir runs/digits-ldam_drw-0",),
    ),
}
"""The programs by name."""
