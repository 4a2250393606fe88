"""Information flow from what a user asks for to the files and the lines that the user reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import FLOW_LAYERS, FLOW_TOKENS
from transformers_agci.experiments.flow.flow import Flow, measure_flow
from transformers_agci.experiments.flow.maps import aggregate, draw_maps, maps_text, read_flows
from transformers_agci.experiments.flow.run import RESULTS, FlowRun
from transformers_agci.experiments.positives import RowsOptions, draw_items, probe_positives
from transformers_agci.inference.load import LoadedModel, LoadOptions, loaded_model
from transformers_agci.inference.process_group import is_main_process
from transformers_agci.inference.progress import Say
from transformers_agci.inference.questions import ImageSource, Question
from transformers_agci.inference.runner import RunOptions
from transformers_agci.method.lam import lambda_text
from transformers_agci.storage.overlap import check_answers


@dataclass(frozen=True)
class FlowOptions:
    """The model, the lambdas (baseline first), the layers ("all", "3" or "8-20") and the longest answer in tokens."""

    model: LoadOptions | LoadedModel
    lambdas: Sequence[float]
    layers: str = FLOW_LAYERS
    max_new_tokens: int = FLOW_TOKENS

    def __post_init__(self) -> None:
        if len(set(self.lambdas)) != len(self.lambdas):
            listed = " ".join(map(lambda_text, self.lambdas))
            raise InputError(f"Each lambda is measured once, but the list is {listed}.")


def flow_of_image(options: FlowOptions, image: ImageSource, question: str) -> list[Flow]:
    """The flow of one question about one image, at every lambda."""
    loaded = loaded_model(options.model)
    asked = Question(row={}, where="`image`", text=question, images=(image,))
    return measure_flow(loaded, asked, options.lambdas, options.layers, options.max_new_tokens)


def flow_of_rows(options: FlowOptions, rows: RowsOptions, output_dir: Path, run: RunOptions, say: Say) -> int:
    """Measure drawn items, write their rows, draw the mean per place of the target; 1 where rows were bad."""
    check_answers([output_dir / RESULTS], eval_file=rows.source)
    data = probe_positives(rows, output_dir)
    drawn = draw_items(data.items, rows.items, rows.seed)
    loaded = loaded_model(options.model)
    say(
        f"{len(drawn)} rows of {min(rows.items, len(data.items))} items; {loaded.family.name}, lambda "
        f"{', '.join(map(lambda_text, options.lambdas))}, layers {options.layers}"
    )
    measured = FlowRun(loaded, drawn, data.img_path, options.lambdas, options.layers, options.max_new_tokens)
    summary = measured.write(output_dir, data, rows.notes(data.img_path), run)
    for line in summary.lines():
        say(line)
    if run.shard is None and is_main_process() and summary.counts.rows + summary.counts.already_done:
        summed = aggregate(read_flows(summary.outputs[0]))
        say(f"\n{maps_text(summed)}\n")
        for file in draw_maps(summed, output_dir, measured.layers_text):
            say(f"map: {file}")
    return summary.exit_code
