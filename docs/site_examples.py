"""Examples in docstrings as code: an extension of griffe, which reads them for the API reference.

Without it Markdown takes ">>>" for a quotation of a quotation.
"""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.*\S.*)*", re.MULTILINE)  # to the next empty line


class Examples(griffe.Extension):
    """Puts every doctest between fences."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """A function, class or module was read."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
