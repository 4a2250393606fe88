"""How the embedded model learns from nothing: four stages, each counted in steps; about 20 minutes of one CPU thread.

1. names    the vision tower learns to name single cells: an image token shall resemble its image's name
2. canvas   the same on whole canvases
3. words    the decoder learns to find a name among the image tokens: "cat Yes; dog No;"
4. prompt   the whole model learns the probe's own prompt, the naming kept on beside it

Trained from the prompt alone the model stays at chance; the order is what makes it converge.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from transformers_agci.data.draws import random_stream, stream_seed
from transformers_agci.embedded import architecture as shape
from transformers_agci.embedded.atlas import CELL, SIDE, Atlas, RenderConfig
from transformers_agci.embedded.fast_forward import FastDecoder, FastVision
from transformers_agci.embedded.training_data import IGNORED, CanvasSampler, Dataset
from transformers_agci.errors import InputError, error_line

TEXT_SCALE = 0.3  # root mean square of embeddings and image tokens when the decoder starts to learn
IMAGE_MARK = 0.7  # a constant random offset on every image token, in TEXT_SCALE: tells them from words
LOOKUP = 1.65  # scale of the first layer's equal query and key weights: like finds like
SHARPNESS = 2.5  # where the naming stages start; they learn it
TRAINING_NOISE = 0.16  # clearer than the probe set's images, which leave room for a map
END_WEIGHT = 0.1  # the end of an answer is easy


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe."""

    name: str
    steps: int
    canvases: int  # per step
    rate: float  # peak learning rate
    vision_rate: float  # of the vision tower and the embeddings, as a share of `rate`; 0 freezes them
    noise: float  # share of the configured noise: early stages see clearer images
    chained: int = 0  # bare names per canvas
    prompts: int = 0  # questions in the probe's words per canvas
    naming: float = 0.0  # weight of the naming loss beside the questions


STAGES = (
    Stage("names", 450, canvases=21, rate=2e-3, vision_rate=1.0, noise=0.5),
    Stage("canvas", 600, canvases=21, rate=1e-3, vision_rate=1.0, noise=1.0),
    Stage("words", 700, canvases=16, rate=1.5e-3, vision_rate=0.0, noise=1.0, chained=24),
    Stage("prompt", 400, canvases=16, rate=1e-3, vision_rate=0.3, noise=1.0, chained=10, prompts=5, naming=0.5),
)


def rate_at(stage: Stage, step: int) -> float:
    """Warm-up over the first tenth (60 steps at most), then half a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / max(1, min(60, stage.steps // 10)))
    return stage.rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))


def scaled(steps: int | None) -> tuple[Stage, ...]:
    """The recipe, or a short one of `steps` steps in all (at least one per stage), for a test of the machinery."""
    if steps is None:
        return STAGES
    whole = sum(stage.steps for stage in STAGES)
    return tuple(replace(stage, steps=max(1, round(stage.steps * steps / whole))) for stage in STAGES)


class NamingLoss:
    """Cross-entropy of image tokens against the 400 names; a name is the mean of its words' embeddings."""

    def __init__(self, embedding: nn.Embedding, names: list[list[int]]) -> None:
        self.embedding = embedding
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))  # logarithm of the factor on cosines
        longest = max(map(len, names))
        self.ids = torch.tensor([name + [0] * (longest - len(name)) for name in names])
        self.used = torch.tensor([[1.0] * len(name) + [0.0] * (longest - len(name)) for name in names])[..., None]

    def directions(self) -> Tensor:
        """One unit vector per name: [400, 192]."""
        mean = (self.embedding(self.ids) * self.used).sum(1) / self.used.sum(1)
        return F.normalize(mean.float(), dim=-1)

    def loss(self, tokens: Tensor, shown: Tensor, sharpness: Tensor | float) -> Tensor:
        """`tokens` [..., 192] should each name image `shown` [...]."""
        scores = F.normalize(tokens.float(), dim=-1) @ self.directions().t() * sharpness
        return F.cross_entropy(scores.flatten(0, -2), shown.flatten())


@dataclass
class TrainingState:
    """The model in training, its tokenizer, and its names."""

    model: Any
    tokenizer: Any
    names: NamingLoss

    @property
    def embedding(self) -> nn.Embedding:
        """The decoder's input embedding, which is its output layer too."""
        return self.model.model.language_model.embed_tokens

    def vision_parameters(self) -> list[nn.Parameter]:
        """The parameters of the vision tower and the embeddings."""
        return [*self.model.model.visual.parameters(), *self.embedding.parameters()]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """The parameters of the decoder's layers."""
        vision = {id(parameter) for parameter in self.vision_parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in vision]


