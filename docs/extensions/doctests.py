"""A griffe extension: doctests of docstrings become code blocks, which Markdown would quote."""

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Fence every paragraph that starts with a prompt."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    made: list[str] = []
    inside = False
    for line in text.split("\n"):
        if not inside and line.startswith(">>>"):
            inside = True
            made += ["", "```pycon"]
        if inside and not line.strip():
            inside = False
            made.append("```")
        made.append(line)
    return "\n".join([*made, "```"] if inside else made)
