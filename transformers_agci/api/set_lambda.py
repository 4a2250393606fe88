"""Lambda in a checkpoint's config.json, written in Python; loads no torch."""

from dataclasses import dataclass
from pathlib import Path

from transformers_agci.api.arguments import checked
from transformers_agci.api.rows import DisplayedLines
from transformers_agci.conversion.set_lambda import copy_with_lambda
from transformers_agci.conversion.set_lambda import set_lambda as change_lambda
from transformers_agci.method.lam import validate_lambda


@dataclass(frozen=True, eq=False, repr=False)
class LambdaChange(DisplayedLines):
    """What became of a checkpoint's lambda: the `folder` that has it now, None where the key is absent.

    `lines` say the change, and where the file as it was lies.
    """

    folder: Path
    lam: float | None
    lines: tuple[str, ...]


@checked
def set_lambda(checkpoint: str | Path, lam: float | None, *, output: str | Path | None = None) -> LambdaChange:
    """Write lambda into the config.json of a checkpoint's folder; None removes the key.

    The file is replaced as a whole, and what it was stays beside it as config.json.bak. With `output` the checkpoint
    stays as it is and this folder is made of it, with hard links to its weights. A model that is loaded already keeps
    its lambda: that is `handle.lam`.

    >>> import shutil, tempfile
    >>> from transformers_agci import set_lambda
    >>> from transformers_agci.embedded import embedded_model_path
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = shutil.copy(embedded_model_path() / "config.json", folder.name)
    >>> set_lambda(folder.name, 0.5).text.splitlines()[0].rpartition("config.json: ")[2]
    'global_context_broadcast_lambda: absent -> 0.5'
    """
    wanted = None if lam is None else validate_lambda(lam, "`lam`")
    return run_set_lambda(Path(checkpoint), wanted, None if output is None else Path(output))


def run_set_lambda(checkpoint: Path, lam: float | None, output: Path | None) -> LambdaChange:
    """The same as the command does it."""
    if output is None:
        return LambdaChange(checkpoint, lam, tuple(change_lambda(checkpoint, lam)))
    return LambdaChange(output, lam, tuple(copy_with_lambda(checkpoint, output, lam)))