def new_training_state(atlas: Atlas, seed: int) -> TrainingState:
    """A tokenizer for the atlas's names and an untrained model."""
    tokenizer = shape.train_tokenizer(atlas.names)
    model = shape.fresh_model(tokenizer, seed)
    names = [tokenizer(f" {name}").input_ids for name in atlas.names]
    return TrainingState(model, tokenizer, NamingLoss(model.model.language_model.embed_tokens, names))


@torch.no_grad()
def initialize_decoder(state: TrainingState, seed: int) -> None:
    """Give the decoder a start from which it learns to look names up; without it training stays at chance."""
    chance = torch.Generator().manual_seed(stream_seed("embedded", "decoder start", seed))
    decoder = state.model.model.language_model
    depth = shape.TEXT["num_hidden_layers"]
    for layer in decoder.layers:
        for name, weight in layer.named_parameters():
            if weight.ndim == 2:
                residual = (2 * depth) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                weight.normal_(0, residual * weight.shape[1] ** -0.5, generator=chance)
    decoder.norm.weight.fill_(0.2)
    # Queries and keys of the first layer are equal and orthonormal: a word looks for what resembles it.
    attention = decoder.layers[0].self_attn
    width, head = shape.TEXT["hidden_size"], shape.TEXT["hidden_size"] // shape.TEXT["num_attention_heads"]
    for start in range(0, width, head):
        rows = torch.linalg.qr(torch.randn(width, head, generator=chance))[0].t() * LOOKUP
        attention.q_proj.weight[start : start + head] = rows
        attention.k_proj.weight[start : start + head] = rows
    weight = state.embedding.weight
    scale = TEXT_SCALE / weight.pow(2).mean().sqrt()
    weight.mul_(scale)
    last = state.model.model.visual.merger.mlp[2]
    last.weight.mul_(scale)
    last.bias.mul_(scale).add_(torch.randn(width, generator=chance) * IMAGE_MARK * TEXT_SCALE)


def cell_tokens(tokens: Tensor) -> Tensor:
    """Image tokens of whole canvases [B, 81, 192] by cell: [B, 9, 9, 192]."""
    k = shape.TOKENS_PER_CELL_SIDE
    grid = tokens.view(-1, SIDE, k, SIDE, k, tokens.shape[-1]).transpose(2, 3)
    return grid.reshape(len(tokens), SIDE**2, k * k, -1)


