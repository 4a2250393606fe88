"""The position probe in Python: run it, and what came out as rows, statistics and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.api.arguments import control_list, lambda_list, maybe_whole, method_list, share, whole_number
from transformers_agci.api.folders import place_of, quiet
from transformers_agci.api.models import Model, answering
from transformers_agci.api.rows import Tabular, tables_html
from transformers_agci.data.rows import read_rows
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.errors import InputError
from transformers_agci.experiments.position import evidence_report
from transformers_agci.experiments.position.ask import ProbeOptions, ask_probe
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.position.evidence import Evidence, gather
from transformers_agci.experiments.position.maps import probe_figure
from transformers_agci.experiments.position.measures import ResamplingConfig, ResultReport
from transformers_agci.experiments.position.metrics import Metrics, controls_table, evaluate, load_all, load_controls
from transformers_agci.experiments.position.questions import Control
from transformers_agci.experiments.position.results import ProbeResult, read_answer, read_letter
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.load import LoadOptions
from transformers_agci.inference.progress import Say
from transformers_agci.inference.runner import RunOptions
from transformers_agci.report.table import ABSENT, NUMBER, PERCENT, Table, p_value
from transformers_agci.statistics.evenness import signed_root
from transformers_agci.storage import manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = ("engine", "method", "lambda", "strength")  # of a manifest, as columns of every row


@dataclass(frozen=True, repr=False)
class ProbeStatistics(Metrics):
    """The numbers of a probe: `results`, `pair` where there are two, `controls`. Shows itself as tables."""

    @property
    def tables(self) -> list[Table]:
        """Accuracy and evenness of each result, accuracy by position, the answers without an image."""
        names = self.results[0].positions
        by_position = [
            [f"{report.label}, {name} rows", *(PERCENT.value(cell.estimate) for cell in side.cells)]
            for report in self.results
            for name, side in (("Yes", report.yes), ("No", report.no))
            if side is not None
        ]
        tables = [_levels(self), Table("accuracy by position, %", ["result", *names], by_position)]
        return tables + ([controls_table(self.controls)] if self.controls else [])

    @property
    def unevenness(self) -> dict[str, float | None]:
        """Per result the sd of its Yes margins over the cells, in sd within a cell: without the part that chance makes,
        so negative where there is less than that. None for a result without margins."""
        return {report.label: _uneven(report) for report in self.results}

    @property
    def verdict(self) -> str:
        """What two results say about evenness; "" where there are not two."""
        return self.pair.verdict if self.pair else ""

    def _repr_html_(self) -> str:
        return tables_html(self.tables, [self.verdict])

    def __str__(self) -> str:
        return "\n\n".join([*(table.text for table in self.tables), *filter(None, [self.verdict])])

    __repr__ = __str__


@dataclass(frozen=True, repr=False)
class ProbeEvidence(Evidence):
    """Each of several results against the first, and all tests. Shows itself as tables."""

    def _repr_html_(self) -> str:
        return tables_html(evidence_report.evidence_tables(self), self.notes)

    def __str__(self) -> str:
        return evidence_report.evidence_text(self)

    __repr__ = __str__


@dataclass(frozen=True)
class ProbeRun(Tabular):
    """A probe that was run: a result file per lambda and method. `a + b` joins runs on the same items.

    exit_code  0, or 1 where rows were skipped
    log        what the command says, line by line
    files      the result files, the baseline first; empty for a shard
    """

    exit_code: int
    log: tuple[str, ...]
    files: tuple[Path, ...]
    control_files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    _kept: Any = field(default=None, repr=False, compare=False)

    @cached_property
    def results(self) -> list[ProbeResult]:
        """The scored result files, as [items, cells]."""
        if not self.files:
            raise InputError(
                "This run has no result file: it is an empty slice, or a shard that agci merge-shards has to join."
            )
        return load_all(self.files)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All result rows: the input row, prediction, scores and margin, with what they were made with and whether the
        answer is right (None: unreadable)."""
        found: list[dict[str, Any]] = []
        for path, result in zip(self.files, self.results, strict=True):
            settings = (manifest.read(path) or {}).get("settings", {})
            made_with = {name: settings[name] for name in SETTINGS if name in settings}
            found += [
                {"result": result.label, **made_with, **row, "correct": _correct(row)} for _, row in read_rows(path)
            ]
        return found

    def statistics(self, draws: int = 2000, seed: int = 0) -> ProbeStatistics:
        """Accuracy, evenness, signal detection; of two results also their paired difference. `draws` permutations."""
        controls = load_controls(*(self.control_files.get(control.value, ()) for control in Control))
        found = evaluate(self.results, controls, _resampling(draws, seed))
        return ProbeStatistics(**vars(found))

    def evidence(self, margin: float | None = None, draws: int = 2000, seed: int = 0) -> ProbeEvidence:
        """Several results against the first; `margin`: balanced accuracies that differ by less (0..1) are equal."""
        equal_within = None if margin is None else share("margin", margin)
        return ProbeEvidence(**vars(gather(self.results, equal_within, _resampling(draws, seed))))

    def figure(self, title: str = "", draws: int = 2000) -> "Figure":
        """The maps: one result, or two with their difference."""
        if len(self.results) > 2:
            raise InputError(
                f"A map shows one or two results, but this run has {len(self.results)}: pick some with [...]."
            )
        found = self.statistics(draws)
        return probe_figure(found.results, found.pair, title)

    def __add__(self, other: "ProbeRun") -> "ProbeRun":
        files = {name: [*self.control_files.get(name, ()), *paths] for name, paths in other.control_files.items()}
        return ProbeRun(
            max(self.exit_code, other.exit_code),
            self.log + other.log,
            self.files + other.files,
            {**self.control_files, **files},
            (self._kept, other._kept),
        )

    def __getitem__(self, place: slice | int) -> "ProbeRun":
        files = self.files[place] if isinstance(place, slice) else (self.files[place],)
        return replace(self, files=files)

    def __len__(self) -> int:
        return len(self.files)

    def _repr_html_(self) -> str:
        return tables_html([_levels(self.statistics())], self.log[-1:] if self.exit_code else ())


