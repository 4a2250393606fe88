"""One model behind the live page, and what may be asked of it: one request at a time.

Lambda and method are set inside a request and are gone at its end, so that two users never see each other's.
"""

import contextlib
import math
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from transformers_agci.app.scene import Scene
from transformers_agci.data.grid import POSITIONS, Grid
from transformers_agci.data.probe_rows import PROMPT, ProbeRow
from transformers_agci.embedded.probe_set import GRID as EMBEDDED_GRID
from transformers_agci.errors import InputError
from transformers_agci.experiments.flow.figure import image_flow_figure
from transformers_agci.experiments.flow.flow import layer_count, measure_flow
from transformers_agci.experiments.occlusion.files import IMAGE, write_image_files
from transformers_agci.experiments.occlusion.occlude import OcclusionRun
from transformers_agci.inference.answer import Answer, Answerer
from transformers_agci.inference.batches import Column
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.methods import method_on, replays_off
from transformers_agci.inference.prepare import prepare, to_device
from transformers_agci.inference.questions import YES_NO, ImageBytes, Question
from transformers_agci.inference.vision_replay import VisionReplay
from transformers_agci.method.injection import METHODS
from transformers_agci.method.lam import lambda_text
from transformers_agci.method.rivals import RIVALS
from transformers_agci.report.heatmap import write_figure

PUBLISHED = Grid()


class Setting(NamedTuple):
    """A method and its lambda."""

    lam: float
    method: str = "agci"

    @property
    def is_baseline(self) -> bool:
        """Whether the model is as it was published."""
        return self.lam == 0 and self.method not in RIVALS

    @property
    def name(self) -> str:
        """As a map's title says it; a rival has its published strength, whatever lambda is."""
        rival = RIVALS.get(self.method)
        if rival is None:
            return f"{self.method}, lambda {lambda_text(self.lam)}"
        note = f" ({rival.note})" if rival.note else ""
        return f"{self.method}{note}, strength {rival.published:g}"


BASELINE = Setting(0.0)
# Those that act while the image is encoded, or ask about other images, cannot share one encoding with the baseline.
METHODS_ON_PAGE = (*METHODS, *(name for name, rival in RIVALS.items() if "vision_replay" not in replays_off(rival)))


@dataclass(frozen=True)
class CellAnswer:
    """What the model answers with the target in one cell; `margin` is the Yes logit minus the No logit."""

    text: str
    margin: float

    @property
    def yes_probability(self) -> float:
        """P(Yes), given that the answer is Yes or No: 0 to 1."""
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, self.margin))))


class Session:
    """A loaded model with the requests of the page. Every public method waits until no other request runs.

    Raises InputError, from any of them, for what the user can mend: an unreadable image, an empty caption, a layer
    that the model does not have.
    """

    def __init__(self, loaded: LoadedModel, embedded: bool) -> None:
        self.loaded = loaded
        self.grid = EMBEDDED_GRID if embedded else PUBLISHED
        self.layers = layer_count(loaded.model)
        self._answerer = Answerer(loaded.model, loaded.processor)
        self._lock = threading.Lock()

    def scene(self, target: str | Path, seed: int) -> Scene:
        """The nine composites of one target among the atlas images of a seed; no model is asked."""
        return Scene.draw(target, seed, self.grid)

    def ask(self, scene: Scene, caption: str, settings: Sequence[Setting]) -> list[list[CellAnswer]]:
        """Nine answers per setting, in the order of `POSITIONS`; the vision tower runs once for all of them."""
        questions = [self._question(scene, caption, cell) for cell in range(len(POSITIONS))]
        with self._lock:
            prepared = prepare(Column((tuple(range(len(questions))),)), questions, self.loaded.processor)
            if prepared.failed:
                raise InputError(prepared.failed[0].error)
            (batch,) = prepared.batches
            inputs = to_device(self.loaded, batch.inputs)
            with VisionReplay(self.loaded.model) as vision:
                vision.set_images(batch.images)
                return [self._answers(inputs, setting) for setting in settings]

    def attention(self, scene: Scene, caption: str, cell: int, layers: str, setting: Setting) -> Image.Image:
        """What the answer's position attends to, at the baseline and at the setting, over the composite of a cell."""
        if setting.method != "agci":
            raise InputError(f"Attention is shown of the baseline and agci, not of {setting.method}; choose agci.")
        lambdas = [0.0] if setting.is_baseline else [0.0, setting.lam]
        question = self._question(scene, caption, cell)
        with self._lock, tempfile.TemporaryDirectory() as folder:
            flows = measure_flow(self.loaded, question, lambdas, layers, max_new_tokens=4)
            figure = image_flow_figure(flows, "answer", question.images[0].open(), question.text)
            return _read(write_figure(figure, Path(folder, "flow.png")))

    def occlusion(
        self, scene: Scene, caption: str, cell: int, setting: Setting, progress: Callable[[float], None]
    ) -> Image.Image:
        """Which places of the composite the answer depends on; `progress` is given the share done and may raise."""
        with self._lock, tempfile.TemporaryDirectory() as folder:
            name = f"composite_{cell}"
            Path(folder, f"{name}.jpg").write_bytes(scene.composites[cell])
            fields = {"id": cell, "image": f"{name}.jpg", "caption": _caption(caption), "position": POSITIONS[cell]}
            row = ProbeRow.parse({**fields, "answer": "Yes"}, "the page")
            run = OcclusionRun(self.loaded, [row], Path(folder), lam=setting.lam, max_new_tokens=4)
            with self._on(setting):
                occluded = run.occlude(row, progress=progress)
            write_image_files(Path(folder), name, occluded)
            return _read(Path(folder, name, f"{name}{IMAGE}"))

    def _answers(self, inputs: dict[str, Any], setting: Setting) -> list[CellAnswer]:
        with self._on(setting):
            return [_cell_answer(answer) for answer in self._answerer.answer(inputs, YES_NO)]

    @contextlib.contextmanager
    def _on(self, setting: Setting) -> Iterator[None]:
        """The model under a setting; a rival at its published strength."""
        with method_on(self.loaded.model, setting.method, "image", {}) as handle:
            if setting.method in RIVALS:
                handle.strength = RIVALS[setting.method].published
            else:
                handle.lam = setting.lam  # type: ignore[union-attr]
            yield

    def _question(self, scene: Scene, caption: str, cell: int) -> Question:
        image = ImageBytes(scene.composites[cell], POSITIONS[cell])
        text = PROMPT.format(caption=_caption(caption))
        return Question(row={}, where=POSITIONS[cell], text=text, images=(image,), marks=False)


def _caption(text: str) -> str:
    if not text.strip():
        raise InputError("The caption is empty; say what the model should look for.")
    return text.strip()


def _cell_answer(answer: Answer) -> CellAnswer:
    margin = answer.fields.get("margin")
    if margin is None or not math.isfinite(margin):
        raise InputError("The model gives logits that are not numbers; load it with another dtype.")
    return CellAnswer(answer.text, margin)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