def naming_steps(state: TrainingState, sampler: CanvasSampler, stage: Stage, whole: bool) -> Callable[[], Tensor]:
    """Stages 1 and 2: the loss of one step, on single cells or on `whole` canvases."""
    vision = FastVision(state.model, shape.GRID if whole else shape.TOKENS_PER_CELL_SIDE)
    sharpness = state.names.sharpness
    sharpness.data.fill_(SHARPNESS)
    weight = 1.0 if whole else 0.3

    def loss() -> Tensor:
        images, shown, _ = sampler.sample(stage.canvases)
        numbers = torch.from_numpy(shown)  # [B, 9]
        if not whole:
            cells = images.unflatten(2, (SIDE, CELL)).unflatten(1, (SIDE, CELL))  # [B, row, y, column, x, 3]
            images = cells.transpose(2, 3).flatten(0, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = vision(vision.canvas.patches(images))
        tokens = tokens.float()
        by_cell = cell_tokens(tokens) if whole else tokens.view(stage.canvases, SIDE**2, -1, tokens.shape[-1])
        pooled = state.names.loss(by_cell.mean(2), numbers, sharpness.exp())
        each = state.names.loss(by_cell, numbers[..., None].expand(by_cell.shape[:3]), sharpness.exp())
        # Image tokens as long as embeddings: the decoder later meets both alike.
        length = by_cell.pow(2).mean(-1).add(1e-6).sqrt()
        goal = state.embedding.weight.detach().pow(2).mean().sqrt()
        return pooled + weight * each + 10 * (length - goal).pow(2).mean()

    return loss


def answer_loss(hidden: Tensor, labels: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy where a label stands, and the share of those labels that were the arg-max."""
    asked = labels != IGNORED
    scores = (hidden[asked] @ embedding.t().to(hidden.dtype)).float()
    return F.cross_entropy(scores, labels[asked]), (scores.argmax(-1) == labels[asked]).float().mean()


def question_steps(
    state: TrainingState, sampler: CanvasSampler, stage: Stage, report: dict[str, float]
) -> Callable[[], Tensor]:
    """Stages 3 and 4: the loss of one step on packed questions."""
    dataset = Dataset(state.tokenizer, sampler, stage.chained, stage.prompts)
    vision = FastVision(state.model)
    decoder = FastDecoder(state.model, dataset.questions.layout.positions(), dataset.questions.layout.mask())
    image = dataset.questions.layout.image

    def loss() -> Tensor:
        batch = dataset.next_batch(stage.canvases)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled(stage.vision_rate > 0):
                tokens = vision(vision.canvas.patches(batch.images))
            text = state.embedding(batch.ids).to(tokens.dtype)
            hidden = decoder(torch.cat([text[:, : image.start], tokens, text[:, image.stop :]], 1))
            weight = state.embedding.weight
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
            numbers = batch.shown[..., None].expand(by_cell.shape[:3])
            total = total + stage.naming * state.names.loss(by_cell, numbers, 16.0)
        return total

    return loss


def smooth(report: dict[str, float], name: str, value: float) -> None:
    """A running mean for the progress bar."""
    report[name] = 0.95 * report.get(name, value) + 0.05 * value


def optimizer_for(state: TrainingState, stage: Stage) -> torch.optim.AdamW:
    """AdamW on what the stage trains; weight decay on matrices only."""
    groups = []
    naming_only = not (stage.chained or stage.prompts)
    parts = [(state.vision_parameters(), stage.vision_rate)] + (
        [] if naming_only else [(state.decoder_parameters(), 1.0)]
    )
    if naming_only:
        parts.append(([state.names.sharpness], 1.0))
    for parameters, share in parts:
        if share:
            matrices = [p for p in parameters if p.ndim > 1]
            vectors = [p for p in parameters if p.ndim <= 1]
            groups += [{"params": matrices, "share": share, "weight_decay": 0.02}]
            groups += [{"params": vectors, "share": share, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))


def run_stage(state: TrainingState, stage: Stage, atlas: Atlas, render: RenderConfig, seed: int) -> Iterator[float]:
    """Train one stage; yields the loss of every step."""
    number = [s.name for s in STAGES].index(stage.name)
    rng = random_stream("embedded", "training", seed, stage.name)
    sampler = CanvasSampler(atlas, replace(render, noise=render.noise * stage.noise), rng)
    report: dict[str, float] = {}
    if stage.name == "words":
        initialize_decoder(state, seed)
    if stage.chained or stage.prompts:
        step_loss = question_steps(state, sampler, stage, report)
    else:
        step_loss = naming_steps(state, sampler, stage, whole=stage.name != "names")
    optimizer = optimizer_for(state, stage)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    progress = tqdm(range(stage.steps), desc=f"stage {number + 1} of {len(STAGES)}: {stage.name}", mininterval=5)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(stage, step) * group["share"]
        loss = step_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        for parameter in (*state.model.parameters(), *trained):
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


def train(folder: Path, seed: int = 0, steps: int | None = None) -> tuple[TrainingState, dict[str, list[float]]]:
    """Train from nothing; returns the state and the loss of every step by stage.

    After each stage its weights go to <folder>/stages, and the same call goes on from there: a stage's draws and
    optimizer are its own, so the result is the same as without the interruption.
    """
    atlas, render, stages = Atlas(), RenderConfig(noise=TRAINING_NOISE), scaled(steps)
    state = new_training_state(atlas, seed)
    losses: dict[str, list[float]] = {}
    for number, stage in enumerate(stages, start=1):
        # Named after everything that led to it: another recipe does not take these weights for its own.
        way = hashlib.sha256(repr((stages[:number], render, seed)).encode()).hexdigest()[:12]
        done = folder / "stages" / f"{number}-{stage.name}-{way}.safetensors"
        if done.is_file():
            _take_up(state, done)
            continue
        losses[stage.name] = list(run_stage(state, stage, atlas, render, seed))
        done.parent.mkdir(parents=True, exist_ok=True)
        weights = {k: v.contiguous() for k, v in state.model.state_dict().items() if k != "lm_head.weight"}
        partial = done.with_suffix(".partial")
        save_file(weights, partial)
        partial.replace(done)
    return state, losses


def _take_up(state: TrainingState, file: Path) -> None:
    """Give the model the weights of a finished stage; InputError where the file does not hold exactly these."""
    try:
        found = state.model.load_state_dict(load_file(file), strict=False)
        whole = not found.unexpected_keys and set(found.missing_keys) <= {"lm_head.weight"}  # that is the embedding
        reason = "" if whole else "it lacks weights of the model, or has others"
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = error_line(error)
    if reason:
        raise InputError(f"{file} cannot be taken up ({reason}); remove it, and its stage is trained again.")
