"""Result files of the position probe in Python: rows, statistics, figures. Reading them loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.api.arguments import checked, path_list, share, whole_number
from transformers_agci.api.rows import Displayed, Tabular, labelled, tables_html
from transformers_agci.data.rows import read_rows
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.defaults import DRAWS
from transformers_agci.experiments.position import evidence_report
from transformers_agci.experiments.position.curve import curve_figure, lambdas_of_files
from transformers_agci.experiments.position.evidence import Evidence, gather
from transformers_agci.experiments.position.maps import Limits, probe_figure
from transformers_agci.experiments.position.measures import ResamplingConfig, ResultReport
from transformers_agci.experiments.position.metrics import (
    Control,
    Metrics,
    controls_table,
    evaluate,
    load_all,
    load_controls,
    metrics_figure,
    metrics_text,
    notes_of_controls,
    write_json,
)
from transformers_agci.experiments.position.results import ProbeResult, read_answer, read_letter
from transformers_agci.report.table import ABSENT, NUMBER, PERCENT, Table, p_value
from transformers_agci.statistics.evenness import MARGIN_UNIT, signed_root
from transformers_agci.storage import manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = ("engine", "method", "lambda", "strength")  # of a manifest, as columns of every row


@dataclass(frozen=True, eq=False, repr=False)
class ProbeStatistics(Displayed, Metrics):
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

    @property
    def text(self) -> str:
        """All tables, as `agci metrics` prints them."""
        return metrics_text(self)

    @checked
    def maps(self, title: str = "", vmin: float | None = None, vmax: float | None = None) -> "Figure":
        """The maps on one scale, of two results also their difference; `vmin` and `vmax` end the scale, in percent."""
        return metrics_figure(self, title, Limits(vmin, vmax))

    @checked
    def write_json(self, path: str | Path) -> None:
        """All numbers to a file."""
        write_json(self, path)

    def _repr_html_(self) -> str:
        return tables_html(self.tables, [*notes_of_controls(self.controls), self.verdict])

    def __str__(self) -> str:
        said = [*notes_of_controls(self.controls), self.verdict]
        return "\n\n".join([*(table.text for table in self.tables), *filter(None, said)])


@dataclass(frozen=True, eq=False, repr=False)
class ProbeEvidence(Displayed, Evidence):
    """Each of several results against the first, and all tests. Shows itself as tables."""

    controls: Sequence[Control] = ()
    files: Sequence[Path] = ()

    @property
    def text(self) -> str:
        """All tables, as `agci evidence` prints them."""
        return evidence_report.evidence_text(self, self.controls)

    @checked
    def figure(self, title: str = "") -> "Figure":
        """The forest plot: a line per result, each measure with its interval, and each result against the first."""
        return evidence_report.evidence_figure(self, title)

    @checked
    def curve(self, title: str = "") -> "Figure":
        """The same measures over lambda. InputError where the results are not of one method at different lambdas."""
        return curve_figure(self, lambdas_of_files(self.files), title)

    @checked
    def maps(self, title: str = "", vmin: float | None = None, vmax: float | None = None) -> "Figure":
        """The maps of all results on one scale; `vmin` and `vmax` end it, in percent."""
        return probe_figure([row.report for row in self.results], None, title, limits=Limits(vmin, vmax))

    @checked
    def write_json(self, path: str | Path) -> None:
        """All numbers to a file."""
        evidence = Evidence(**{each.name: getattr(self, each.name) for each in fields(Evidence)})
        evidence_report.write_json(evidence, self.controls, path)

    def _repr_html_(self) -> str:
        return tables_html(evidence_report.evidence_tables(self), self.notes)


@dataclass(frozen=True, eq=False)
class ProbeRun(Tabular):
    """A probe that was run: a result file per lambda and method. `a + b` joins runs on the same items.

    exit_code  0, or 1 where rows were skipped
    log        what the command says, line by line
    files      the result files, the baseline first; empty for a shard
    negatives  the files of their No rows, where these are files of their own
    labels     names of the results, where they have been given some
    """

    exit_code: int
    log: tuple[str, ...]
    files: tuple[Path, ...]
    control_files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    _kept: Any = field(default=None, repr=False, compare=False)
    negatives: tuple[Path | None, ...] = ()
    labels: tuple[str, ...] = ()

    @cached_property
    def results(self) -> list[ProbeResult]:
        """The scored result files, as [items, cells]."""
        if not self.files:
            raise InputError(
                "This run has no result file: it is an empty slice, or a shard that agci merge-shards has to join."
            )
        return load_all(self.files, self.negatives, self.labels)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """All result rows: the input row, prediction, scores and margin, with what they were made with and whether the
        answer is right. An unreadable one is not, as in every statistic."""
        found: list[dict[str, Any]] = []
        for result, path in self._files_of_results():
            settings = (manifest.read(path) or {}).get("settings", {})
            made_with = {name: settings[name] for name in SETTINGS if name in settings}
            found += [
                labelled({"result": result.label, **made_with}, row) | {"correct": _correct(row)}
                for _, row in read_rows(path)
            ]
        return found

    def _files_of_results(self) -> list[tuple[ProbeResult, Path]]:
        """Every file with the result that it belongs to, the No rows of a result after its Yes rows."""
        apart = self.negatives or (None,) * len(self.files)
        pairs = zip(self.results, zip(self.files, apart, strict=True), strict=True)
        return [(result, path) for result, paths in pairs for path in paths if path is not None]

    @checked
    def statistics(self, draws: int = DRAWS, seed: int = 0) -> ProbeStatistics:
        """Accuracy, evenness, signal detection; of two results also their paired difference. `draws` permutations."""
        return ProbeStatistics(**vars(evaluate(self.results, self._controls(), _resampling(draws, seed))))

    @checked
    def evidence(self, margin: float | None = None, draws: int = DRAWS, seed: int = 0) -> ProbeEvidence:
        """Several results against the first; `margin`: balanced accuracies that differ by less (0..1) are equal."""
        equal_within = None if margin is None else share("margin", margin)
        found = gather(self.results, equal_within, _resampling(draws, seed))
        return ProbeEvidence(**vars(found), controls=self._controls(), files=self.files)

    @checked
    def figure(
        self, title: str = "", draws: int = DRAWS, vmin: float | None = None, vmax: float | None = None
    ) -> "Figure":
        """The maps of all results on one scale, of two also their difference; `vmin`, `vmax`: its ends in percent."""
        return self.statistics(draws).maps(title, vmin, vmax)

    def _controls(self) -> list[Control]:
        return load_controls(*(self.control_files.get(name, ()) for name in ("text_only", "blank_image")))

    def __add__(self, other: "ProbeRun") -> "ProbeRun":
        if not isinstance(other, ProbeRun):
            raise InputError(
                f"Runs are joined with runs, but one is {short(other)}: files are read by read_probe(file)."
            )
        files = {name: [*self.control_files.get(name, ()), *paths] for name, paths in other.control_files.items()}
        both = (self, other)
        apart, named = any(run.negatives for run in both), any(run.labels for run in both)
        return ProbeRun(
            max(self.exit_code, other.exit_code),
            self.log + other.log,
            self.files + other.files,
            {**self.control_files, **files},
            (self._kept, other._kept),
            sum((run.negatives or (None,) * len(run) for run in both), ()) if apart else (),
            tuple(result.label for run in both for result in run.results) if named else (),
        )

    def __radd__(self, other: Any) -> "ProbeRun":
        """For `sum`, which begins with 0."""
        return self if isinstance(other, int) and other == 0 else self + other

    def __getitem__(self, place: slice | int) -> "ProbeRun":
        def of(whole: tuple[Any, ...]) -> tuple[Any, ...]:
            return whole[place] if isinstance(place, slice) else whole[place : place + 1 or None]

        if not isinstance(place, slice):
            self.files[place]  # IndexError, or TypeError for what is no place
        return replace(self, files=of(self.files), negatives=of(self.negatives), labels=of(self.labels))

    def __len__(self) -> int:
        return len(self.files)

    def __repr__(self) -> str:
        return f"<probe: {', '.join(path.name for path in self.files) or 'no result'}>"

    def _repr_html_(self) -> str:
        return tables_html([_levels(self.statistics())], self.log[-1:] if self.exit_code else ())


@checked
def read_probe(
    *files: str | Path | Sequence[str | Path],
    negatives_file: Sequence[str | Path] | str | Path = (),
    labels: Sequence[str] | str = (),
    text_only_file: Sequence[str | Path] | str | Path = (),
    blank_image_file: Sequence[str | Path] | str | Path = (),
) -> ProbeRun:
    """Result files that are there already, the baseline first (one by one or as a list), as `agci metrics` and
    `agci evidence` take them.

    `negatives_file` are the results on No rows where they are files of their own, one per result file; `labels` names
    the results; the others are answers without the image.

    >>> from transformers_agci import probe, probe_data, read_probe
    >>> run = probe(data=probe_data(items=2, limit=18), progress=False)
    >>> read_probe(*run.files, labels=["before"]).statistics(draws=10).results[0].label
    'before'
    """
    controls = {
        "text_only": path_list("text_only_file", text_only_file),
        "blank_image": path_list("blank_image_file", blank_image_file),
    }
    if not isinstance(labels, Sequence):
        raise InputError(f"`labels` must be a text or a list of texts, but is {short(labels)}.")
    named = path_list("files", files[0] if len(files) == 1 else files)
    if not named:
        raise InputError("`files` is an empty list; name at least one result file.")
    return ProbeRun(
        0,
        (),
        named,
        {name: paths for name, paths in controls.items() if paths},
        negatives=path_list("negatives_file", negatives_file),
        labels=(labels,) if isinstance(labels, str) else tuple(labels),
    )


def as_results(name: str, given: "ProbeRun | str | Path | Sequence[str | Path]") -> ProbeRun:
    """A run as it is; result files as `read_probe` reads them; InputError names the argument that is neither."""
    return given if isinstance(given, ProbeRun) else ProbeRun(0, (), path_list(name, given))


def _resampling(draws: int, seed: int) -> ResamplingConfig:
    return ResamplingConfig(whole_number("draws", draws), whole_number("seed", seed, least=0))


def _correct(row: Mapping[str, Any]) -> bool:
    return bool((read_letter if row.get("options") else read_answer)(str(row["prediction"])) == row["answer"])


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
        "choices %" if any(report.choice for report in found.results) else "Yes rows %",
        "No rows %",
        "balanced %",
        f"sd of margins over cells, in {MARGIN_UNIT}",
        "position effect, p",
    ]
    return Table("95 % intervals over items", header, rows)
