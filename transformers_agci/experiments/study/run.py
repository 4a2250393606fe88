"""The study: the embedded model fine-tuned with lambda 0 and 0.5, equal otherwise, each probed with both."""

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers_agci.embedded.location import TEMPLATE, embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import STUDY_ITEMS, STUDY_SEEDS, STUDY_STEPS
from transformers_agci.experiments.position.data import ProbeData, embedded_data
from transformers_agci.experiments.position.run import PositionProbe
from transformers_agci.experiments.study.training_data import PROBE, write_training_data
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.checkpoint_files import CONFIG
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.progress import RunSummary
from transformers_agci.inference.runner import RunOptions
from transformers_agci.method.lam import LAMBDA_KEY, lambda_text
from transformers_agci.storage.folder import committed_folder
from transformers_agci.storage.json_file import read_json_object, write_json
from transformers_agci.storage.settings import check_same_settings
from transformers_agci.training.checks import CheckReport
from transformers_agci.training.merge import check_merge, write
from transformers_agci.training.recipe_keys import MergeRecipe, TrainRecipe
from transformers_agci.training.run import train

LAMBDAS = (0.0, 0.5)
BATCH = 8  # rows per step
LEARNING_RATE = 1e-3
SOURCE = "the study's recipe"  # how messages about it begin


@dataclass(frozen=True)
class Study:
    """`seeds` seeds, each trained for `steps` steps at both lambdas; `items` probe items; everything below `folder`."""

    folder: Path
    seeds: int = STUDY_SEEDS
    steps: int = STUDY_STEPS
    items: int = STUDY_ITEMS
    progress: bool = True

    def answers(self, seed: int | None, trained: float, evaluated: float | None = None) -> Path:
        """The answers of the model trained at lambda `trained`, or of the model as it was (seed None).

        They were given at lambda `evaluated`; None: at that of the training.
        """
        crossed = evaluated is not None and evaluated != trained
        name = f"answers.lam{lambda_text(evaluated)}.jsonl" if crossed and evaluated is not None else "answers.jsonl"
        return self._place(seed, trained) / name

    def run(self, say: Callable[[str], None] = print) -> None:
        """Train, merge and probe whatever is not finished yet.

        A crossover: each fine-tuned model is probed at the lambda of its training and at the other one, so that what
        lambda does to the training and what it does to the answers can be told apart.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"`output_dir` {self.folder} cannot be made ({error.strerror}).") from error
        self._check_same_study()
        data = embedded_data(self.folder / "probe_set", self.items, PROBE)
        for lam in LAMBDAS:
            self._copy_base(lam)
            say(f"the model as it was, lambda {lambda_text(lam)}")
            self._probe(self._base(lam), None, lam, [lam], data=data, say=say)
        for seed in range(self.seeds):
            training_data = write_training_data(self.folder / "data", seed, self.steps * BATCH)
            for lam in LAMBDAS:
                say(f"seed {seed}, lambda {lambda_text(lam)}")
                merged = self._tune(seed, lam, training_data, say)
                self._probe(merged, seed, lam, LAMBDAS, data=data, say=say)

    def _check_same_study(self) -> None:
        """InputError where a study with other numbers was begun in the folder; more seeds may be added to one."""
        file = self.folder / "study.json"
        mine = {"steps": self.steps, "items": self.items, "learning_rate": LEARNING_RATE}
        if not file.exists():
            write_json(file, mine, indent=None)
        check_same_settings(
            f"{self.folder} holds a study",
            read_json_object(file),
            mine,
            "Give another `output_dir`, or the same numbers to go on.",
        )

    def _place(self, seed: int | None, lam: float) -> Path:
        return self.folder / f"{'as_it_was' if seed is None else f'seed{seed}'}.lam{lambda_text(lam)}"

    def _base(self, lam: float) -> Path:
        return self.folder / f"base.lam{lambda_text(lam)}"

    def _copy_base(self, lam: float) -> None:
        """The embedded model in a folder of its own, whose config.json carries lambda."""
        with committed_folder(self._base(lam), "copying the embedded model to", is_finished=lambda _: True) as made:
            if made is None:
                return
            shutil.copytree(embedded_model_path(), made, dirs_exist_ok=True)
            write_json(made / CONFIG, read_json_object(made / CONFIG) | {LAMBDA_KEY: lam})

    def _tune(self, seed: int, lam: float, training_data: str, say: Callable[[str], None]) -> Path:
        place = self._place(seed, lam)
        train(self._recipe(seed, lam, training_data), say, self.progress)
        gc.collect()  # models and optimizers hold each other
        merging = MergeRecipe(
            source=SOURCE,
            model_name_or_path=str(self._base(lam)),
            adapter_name_or_path=str(place / "adapter"),
            export_dir=str(place / "merged"),
        )
        report = CheckReport()
        merge = check_merge(merging, report)
        for warning in report.warnings:
            say(warning)
        write(merge)
        return merge.target

    def _recipe(self, seed: int, lam: float, training_data: str) -> TrainRecipe:
        """The LoRA of docs/method.md at a higher learning rate: the model is small, and so are its steps."""
        data = str(self.folder / "data")
        return TrainRecipe(
            source=SOURCE,
            model_name_or_path=str(self._base(lam)),
            output_dir=str(self._place(seed, lam) / "adapter"),
            dataset_dir=data,
            media_dir=data,
            dataset=(training_data,),
            template=TEMPLATE,
            cutoff_len=512,
            lora_rank=8,
            lora_alpha=16,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_ratio=0.1,
            max_steps=self.steps,
            seed=seed,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            logging_steps=25,
            save_steps=50,
            save_total_limit=1,
            disable_gradient_checkpointing=True,
            use_cpu=True,
        )

    def _probe(
        self,
        model: Path,
        seed: int | None,
        trained: float,
        evaluated: Sequence[float],
        *,
        data: ProbeData,
        say: Callable[[str], None],
    ) -> None:
        """Ask the model at each lambda of `evaluated`; its config.json carries that of its training."""
        loaded = load(LoadOptions(str(model), device="cpu"))
        if loaded.lam != trained:
            raise InputError(
                f"{model} carries lambda {loaded.lam}, but the study tuned it with {trained}; remove "
                f"{self.folder} and start over."
            )
        options = AnswerOptions(run=RunOptions(progress=self.progress))
        for lam in evaluated:
            answers = self.answers(seed, trained, lam)
            answers.parent.mkdir(parents=True, exist_ok=True)
            summary: RunSummary = PositionProbe(loaded, data, [lam], answers, options).ask()
            if not summary.complete:
                raise InputError(f"Not every question was answered: {'; '.join(summary.lines())}.")
            say(f"probed at lambda {lambda_text(lam)}: {answers}")
