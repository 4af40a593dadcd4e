"""Brings Keras' docstrings into the form that the reference is made from."""

import re

import griffe


class KerasDocstrings(griffe.Extension):
    """Examples as code, arguments of calls as a list, references as text."""

    def on_object(self, *, obj, **kwargs):
        """Changes the docstring of an object in place."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)


def readable(text):
    """Returns a docstring whose sections Markdown can show."""
    text = re.sub(r"^Example:\n", "**Example:**\n", text, flags=re.M)
    text = re.sub(r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", text, flags=re.M | re.S)
    text = re.sub(r"^Call arguments:\n((?:    .*\n?)+)", _arguments, text, flags=re.M)
    return re.sub(r"^References:\n+((?:    |- )(?:.*\n?)+)", _references, text, flags=re.M)


def _arguments(section):
    lines = []
    for line in section[1].splitlines():
        starts = re.match(r"    (\w+): (.*)", line)
        lines.append(f"- **`{starts[1]}`** – {starts[2]}" if starts else f"  {line.strip()}")
    return "**Call arguments:**\n\n" + "\n".join(lines) + "\n"


def _references(section):
    lines = [line.removeprefix("    ") for line in section[1].splitlines()]
    return "**References:**\n\n" + "\n".join(lines) + "\n"
