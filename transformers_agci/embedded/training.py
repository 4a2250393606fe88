"""How the embedded model learns, stage by stage, from nothing."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from transformers_agci.embedded import architecture as shape
from transformers_agci.embedded.atlas import CELL, Atlas
from transformers_agci.embedded.drawing import SIDE, Look
from transformers_agci.embedded.fast_forward import FastDecoder, FastVision
from transformers_agci.embedded.lessons import Lesson, Studio
from transformers_agci.embedded.pupil import SHARPNESS, Pupil, new_pupil, open_the_decoder
from transformers_agci.embedded.recipe import STAGES, Stage, rate_at, scaled
from transformers_agci.embedded.sheet import IGNORED

END_WEIGHT = 0.1  # the end of an answer is easy


def cell_tokens(tokens: Tensor) -> Tensor:
    """Image tokens of whole canvases [B, 81, 192] by cell: [B, 9, 9, 192]."""
    k = shape.TOKENS_PER_CELL_SIDE
    grid = tokens.view(-1, SIDE, k, SIDE, k, tokens.shape[-1]).transpose(2, 3)
    return grid.reshape(len(tokens), SIDE**2, k * k, -1)


def naming_steps(pupil: Pupil, studio: Studio, stage: Stage, whole: bool) -> Callable[[], Tensor]:
    """Stages 1 and 2: the loss of one step, on single cells or on `whole` canvases."""
    vision = FastVision(pupil.model, shape.GRID if whole else shape.TOKENS_PER_CELL_SIDE)
    sharpness = pupil.names.sharpness
    sharpness.data.fill_(SHARPNESS)
    weight = 1.0 if whole else 0.3

    def loss() -> Tensor:
        images, shown, _ = studio.draw(stage.canvases)
        pictures = torch.from_numpy(shown)  # [B, 9]
        if not whole:
            cells = images.unflatten(2, (SIDE, CELL)).unflatten(1, (SIDE, CELL))  # [B, row, y, column, x, 3]
            images = cells.transpose(2, 3).flatten(0, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = vision(vision.canvas.patches(images))
        tokens = tokens.float()
        by_cell = cell_tokens(tokens) if whole else tokens.view(stage.canvases, SIDE**2, -1, tokens.shape[-1])
        pooled = pupil.names.loss(by_cell.mean(2), pictures, sharpness.exp())
        each = pupil.names.loss(by_cell, pictures[..., None].expand(by_cell.shape[:3]), sharpness.exp())
        # Image tokens as long as embeddings: the decoder later meets both alike.
        length = by_cell.pow(2).mean(-1).add(1e-6).sqrt()
        goal = pupil.embedding.weight.detach().pow(2).mean().sqrt()
        return pooled + weight * each + 10 * (length - goal).pow(2).mean()

    return loss


def answer_loss(hidden: Tensor, labels: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy where a label stands, and the share of those labels that were the arg-max."""
    asked = labels != IGNORED
    scores = (hidden[asked] @ embedding.t().to(hidden.dtype)).float()
    return F.cross_entropy(scores, labels[asked]), (scores.argmax(-1) == labels[asked]).float().mean()


def question_steps(pupil: Pupil, studio: Studio, stage: Stage, report: dict[str, float]) -> Callable[[], Tensor]:
    """Stages 3 and 4: the loss of one step on packed questions."""
    lesson = Lesson(pupil.tokenizer, studio, stage.chained, stage.prompts)
    vision = FastVision(pupil.model)
    decoder = FastDecoder(pupil.model, lesson.sheet.layout.positions(), lesson.sheet.layout.mask())
    image = lesson.sheet.layout.image

    def loss() -> Tensor:
        batch = lesson.next_batch(stage.canvases)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled(stage.vision_rate > 0):
                tokens = vision(vision.canvas.patches(batch.images))
            text = pupil.embedding(batch.ids).to(tokens.dtype)
            hidden = decoder(torch.cat([text[:, : image.start], tokens, text[:, image.stop :]], 1))
            weight = pupil.embedding.weight
            total = torch.zeros(())
            if stage.chained:
                short, right = answer_loss(hidden, batch.short_labels, weight)
                total = total + short
                smooth(report, "short", right.item())
            if stage.prompts:
                answer, right = answer_loss(hidden, batch.answer_labels, weight)
                end, _ = answer_loss(hidden, batch.end_labels, weight)
                total = total + answer + END_WEIGHT * end
                smooth(report, "prompt", right.item())
        if stage.naming:
            by_cell = cell_tokens(tokens)
            pictures = batch.shown[..., None].expand(by_cell.shape[:3])
            total = total + stage.naming * pupil.names.loss(by_cell, pictures, 16.0)
        return total

    return loss


