"""What a run did and how it ended, as numbers and as the lines that a command prints."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers_agci.storage.result_file import FailedRow


@dataclass
class Counts:
    """What a run did; the tests hold these, never seconds."""

    rows: int = 0  # answers written by this run
    rows_before: int = 0  # answers that were already there
    batches: int = 0
    forwards: int = 0  # forward calls of the whole model
    vision_calls: int = 0
    vision_images: int = 0  # images that the vision side encoded
    prefill_tokens: int = 0  # prompt tokens that went through the decoder
    replayed_tokens: int = 0  # prompt tokens whose keys and values another question about the images had left
    disagreements: int = 0  # Yes/No rows whose raw logits order the words against the answer
    halved_blocks: list[int] = field(default_factory=list)
    failed: list[FailedRow] = field(default_factory=list)

    def plus(self, other: "Counts") -> "Counts":
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class RunSummary:
    """How a run ended. `complete` is False for a shard: `agci merge-shards` joins the parts."""

    outputs: tuple[Path, ...]
    counts: Counts
    seconds: float
    complete: bool

    @property
    def exit_code(self) -> int:
        return 1 if self.counts.failed else 0

    def lines(self) -> list[str]:
        """What a command prints at the end."""
        counts = self.counts
        rate = counts.rows / self.seconds if self.seconds else 0.0
        said = [
            f"{counts.rows} answers in {self.seconds:.1f} s ({rate:.1f} rows/s)"
            + (f", {counts.rows_before} were there before" if counts.rows_before else "")
            + f"; vision ran on {counts.vision_images} images, {counts.forwards} forward calls."
        ]
        if counts.disagreements:
            said.append(f"{counts.disagreements} answers go against the order of their raw Yes and No logits.")
        if counts.halved_blocks:
            said.append(
                f"Memory ran out in {len(counts.halved_blocks)} blocks, which were halved: "
                f"{', '.join(map(str, counts.halved_blocks[:10]))}."
            )
        if counts.failed:
            said.append(f"{len(counts.failed)} rows could not be asked:")
            said += [f"  {row.error}" for row in counts.failed[:20]]
            said += [f"  ... and {len(counts.failed) - 20} more"] if len(counts.failed) > 20 else []
        if self.complete:
            said += [f"Written: {path}" for path in self.outputs]
        else:
            said += [f"This shard is done; when all are: agci merge-shards {path}" for path in self.outputs]
        return said
