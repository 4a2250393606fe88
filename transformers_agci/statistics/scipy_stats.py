"""scipy.stats, loaded when the first of its functions is asked for.

Loading it takes half a second of processor time, a tenth of what a process needs before its first question. Commands
that ask load our statistics because they may print a table at their end; a shard prints none.
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module("scipy.stats"), name)
