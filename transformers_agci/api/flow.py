"""Information flow in Python: what the text after the image, and the answer's position, attend to on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.api.arguments import checked, needed_data, path_of, place_of_lambda, some_lambdas, whole_number
from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.images import encoded
from transformers_agci.api.models import Model, looking_inside
from transformers_agci.api.rows import Displayed, Tabular, tables_html
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import DRAW_SEED, DRAWN_ITEMS, FLOW_LAYERS, FLOW_TOKENS
from transformers_agci.experiments.flow.figure import as_json, headline, image_flow_figure
from transformers_agci.experiments.flow.flow import Flow
from transformers_agci.experiments.flow.maps import SOURCES, FlowMaps, aggregate, flow_figure, maps_table, read_flows
from transformers_agci.experiments.flow.measure import FlowOptions, flow_of_image, flow_of_rows
from transformers_agci.experiments.flow.run import RESULTS
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.positives import RowsOptions
from transformers_agci.inference.progress import Say
from transformers_agci.inference.questions import ImageBytes, ImageFile, ImageSource
from transformers_agci.inference.runner import RunOptions
from transformers_agci.method.lam import lambda_text
from transformers_agci.report.heatmap import image_path, write_figure
from transformers_agci.report.table import Table
from transformers_agci.storage.json_file import write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class FlowStatistics(Displayed):
    """Flow by source (text, answer) and lambda: mean maps and the share on the target. Shows itself as a table."""

    maps: list[FlowMaps]

    def _repr_html_(self) -> str:
        return tables_html([maps_table(self.maps)])

    @property
    def text(self) -> str:
        """The same as text."""
        return maps_table(self.maps).text


@dataclass(frozen=True, eq=False)
class FlowRun(Tabular):
    """Flows that were measured, all lambdas in one result file; the drawn maps lie beside it."""

    exit_code: int
    log: tuple[str, ...]
    folder: Path
    _kept: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A row per image and lambda: the answer, and of each source the share on the image and on the target."""
        found = []
        for flows in read_flows(self.folder / RESULTS):
            given = {name: value for name, value in flows.row.fields.items() if name != "flows"}
            found += [{**given, **_plain(entry)} for entry in flows.row.fields["flows"]]
        return found

    def statistics(self) -> FlowStatistics:
        """Mean maps and shares by the target's place."""
        return FlowStatistics(aggregate(read_flows(self.folder / RESULTS)))

    @checked
    def figure(self, lam: float | None = None, source: str = "text") -> "Figure":
        """Nine mean maps at one lambda (the first if none is named): from the text after the image, or the answer."""
        maps = self.statistics().maps
        lambdas = list(dict.fromkeys(each.lam for each in maps))
        return flow_figure(maps, _known(source), lambdas[place_of_lambda(lambdas, lam)])

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()


