"""The versions of transformers that the tests run with; pip keeps to them, an installation without dependencies not."""

import functools
import logging
import sys

LOWEST, BEYOND = (4, 57, 1), (5, 25)  # as in pyproject.toml

_log = logging.getLogger("transformers_agci")


@functools.cache
def warn_of_untested_transformers() -> None:
    """Warn, once in a process, where transformers is older or newer than what AGCI was tested with."""
    version = getattr(sys.modules.get("transformers"), "__version__", "")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not numbers or LOWEST <= numbers < BEYOND:
        return
    _log.warning(
        "AGCI is tested with transformers %s to %d.%d, but this is %s: check the model with `agci self-check "
        "CHECKPOINT` before you trust its answers, or install one of those (pip install 'transformers<%d.%d').",
        ".".join(map(str, LOWEST)),
        BEYOND[0],
        BEYOND[1] - 1,
        version,
        *BEYOND,
    )
