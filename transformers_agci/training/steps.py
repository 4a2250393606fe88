"""Trainer's steps on a bar with the time left, and its losses as lines beside it."""

from typing import Any

from transformers import TrainerCallback

from transformers_agci.inference.progress import Progress


class Steps(TrainerCallback):
    """Counts the steps of this process; only the first process of several shows anything."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = Progress(state.max_steps - state.global_step, shown=state.is_world_process_zero, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar:
            self._bar.add(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._bar and state.is_world_process_zero and logs and "loss" in logs:
            rate = logs.get("learning_rate", 0.0)
            self._bar.say(
                f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.4f}, "
                f"learning rate {float(rate):.2e}"
            )

    def close(self) -> None:
        """Leave the bar's last state standing."""
        if self._bar:
            self._bar.close()