def smooth(report: dict[str, float], name: str, value: float) -> None:
    """A running mean for the progress bar."""
    report[name] = 0.95 * report.get(name, value) + 0.05 * value


def optimizer_for(pupil: Pupil, stage: Stage) -> torch.optim.AdamW:
    groups = []
    naming_only = not (stage.chained or stage.prompts)
    parts = [(pupil.seeing(), stage.vision_rate)] + ([] if naming_only else [(pupil.thinking(), 1.0)])
    if naming_only:
        parts.append(([pupil.names.sharpness], 1.0))
    for parameters, share in parts:
        if share:
            matrices = [p for p in parameters if p.ndim > 1]
            vectors = [p for p in parameters if p.ndim <= 1]
            groups += [{"params": matrices, "share": share, "weight_decay": 0.02}]
            groups += [{"params": vectors, "share": share, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))


def run_stage(pupil: Pupil, stage: Stage, atlas: Atlas, look: Look, seed: int) -> Iterator[float]:
    """Train one stage; yields the loss of every step."""
    number = [s.name for s in STAGES].index(stage.name)
    studio = Studio(atlas, replace(look, noise=look.noise * stage.noise), seed=100 * seed + number)
    report: dict[str, float] = {}
    if stage.name == "words":
        open_the_decoder(pupil, seed)
    if stage.chained or stage.prompts:
        step_loss = question_steps(pupil, studio, stage, report)
    else:
        step_loss = naming_steps(pupil, studio, stage, whole=stage.name != "names")
    optimizer = optimizer_for(pupil, stage)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    progress = tqdm(range(stage.steps), desc=f"stage {number + 1} of {len(STAGES)}: {stage.name}", mininterval=5)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(stage, step) * group["share"]
        loss = step_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        for parameter in (*pupil.model.parameters(), *trained):
            parameter.grad = None
        smooth(report, "loss", loss.item())
        progress.set_postfix(report, refresh=False)
        yield loss.item()


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Two threads are many times slower than one as soon as anything else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    folder: Path, seed: int = 0, steps: int | None = None, look: Look | None = None
) -> tuple[Pupil, dict[str, list[float]]]:
    """Train from nothing; returns the pupil and the loss of every step by stage.

    After each stage its weights go to <folder>/stages, and the same call goes on from there: a stage's draws and
    optimizer are its own, so the result is the same as without the interruption.
    """
    atlas, look, stages = Atlas(), look or Look(), scaled(steps)
    pupil = new_pupil(atlas, seed)
    losses: dict[str, list[float]] = {}
    for number, stage in enumerate(stages, start=1):
        # Named after everything that led to it: another recipe does not take these weights for its own.
        way = hashlib.sha256(repr((stages[:number], look, seed)).encode()).hexdigest()[:12]
        done = folder / "stages" / f"{number}-{stage.name}-{way}.safetensors"
        if done.is_file():
            pupil.model.load_state_dict(load_file(done), strict=False)  # the output layer is the embedding
            continue
        losses[stage.name] = list(run_stage(pupil, stage, atlas, look, seed))
        done.parent.mkdir(parents=True, exist_ok=True)
        weights = {k: v.contiguous() for k, v in pupil.model.state_dict().items() if k != "lm_head.weight"}
        partial = done.with_suffix(".partial")
        save_file(weights, partial)
        partial.replace(done)
    return pupil, losses
