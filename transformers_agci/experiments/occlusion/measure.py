"""Occlusion from what a user asks for to the files and the lines that the user reads."""

from dataclasses import dataclass
from pathlib import Path

from transformers_agci.errors import counted
from transformers_agci.experiments.defaults import OCCLUSION_TOKENS
from transformers_agci.experiments.occlusion.occlude import MaskOptions, OcclusionRun
from transformers_agci.experiments.positives import Positives, RowsOptions, draw_items, probe_positives
from transformers_agci.families import Lacks
from transformers_agci.inference.load import LoadedModel, LoadOptions, loaded_model
from transformers_agci.inference.progress import Say
from transformers_agci.inference.runner import RunOptions
from transformers_agci.method.lam import lambda_text


@dataclass(frozen=True)
class OcclusionOptions:
    """The model, the masks, lambda while answering, masked copies per forward call, the longest answer in tokens."""

    model: LoadOptions | LoadedModel
    masks: MaskOptions
    lam: float = 0.0
    batch_size: int | None = None
    max_new_tokens: int = OCCLUSION_TOKENS


def occlude_rows(options: OcclusionOptions, rows: RowsOptions, output_dir: Path, run: RunOptions, say: Say) -> int:
    """Mask the images of drawn items and write a folder for each; 1 where images failed."""
    data = probe_positives(rows, output_dir)
    drawn = draw_items(data.items, rows.items, rows.seed)
    loaded, masks = loaded_model(options.model), options.masks
    say(
        f"{_drawn(rows, data)}: {counted(len(drawn), 'image')}; {loaded.family.name}, "
        f"lambda {lambda_text(options.lam)}, masks of {masks.size} px every {masks.stride} px"
    )
    layout = loaded.family.layout
    if isinstance(layout, Lacks):
        say(f"Maps are by pixels; for {loaded.family.name} they cannot be laid over image tokens: {layout.reason}.")
    if data.negatives:
        say(f"{counted(data.negatives, 'row')} whose answer is No are omitted.")
    measured = OcclusionRun(
        loaded, drawn, data.img_path, masks, options.lam, options.batch_size, options.max_new_tokens
    )
    summary = measured.write(output_dir, data, rows.notes(data.img_path), run)
    for line in summary.lines():
        say(line)
    return summary.exit_code


def _drawn(rows: RowsOptions, data: Positives) -> str:
    there = len(data.items)
    if rows.items < there:
        return f"{rows.items} of {there} items, drawn with seed {rows.seed}"
    return f"all {counted(there, 'item')}" + (" (fewer than `items` asks for)" if rows.items > there else "")
