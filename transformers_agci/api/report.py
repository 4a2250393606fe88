"""The report in Python: one page that opens the items behind every cell."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import checked, one_of, path_of, share, whole_number
from transformers_agci.api.flow import FlowRun
from transformers_agci.api.occlusion import OcclusionRun
from transformers_agci.api.results import ProbeRun, as_results
from transformers_agci.api.rows import Displayed
from transformers_agci.api.ruler import Ruler
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.defaults import DRAWS, IMAGES, THUMBNAILS, Images
from transformers_agci.experiments.position.measures import ResamplingConfig
from transformers_agci.experiments.report_page.make import ReportOptions, Written, write_page


@dataclass(frozen=True, eq=False, repr=False)
class ReportPage(Displayed, Written):
    """The page that was written: its `path`, its `size` in bytes, its `thumbnails`. In a notebook a link to it."""

    @property
    def text(self) -> str:
        """What should be known about it, and where it is."""
        said = f"report: {self.path} ({self.size / 1e6:.1f} MB, {self.thumbnails} thumbnails)"
        return "\n".join([*self.remarks, said])

    def _repr_html_(self) -> str:
        link = f'<a href="{html.escape(self.path.as_posix())}" target="_blank">{html.escape(self.path.name)}</a>'
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self.remarks)
        return f"{remarks}<p>{link} ({self.size / 1e6:.1f} MB, {self.thumbnails} thumbnails)</p>"


@checked
def make_report(
    results: ProbeRun | str | Path | Sequence[str | Path],
    output: str | Path = "report.html",
    *,
    title: str = "",
    images: Images = IMAGES,
    img_path: str | Path | None = None,
    thumbnails: int = THUMBNAILS,
    occlusion: Any = (),
    flow: Any = (),
    ruler: Ruler | str | Path | None = None,
    margin: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> ReportPage:
    """Write one self-contained page of a run of `probe`, or of result files, the baseline first.

    `images`: thumbnails in the page (at most so many `thumbnails`, of answers that changed), in a folder beside it, or
    none. `img_path`: the rows' images (default: the folder in the manifest). `occlusion`, `flow`, `ruler`: what these
    functions gave, or the folders and the ruler.json that they wrote. `margin`: balanced accuracies that differ by less
    (0..1) are equal.

    >>> import tempfile
    >>> from transformers_agci import make_report, probe, probe_data
    >>> folder = tempfile.TemporaryDirectory()
    >>> run = probe(data=probe_data(items=2), lambdas=[0, 0.5], progress=False)
    >>> page = make_report(run, f"{folder.name}/report.html", draws=20)
    >>> page.path.read_text()[:15]
    '<!DOCTYPE html>'
    """
    run = as_results("results", results)
    one_of("images", images, Images)
    return run_report(
        ReportOptions(
            results=run.files,
            output=Path(output),
            negatives=run.negatives,
            labels=run.labels,
            title=title,
            img_path=None if img_path is None else Path(img_path),
            images=images,
            thumbnails=whole_number("thumbnails", thumbnails),
            occlusion=_folders("occlusion", occlusion),
            flow=_folders("flow", flow),
            ruler=_ruler_file(ruler),
            text_only=run.control_files.get("text_only", ()),
            blank_image=run.control_files.get("blank_image", ()),
            margin=None if margin is None else share("margin", margin),
            resampling=ResamplingConfig(whole_number("draws", draws), whole_number("seed", seed, least=0)),
        )
    )


def run_report(options: ReportOptions) -> ReportPage:
    """A report as the command writes it."""
    return ReportPage(**vars(write_page(options)))


def _ruler_file(given: Any) -> Path | None:
    """The ruler.json of a run, or its path."""
    if isinstance(given, Ruler):
        return given.file
    if given is None or isinstance(given, str | Path):
        return None if given is None else path_of(given)
    raise InputError(f"`ruler` must be what `ruler` gave, or the ruler.json of it, but is {short(given)}.")


def _folders(name: str, given: Any) -> list[Path]:
    """The folders of runs, of paths, or of a list of either."""
    found: list[Path] = []
    for each in given if isinstance(given, list | tuple) else [given]:
        if isinstance(each, OcclusionRun):
            found += each.folders
        elif isinstance(each, FlowRun | str | Path):
            found.append(each.folder if isinstance(each, FlowRun) else path_of(each))
        else:
            raise InputError(f"`{name}` must be what `{name}` gave, or a folder of it, but is {short(each)}.")
    return found
