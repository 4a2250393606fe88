"""The processes of one torchrun: who is the main one, and how they agree; asking who imports no torch.

Why not accelerate's PartialState: it imports torch, which commands that only score or draw do without; on a machine
with a GPU it meets over NCCL, whose watchdog ends processes that wait hours for the slowest one, while gloo waits as
long as it is told; it exists once per process and cannot be closed, so that a second run in the same process finds
the first one's group; and RANK without MASTER_ADDR ends in a KeyError or a ValueError about env://.
"""

import contextlib
import os
from datetime import timedelta
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.storage.result_names import Shard

TIMEOUT = timedelta(days=7)  # how long a process that is done waits for the slowest one


def rank_and_size() -> tuple[int, int]:
    """RANK and WORLD_SIZE as torchrun sets them; (0, 1) where neither is set.

    Raises InputError for values that no torchrun sets: a word, a size of 0, a rank beyond the size; of LOCAL_RANK, too,
    which only a GPU would ask for.
    """
    local_rank()
    size = _whole_number("WORLD_SIZE", least=1, default=1)
    rank = _whole_number("RANK", least=0, default=0)
    if rank >= size:
        world = f"WORLD_SIZE is {size}" if "WORLD_SIZE" in os.environ else "WORLD_SIZE is not set"
        raise InputError(
            f"RANK is {rank} but {world}; ranks count from 0 and are below WORLD_SIZE: start the processes with "
            "torchrun, which sets both, or unset them."
        )
    return rank, size


def local_rank() -> int:
    """LOCAL_RANK as torchrun sets it: this process's number on its machine; 0 where it is not set."""
    return _whole_number("LOCAL_RANK", least=0, default=0)


def local_size() -> int:
    """LOCAL_WORLD_SIZE as torchrun sets it: how many processes share this machine; 1 where it is not set."""
    return _whole_number("LOCAL_WORLD_SIZE", least=1, default=1)


def _whole_number(name: str, least: int, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise InputError(
            f"The environment variable {name} must be a whole number of at least {least}, as torchrun sets it, but it "
            f"is {text[:40]!r}; start the processes with torchrun, or unset it."
        )
    return int(text)


def started_by_torchrun() -> bool:
    """Whether this process is one of a torchrun's, be it the only one."""
    return any(name in os.environ for name in ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK"))


def is_main_process() -> bool:
    """Whether this process prints, scores and draws for all processes of a torchrun; True for a process alone."""
    return rank_and_size()[0] == 0


def main_process_output() -> contextlib.AbstractContextManager[Any]:
    """Within this block only the main process prints to stdout."""
    return contextlib.nullcontext() if is_main_process() else contextlib.redirect_stdout(None)


class ProcessGroup:
    """The processes of one torchrun; a process alone is a group of one. Close it, or use it as a context manager.

    Every process holds the whole model and does every n-th block; they meet only to agree at the start and to merge
    at the end. A group within a group is the same group, closed by the outer one.

    Raises InputError where RANK and WORLD_SIZE are set but nothing says where the processes meet.
    """

    def __init__(self) -> None:
        self.rank, self.size = rank_and_size()
        self._opened_here = False
        if self.size > 1:
            self._join()

    def _join(self) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            return
        try:
            dist.init_process_group("gloo", timeout=TIMEOUT)
        except ValueError as error:  # torch names the variable that is missing: MASTER_ADDR, RANK
            raise InputError(
                f"WORLD_SIZE is {self.size}, as torchrun sets it, but the processes cannot meet ({error}); "
                "start them with torchrun, or unset WORLD_SIZE and give each its `shard` i/n."
            ) from error
        self._opened_here = True

    @property
    def is_main(self) -> bool:
        """Whether this is the process that checks, merges and speaks for all."""
        return self.rank == 0

    @property
    def shard(self) -> Shard | None:
        """This process's share of the blocks; None for a process alone."""
        return Shard(self.rank, self.size) if self.size > 1 else None

    def share(self, given: Shard | None) -> Shard | None:
        """This process's share: the one `given`, or that of its rank; InputError where both are set."""
        if given is not None and self.size > 1:
            raise InputError(
                "`shard` is for processes that do not know each other; under torchrun the blocks are "
                "shared out already. Omit one of the two."
            )
        return given or self.shard

    def from_main(self, value: Any) -> Any:
        """The main process's value, in every process; all wait for it."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank, in every process; all wait for all."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def close(self) -> None:
        """Leave the group, if it was joined here."""
        if self._opened_here:
            import torch.distributed as dist

            dist.destroy_process_group()
            self._opened_here = False

    def __enter__(self) -> "ProcessGroup":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
