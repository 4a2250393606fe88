"""Runs the position probe: every row at every lambda, and the questions without an image that stand beside them."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.errors import InputError
from transformers_agci.experiments.planted_bias import planted_bias
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.position.questions import Control, control_questions, prompt_form, questions
from transformers_agci.inference.answering import AnswerOptions, TransformersEngine, answer_questions, as_engine
from transformers_agci.inference.engine import Engine
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.progress import RunSummary
from transformers_agci.inference.questions import QuestionSet
from transformers_agci.inference.runner import output_paths
from transformers_agci.storage.result_names import sibling_path


@dataclass(frozen=True)
class PositionProbe:
    """An engine or a loaded model, the data, the lambdas, the answer file A; the manifest only records the `notes`.

    `beta` is the size of a decoder bias that is planted in the model while it answers (see docs/ruler.md).
    """

    answering: Engine | LoadedModel
    data: ProbeData
    lambdas: Sequence[float]
    answer_file: Path
    options: AnswerOptions = field(default_factory=AnswerOptions)
    notes: Mapping[str, Any] = field(default_factory=dict)
    beta: float = 0.0

    @property
    def engine(self) -> Engine:
        """What answers."""
        return as_engine(self.answering)

    @property
    def outputs(self) -> list[Path]:
        """A itself for one lambda, A.lam0.jsonl, A.lam0.5.jsonl for several."""
        return output_paths(self.answer_file, self.lambdas, self.options.method)

    def control_outputs(self, control: Control) -> list[Path]:
        """A.text_only.jsonl; A.blank_image.jsonl, or A.blank_image.lam0.5.jsonl where there are several lambdas."""
        file = sibling_path(self.answer_file, f".{control.value}.jsonl")
        return output_paths(file, self._lambdas_of(control), self.options.method)

    def ask(self) -> RunSummary:
        """Answer every row at every lambda."""
        asked = questions(self.data.items, self.data.img_path)
        question_set = QuestionSet(asked, self.data.bad_rows, self._settings(), self.notes)
        with self._planted():
            return answer_questions(self.engine, question_set, self.lambdas, self.outputs, self.options)

    def ask_without_image(self, control: Control) -> RunSummary:
        """Answer every caption without its image, once per item and answer."""
        asked = control_questions(self.data.items, self.data.img_path, control)
        question_set = QuestionSet(asked, (), {**self._settings(), "picture": control.value}, self.notes)
        lambdas, outputs = self._lambdas_of(control), self.control_outputs(control)
        with self._planted():
            return answer_questions(self.engine, question_set, lambdas, outputs, self.options)

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a result file to go on."""
        planted = {"planted_bias": self.beta} if self.beta else {}
        forms = dict.fromkeys(prompt_form(row) for rows in self.data.items.values() for row in rows)
        return {"experiment": "position probe", "prompt": "".join(forms) or PROMPT, **planted, **self.data.settings}

    @contextlib.contextmanager
    def _planted(self) -> Iterator[None]:
        """The model with the planted bias; without one no hook is put on it."""
        if self.beta == 0:
            yield
            return
        if not isinstance(self.engine, TransformersEngine):
            raise InputError(f"`planted_bias` is planted by the engine transformers, not by {self.engine.name}.")
        with planted_bias(self.engine.loaded.model, self.beta):
            yield

    def _lambdas_of(self, control: Control) -> Sequence[float]:
        """Without image tokens lambda does nothing: text alone is asked once."""
        return [0.0] if control is Control.TEXT_ONLY else self.lambdas