@checked
def flow(
    model: Model = EMBEDDED,
    data: ProbeData | None = None,
    lambdas: Sequence[float] | float = (0.0, 0.5),
    *,
    items: int = DRAWN_ITEMS,
    seed: int = DRAW_SEED,
    layers: str = FLOW_LAYERS,
    max_new_tokens: int = FLOW_TOKENS,
    folder: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> FlowRun:
    """The attention to each place of the image, at every lambda, for `items` items drawn from `data` with `seed`.

    >>> from transformers_agci import flow, probe_data
    >>> run = flow(data=probe_data(items=1, limit=2), progress=False)
    >>> run.to_pandas()[["lambda", "answer_on_target"]].shape
    (4, 2)
    """
    place, lines = place_of(folder), list[str]()
    count, draw = whole_number("items", items), whole_number("seed", seed, 0)
    rows, wanted = RowsOptions(None, None, count, draw, needed_data(data)), some_lambdas(lambdas)
    with looking_inside(model, "flow") as loaded:
        options = FlowOptions(loaded, wanted, layers, whole_number("max_new_tokens", max_new_tokens))
        found = run_flow(options, rows, place.folder, RunOptions(None, overwrite, False, progress), quiet(lines))
    return replace(found, log=tuple(lines), _kept=place.kept)


def run_flow(options: FlowOptions, rows: RowsOptions, folder: Path, run: RunOptions, say: Say) -> FlowRun:
    """Flow at every lambda, as the command runs it; `say` takes what a user reads while it goes on."""
    return FlowRun(flow_of_rows(options, rows, folder, run, say), (), folder)


@dataclass(frozen=True, eq=False, repr=False)
class ImageFlow(Displayed, Sequence[Flow]):
    """The flow of one question about one image: a `Flow` per lambda. Shows itself as a table."""

    image: ImageSource
    question: str
    flows: tuple[Flow, ...]
    name: str = ""  # of the image's file

    def __getitem__(self, place: Any) -> Any:
        return self.flows[place]

    def __len__(self) -> int:
        return len(self.flows)

    @property
    def lines(self) -> list[str]:
        """Per lambda the answer and the shares on the image, in words."""
        return [flow.in_words for flow in self.flows]

    @checked
    def figure(self, source: str = "text") -> "Figure":
        """The image, and over it the flow at every lambda: from the text after the image, or from the answer."""
        return image_flow_figure(self.flows, _known(source), self.image.open(), self.question)

    @checked
    def write(self, path: str | Path) -> list[Path]:
        """Both figures, as `path` and with _answer in its name, and all numbers as JSON beside them."""
        target = image_path(path)
        numbers = target.with_suffix(".json")
        files = [target if source == "text" else target.with_stem(f"{target.stem}_{source}") for source in SOURCES]
        for source, file in zip(SOURCES, files, strict=True):
            write_figure(self.figure(source), file)
        write_report(numbers, as_json(self.flows, self.name, self.question), indent=None)
        return [*files, numbers]

    @property
    def text(self) -> str:
        """The same as text."""
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        shares = [[f"{100 * float(flow.of(source).sum()):.1f}" for source in SOURCES] for flow in self.flows]
        rows = [[lambda_text(flow.lam), flow.prediction, *each] for flow, each in zip(self.flows, shares, strict=True)]
        header = ["lambda", "answer", *(f"attention on the image from {words}, %" for words in SOURCES.values())]
        return tables_html([Table(headline(self.question), header, rows)])


@checked
def flow_of(
    image: Any,
    question: str,
    model: Model = EMBEDDED,
    lambdas: Sequence[float] | float = (0.0, 0.5),
    *,
    layers: str = FLOW_LAYERS,
    max_new_tokens: int = FLOW_TOKENS,
) -> ImageFlow:
    """The flow of one question about one image (a file, a PIL image or encoded bytes), at each lambda.

    >>> from PIL import Image
    >>> from transformers_agci import flow_of
    >>> found = flow_of(Image.new("RGB", (112, 112), "red"), "Is it red?", lambdas=[0, 0.5])
    >>> found[0].lam, found[1].lam
    (0.0, 0.5)
    """
    wanted, longest = some_lambdas(lambdas), whole_number("max_new_tokens", max_new_tokens)
    with looking_inside(model, "flow") as loaded:
        return run_flow_of(FlowOptions(loaded, wanted, layers, longest), image, question)


def run_flow_of(options: FlowOptions, image: Any, question: str) -> ImageFlow:
    """The flow of one image, as the command runs it."""
    source: ImageSource
    if isinstance(image, str | Path):
        path = path_of(image)
        source, name = ImageFile(path.parent, path.name, "`image`"), str(path)
    else:
        source, name = ImageBytes(encoded(image, "`image`"), "`image`"), ""
    return ImageFlow(source, question, tuple(flow_of_image(options, source, question)), name)


def _known(source: str) -> str:
    if source not in SOURCES:
        raise InputError(f"`source` must be one of {', '.join(SOURCES)}, but is {source!r}.")
    return source


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry of one lambda with its sources' numbers as columns, without the maps."""
    sources = {name: value for name, value in entry.items() if isinstance(value, dict)}
    numbers = {
        f"{source}_on_{place}": values[name]
        for source, values in sources.items()
        for place, name in (("image", "on_picture"), ("target", "on_target"))
    }
    return {**{name: value for name, value in entry.items() if name not in sources}, **numbers}