def probe(
    model: Model = EMBEDDED,
    data: ProbeData | None = None,
    lambdas: Sequence[float] | float | None = None,
    *,
    method: str | Sequence[str] = "agci",
    method_options: Mapping[str, Any] | None = None,
    scope: str = "image",
    controls: Sequence[str] = (),
    folder: str | Path | None = None,
    batch_size: int | None = None,
    block_rows: int | None = None,
    workers: int | None = None,
    planted_bias: float = 0.0,
    progress: bool = True,
    overwrite: bool = False,
    strict: bool = False,
) -> ProbeRun:
    """Ask a model about every cell of every item, at every lambda and with every method.

    `data` is that of `probe_data` or `composites`; None: 20 items of the embedded atlas. Without `lambdas` it is the
    model's own, else 0. `controls` are text_only and blank_image. With a `folder` the answers stay there
    (answers.jsonl, or answers.lam0.jsonl, ...), and the same call goes on after an interruption or returns what
    is there. `method_options` are the strength and what else a rival has; batches and blocks are as in AnswerOptions.
    InputError for an argument that cannot be meant.

    >>> from transformers_agci import probe, probe_data
    >>> run = probe(data=probe_data(items=2), lambdas=[0, 0.5], progress=False)
    >>> len(run), run.to_pandas().shape[0]
    (2, 72)
    """
    place, methods, wanted, asked = place_of(folder), method_list(method), lambda_list(lambdas), control_list(controls)
    given = AnswerOptions(
        maybe_whole("batch_size", batch_size),
        maybe_whole("block_rows", block_rows),
        maybe_whole("workers", workers, least=0),
        scope=scope,
        run=RunOptions(None, overwrite, strict, progress),
        method_options=method_options or {},
    )
    runs = []
    with answering(model) as engine:
        for name in methods:
            options = ProbeOptions(
                LoadOptions(EMBEDDED),
                answer_file=place.folder / "answers.jsonl",
                lambdas=wanted,
                lambda_source="the caller",
                controls=asked,
                planted_bias=planted_bias,
                answers=replace(given, method=name),
                engine=engine,
                data=data,
                items=None if data else 20,
            )
            lines: list[str] = []
            runs.append(replace(run_probe(options, quiet(lines)), log=tuple(lines), _kept=place.kept))
    return sum(runs[1:], runs[0])


def run_probe(options: ProbeOptions, say: Say) -> ProbeRun:
    """A probe as the command runs it; `say` takes what a user reads while it goes on."""
    probed = ask_probe(options, say)
    controls = {name: paths for name, paths in probed.files.items() if name != "results"}
    return ProbeRun(probed.exit_code, (), tuple(probed.files.get("results", ())), controls)


def read_probe(*files: str | Path) -> ProbeRun:
    """Result files that are there already, the baseline first."""
    return ProbeRun(0, (), tuple(Path(file) for file in files))


def _resampling(draws: int, seed: int) -> ResamplingConfig:
    return ResamplingConfig(whole_number("draws", draws), whole_number("seed", seed, least=0))


def _correct(row: Mapping[str, Any]) -> bool | None:
    said = (read_letter if row.get("options") else read_answer)(str(row["prediction"]))
    return None if said is None else said == row["answer"]


def _uneven(report: ResultReport) -> float | None:
    level = report.yes.margin_unevenness if report.yes else None
    return None if level is None else signed_root(level.estimate)


def _levels(found: Metrics) -> Table:
    rows = []
    for report in found.results:
        yes = report.yes
        level = _uneven(report)
        rows.append(
            [
                report.label,
                str(report.items),
                PERCENT.write(yes.accuracy if yes else None),
                PERCENT.write(report.no.accuracy if report.no else None),
                PERCENT.write(report.balanced),
                ABSENT if level is None else NUMBER.value(level),
                ABSENT if yes is None else p_value((yes.margin_spread or yes.spread).sd.p),
            ]
        )
    header = [
        "result",
        "items",
        "Yes rows %",
        "No rows %",
        "balanced %",
        "sd of margins over cells",
        "position effect, p",
    ]
    return Table("95 % intervals over items", header, rows)
