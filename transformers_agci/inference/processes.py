"""Several processes on one result: torchrun's, which talk to each other, or a job array's, which do not."""

import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.storage.result_file import ResultFile, Shard

PATIENCE = timedelta(days=7)  # how long a process that is done waits for the slowest one


class Team:
    """The processes of one torchrun; a process alone is a team of one.

    torchrun sets RANK and WORLD_SIZE. Every process holds the whole model and does every n-th block; they only meet
    to agree at the start and to merge at the end.
    """

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._ours = False
        if self.size > 1:
            import torch.distributed as dist

            if not dist.is_initialized():
                try:
                    dist.init_process_group("gloo", timeout=PATIENCE)
                except ValueError as error:
                    raise InputError(
                        f"WORLD_SIZE is {self.size}, as torchrun sets it, but the processes cannot meet ({error}); "
                        "start them with torchrun, or unset WORLD_SIZE and give each its --shard i/n."
                    ) from error
                self._ours = True

    @property
    def shard(self) -> Shard | None:
        """This process's share of the blocks; None when it is alone."""
        return Shard(self.rank, self.size) if self.size > 1 else None

    def share(self, given: Shard | None) -> Shard | None:
        """The share of this process: the one `given` by --shard, or that of its rank. Both is an InputError."""
        if given is not None and self.size > 1:
            raise InputError(
                "--shard is for processes that do not know each other; under torchrun the blocks are "
                "shared out already. Leave one of the two away."
            )
        return given or self.shard

    def open(self, files: Sequence[ResultFile], stack: contextlib.ExitStack) -> None:
        """Enter all files, the leader's first: what it refuses, all refuse."""
        refusal = None
        if self.leads:
            try:
                for file in files:
                    stack.enter_context(file)
            except InputError as error:
                refusal = error
        refused = self.from_leader(refusal is not None)
        if refusal is not None:
            raise refusal
        if refused:
            raise SystemExit(2)  # the leader says why; once is enough
        if not self.leads:
            for file in files:
                stack.enter_context(file)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def from_leader(self, value: Any) -> Any:
        """The leader's value, in every process; a meeting point."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_all(self, value: Any) -> list[Any]:
        """Every process's value, by rank; a meeting point."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def close(self) -> None:
        if self._ours:
            import torch.distributed as dist

            dist.destroy_process_group()
            self._ours = False


def leads() -> bool:
    """Whether this process speaks, scores and draws for all of a torchrun team."""
    return os.environ.get("RANK", "0") == "0"


def one_voice() -> contextlib.AbstractContextManager[Any]:
    """Nothing is printed within, except by the process that leads."""
    return contextlib.nullcontext() if leads() else contextlib.redirect_stdout(None)
