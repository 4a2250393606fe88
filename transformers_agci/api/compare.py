"""Methods compared in Python, on the same rows; a strength is chosen on some items and reported on the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.api.arguments import checked, maybe_whole, method_list, needed_data, share, whole_number
from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.models import Model, answering, as_model
from transformers_agci.api.rows import Displayed, tables_html
from transformers_agci.embedded.location import EMBEDDED, embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.experiments.compare.arms import DEFAULT_ARMS, parse_arms
from transformers_agci.experiments.compare.models import Beside, ComparedModels, ModelComparison, compare_models
from transformers_agci.experiments.compare.report import ReportOptions, compared_figure, notes_of
from transformers_agci.experiments.compare.run import Candidate, CompareOptions
from transformers_agci.experiments.defaults import CHOOSE_BY, DEV_SHARE, DRAWS, Choice
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.position.evidence_report import evidence_tables
from transformers_agci.experiments.position.measures import ResamplingConfig
from transformers_agci.inference.progress import Say
from transformers_agci.inference.runner import RunOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class ComparedModel(Displayed, ModelComparison):
    """Every method on one model: `compared.evidence` holds each at its (chosen) strength against stock."""

    @property
    def text(self) -> str:
        """All tables."""
        return "\n\n".join(self.blocks)

    def figure(self) -> "Figure":
        """The forest plot of the items that report."""
        return compared_figure(self.compared)

    def _repr_html_(self) -> str:
        notes = notes_of([result.arm for result in self.results])
        missing = [f"{label}: left out. {why}" for label, why in self.left_out.items()]
        return tables_html(evidence_tables(self.compared.evidence), [*self.compared.evidence.notes, *notes, *missing])


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Displayed, ComparedModels, Sequence[ComparedModel]):
    """The models that were compared, one after another; together they show themselves as one table."""

    models: Sequence[ComparedModel]
    left_out: Mapping[str, str] = field(default_factory=dict)
    log: tuple[str, ...] = ()
    _kept: Any = field(default=None, repr=False)

    def __getitem__(self, place: Any) -> Any:
        return self.models[place]

    def __len__(self) -> int:
        return len(self.models)

    def _repr_html_(self) -> str:
        return tables_html([self.overview], [f"{name}: left out. {why}" for name, why in self.left_out.items()])


@checked
def compare(
    models: Model | Sequence[Model] = EMBEDDED,
    methods: Sequence[str] = DEFAULT_ARMS,
    data: ProbeData | None = None,
    *,
    items: int | None = None,
    item_seed: int = 0,
    choose_by: Choice = CHOOSE_BY,
    dev_share: float = DEV_SHARE,
    margin: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    ruler: int | None = None,
    processes: int = 1,
    benchmark: str | None = None,
    benchmark_data: str | Path | None = None,
    benchmark_images: str | Path | None = None,
    benchmark_prompt: str | None = None,
    batch_size: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> Comparison:
    """AGCI, its controls and rivals on the same rows of one or several models.

    `methods` are words such as stock, agci:0.5, random-1:0.5, bapa, pai:0.2. Of a method at several strengths the one
    that is best on `dev_share` of the items is held against stock on the others, and so are all methods; where each has
    one strength, all items report. `data` is that of `probe_data`; None: `items` items (100) of the embedded atlas.
    `margin`: balanced accuracies that differ by less (0..1) are equal. `ruler` items on the ruler and a `benchmark` are
    asked beside the probe. With a `folder` the same call goes on.

    >>> from transformers_agci import compare
    >>> found = compare(methods=["stock", "bapa"], items=24, progress=False)
    >>> [result.arm.label for result in found[0].compared.chosen], len(found.overview.rows)
    (['stock', 'bapa 1'], 2)
    """
    place, lines = place_of(folder), list[str]()
    several: list[Any] = list(models) if isinstance(models, list | tuple) else [models]
    if not several:
        raise InputError("`models` is an empty list; name at least one model.")
    options = CompareOptions(
        [_candidate(model) for model in several],
        parse_arms(method_list(methods)),
        place.folder,
        items=maybe_whole("items", items),
        seed=whole_number("item_seed", item_seed, least=0),
        batch_size=maybe_whole("batch_size", batch_size),
        run=RunOptions(None, overwrite, False, progress),
        rows=needed_data(data),
    )
    if data is not None and items is not None:
        raise InputError("`items` is for the embedded atlas; give probe_data(..., items=...) with rows of your own.")
    resampling = ResamplingConfig(whole_number("draws", draws), whole_number("seed", seed, least=0))
    report = ReportOptions(choose_by, dev_share, None if margin is None else share("margin", margin), resampling)
    beside = Beside(
        maybe_whole("ruler", ruler, 3),
        whole_number("processes", processes),
        benchmark,
        None if benchmark_data is None else Path(benchmark_data),
        None if benchmark_images is None else Path(benchmark_images),
        benchmark_prompt,
    )
    found = run_compare(options, report, beside, None, quiet(lines))
    return replace(found, log=tuple(lines), _kept=place.kept)


def run_compare(
    options: CompareOptions, report: ReportOptions, beside: Beside, target: Path | None, say: Say
) -> Comparison:
    """A comparison as the command runs it; `say` takes what a user reads while it goes on."""
    found = compare_models(options, report, beside, target, say)
    return Comparison(found.exit_code, [ComparedModel(**vars(model)) for model in found.models], found.left_out)


def _candidate(model: Model) -> Candidate:
    if isinstance(model, str | Path):
        name = str(embedded_model_path()) if str(model) == EMBEDDED else str(model)
        return Candidate(name, lambda: answering(name))
    engine = as_model(model)
    return Candidate(engine.description, lambda: answering(engine))
