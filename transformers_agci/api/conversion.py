"""An original LLaVA checkpoint converted in Python into one that transformers loads."""

from dataclasses import dataclass
from pathlib import Path

from transformers_agci.api.arguments import checked, one_of
from transformers_agci.api.rows import Displayed, tables_html
from transformers_agci.conversion.convert import MANIFEST, Converted, convert
from transformers_agci.errors import counted
from transformers_agci.inference.checkpoint_files import ORIGINAL_FILES, model_folder
from transformers_agci.inference.load import Dtype
from transformers_agci.report.table import Table

SHOWN = 12  # lines about what was not used


@dataclass(frozen=True, eq=False, repr=False)
class ConvertedCheckpoint(Displayed, Converted):
    """A converted checkpoint: its `folder`, how much it holds, `unused` tensors with the reason of each.

    `written` is False where an earlier call had made it.
    """

    @property
    def text(self) -> str:
        """What `agci convert-llava` prints."""
        lines = [f"not used: {name} ({reason})" for name, reason in sorted(self.unused.items())[:SHOWN]]
        if len(self.unused) > SHOWN:
            lines.append(f"not used: {len(self.unused) - SHOWN} more, all listed in {MANIFEST}")
        return "\n".join([*lines, self.summary])

    @property
    def summary(self) -> str:
        """What was made, or that it was there."""
        if not self.written:
            return f"{self.folder} holds this conversion already."
        before, after = self.rows
        return (
            f"{self.folder}: {counted(self.tensors, 'tensor')} in {counted(self.files, 'file')}, embeddings grown from "
            f"{before} to {counted(after, 'row')}."
        )

    def _repr_html_(self) -> str:
        unused = [[name, reason] for name, reason in sorted(self.unused.items())]
        return tables_html(
            [Table("tensors that were not used", ["tensor", "why"], unused)] if unused else [], [self.summary]
        )


@checked
def convert_llava(
    checkpoint: str | Path,
    output: str | Path,
    *,
    vision_tower: str | Path | None = None,
    dtype: Dtype = "auto",
    overwrite: bool = False,
) -> ConvertedCheckpoint:
    """Convert an original LLaVA-1.5 or 1.6 checkpoint, a folder or hub id, into the folder `output`.

    `vision_tower` is the CLIP model's folder or hub id, for a checkpoint that does not hold it; `dtype` that of the
    written weights, auto its own. The folder appears when everything is done. `overwrite` replaces what an earlier
    conversion wrote there.

    >>> from transformers_agci import InputError, convert_llava
    >>> from transformers_agci.embedded import embedded_model_path
    >>> try:
    ...     convert_llava(embedded_model_path(), "converted")
    ... except InputError as error:
    ...     print(str(error).partition(" says ")[2].partition(" (")[0])
    model_type 'qwen2_5_vl' and is not in the layout of the original LLaVA repository
    """
    one_of("dtype", dtype, Dtype)
    return run_convert(str(checkpoint), Path(output), vision_tower, dtype, overwrite)


def run_convert(
    checkpoint: str, output: Path, vision_tower: str | Path | None, dtype: str, overwrite: bool
) -> ConvertedCheckpoint:
    """A conversion as the command makes it."""
    source = model_folder(checkpoint, None, ORIGINAL_FILES)
    tower = None if vision_tower is None else model_folder(str(vision_tower), None, ORIGINAL_FILES)
    made = convert(source, output, tower=tower, dtype=dtype, overwrite=overwrite)
    return ConvertedCheckpoint(**vars(made))
