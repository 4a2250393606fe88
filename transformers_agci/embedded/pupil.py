"""The model in training, how image tokens are compared with names, and the start that lets the decoder learn."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transformers_agci.embedded import architecture as shape
from transformers_agci.embedded.architecture import fresh_model
from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.vocabulary import train_tokenizer

TEXT_SCALE = 0.3  # root mean square of embeddings and image tokens when the decoder starts to learn
IMAGE_MARK = 0.7  # a constant random offset on every image token, in TEXT_SCALE: tells them from words
LOOKUP = 1.5  # scale of the first layer's equal query and key weights: like finds like
SHARPNESS = 2.5  # where the naming stages start; they learn it


class Naming:
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
class Pupil:
    """The model in training, its tokenizer, and its names."""

    model: Any
    tokenizer: Any
    names: Naming

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.model.language_model.embed_tokens

    def seeing(self) -> list[nn.Parameter]:
        """The parameters of the vision tower and the embeddings."""
        return [*self.model.model.visual.parameters(), *self.embedding.parameters()]

    def thinking(self) -> list[nn.Parameter]:
        """The parameters of the decoder's layers."""
        seeing = {id(parameter) for parameter in self.seeing()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in seeing]


def new_pupil(atlas: Atlas, seed: int) -> Pupil:
    tokenizer = train_tokenizer(atlas.names)
    model = fresh_model(tokenizer, seed)
    names = [tokenizer(f" {name}").input_ids for name in atlas.names]
    return Pupil(model, tokenizer, Naming(model.model.language_model.embed_tokens, names))


@torch.no_grad()
def open_the_decoder(pupil: Pupil, seed: int) -> None:
    """Give the decoder a start from which it learns to look names up; without it training stays at chance."""
    chance = torch.Generator().manual_seed(seed)
    decoder = pupil.model.model.language_model
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
    weight = pupil.embedding.weight
    scale = TEXT_SCALE / weight.pow(2).mean().sqrt()
    weight.mul_(scale)
    last = pupil.model.model.visual.merger.mlp[2]
    last.weight.mul_(scale)
    last.bias.mul_(scale).add_(torch.randn(width, generator=chance) * IMAGE_MARK * TEXT_SCALE)
