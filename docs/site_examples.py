"""What mkdocstrings is told beside mkdocs.yml: examples of docstrings are blocks of Python."""

from __future__ import annotations

import re

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n?(?:^(?!>>> |\s*$).*\n?)*)+", re.MULTILINE)


class FencedExamples(griffe.Extension):
    """Puts lines with prompts, and what they print, into fenced blocks."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The docstring with its examples as blocks.

    >>> fenced(">>> 1 + 1\\n2\\n")
    '```python\\n>>> 1 + 1\\n2\\n```\\n'
    """
    return _EXAMPLE.sub(lambda match: f"```python\n{match[0].rstrip()}\n```\n", text)
