"""The formula of AGCI and its controls, as pure functions on the tokens of one image.

Notation of the paper (arXiv 2509.21984): v_1..v_N are the image tokens in the decoder's embedding space,
g = (1/N) sum_i v_i is the global context, lambda is the strength.
"""

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch.nn.functional import cosine_similarity

from transformers_agci.errors import InputError, short
from transformers_agci.method.lam import validate_lambda

EPS = 1e-8  # lower bound of the norms in the cosine, as in the published code


def inject_global_context(tokens: torch.Tensor, lam: float, context: torch.Tensor | None = None) -> torch.Tensor:
    """AGCI: v_i + lambda * (1 - cos(v_i, g)) * g for the N tokens of one image.

    A token parallel to g stays, an orthogonal one gets lambda * g, an opposite one 2 * lambda * g.
    Computed in float32 (float64 stays float64), cast back once; differentiable; finite for zero vectors.

    Args:
        tokens: [N, D], N >= 1, floating point: the image tokens after projector or merger.
        lam: lambda, finite and >= 0; 0 returns `tokens` itself.
        context: [D], used as g in place of the mean of `tokens` (for means over several images).

    Returns:
        [N, D] with the dtype and device of `tokens`.

    Raises:
        ValueError: lambda out of range, or tokens not [N, D] floating point.

    >>> inject_global_context(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.5)
    tensor([[1., 0.],
            [1., 0.]])
    """
    return _inject(_agci_delta, tokens, lam, context)


def inject_uniform(tokens: torch.Tensor, lam: float, context: torch.Tensor | None = None) -> torch.Tensor:
    """Control without the adaptive weight: v_i + lambda * mean_i(1 - cos(v_i, g)) * g.

    Every token gets the same dose, the mean of what AGCI gives. Arguments, result and errors as in
    `inject_global_context`.
    """
    return _inject(_uniform_delta, tokens, lam, context)


def inject_random(
    tokens: torch.Tensor, lam: float, context: torch.Tensor | None = None, *, seed: int = 0
) -> torch.Tensor:
    """Control with a meaningless direction: v_i + lambda * (1 - cos(v_i, g)) * |g| * r.

    Every token moves as far as under AGCI, but along r, one random unit direction that depends on `seed` and D only
    and so is the same for every image. Arguments, result and errors as in `inject_global_context`.
    """
    return _inject(functools.partial(_random_delta, seed=seed), tokens, lam, context)


def inject_noise(
    tokens: torch.Tensor, lam: float, context: torch.Tensor | None = None, *, seed: int = 0
) -> torch.Tensor:
    """Control without any common direction: v_i + lambda * (1 - cos(v_i, g)) * |g| * r_i.

    Every token moves as far as under AGCI, along a random unit direction of its own, which depends on `seed`, i, N and
    D only. Arguments, result and errors as in `inject_global_context`.
    """
    return _inject(functools.partial(_noise_delta, seed=seed), tokens, lam, context)


def inject_shuffled(
    tokens: torch.Tensor, lam: float, context: torch.Tensor | None = None, *, seed: int = 0
) -> torch.Tensor:
    """Control with the weights on the wrong tokens: v_i + lambda * (1 - cos(v_s(i), g)) * g, s a random order.

    The image gets AGCI's doses, but not each token its own. s depends on `seed` and N only. Arguments, result and
    errors as in `inject_global_context`.
    """
    return _inject(functools.partial(_shuffled_delta, seed=seed), tokens, lam, context)


# What `attach(method=...)` and the commands accept (names.py has the names), and what of it takes a seed: "random-1" is
# `inject_random` with seed 1.
METHODS: Mapping[str, Callable[..., torch.Tensor]] = MappingProxyType(
    {"agci": inject_global_context, "uniform": inject_uniform, "random": inject_random}
)

SEEDED: Mapping[str, Callable[..., torch.Tensor]] = MappingProxyType(
    {"random": inject_random, "noise": inject_noise, "shuffled": inject_shuffled}
)
_SEED = re.compile(r"0|[1-9][0-9]{0,8}")


def injection_of(name: str) -> Callable[..., torch.Tensor] | None:
    """The function of AGCI, of a control, or of a control that takes a seed with "-SEED" behind its name.

    >>> injection_of("random-1").keywords
    {'seed': 1}
    >>> injection_of("agci-1") is None
    True
    """
    if name in METHODS:
        return METHODS[name]
    control, mark, seed = name.partition("-")
    if control not in SEEDED or (mark and not _SEED.fullmatch(seed)):
        return None
    return functools.partial(SEEDED[control], seed=int(seed or 0))


def global_context(tokens: torch.Tensor) -> torch.Tensor:
    """g, the mean of tokens [N, D] over N, as [D] in the dtype the formula computes in (float32 or float64)."""
    return _widen(tokens).mean(dim=0)


def random_direction(dim: int, seed: int) -> torch.Tensor:
    """r [D] float64 on the CPU: a Gaussian direction of length 1, the same in every process for equal arguments."""
    draw = _drawn(seed, dim)
    return draw.div(draw.norm())


def _drawn(seed: int, *shape: int) -> torch.Tensor:
    """Gaussian numbers, on the CPU whatever torch.set_default_device says: so they are the same on every machine."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator, device="cpu")


def _inject(
    delta: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    tokens: torch.Tensor,
    lam: float,
    context: torch.Tensor | None,
) -> torch.Tensor:
    lam = validate_lambda(lam, "lam")
    if not isinstance(tokens, torch.Tensor):
        raise InputError(f"tokens must be a tensor [N, D], the tokens of one image, but are {short(tokens)}.")
    if tokens.ndim != 2 or tokens.shape[0] == 0 or not tokens.is_floating_point():
        raise ValueError(
            f"tokens must be [N, D] floating point with N >= 1, the tokens of one image, but they are "
            f"{list(tokens.shape)} {tokens.dtype}."
        )
    if lam == 0:
        return tokens
    wide = _widen(tokens)
    g = global_context(tokens) if context is None else context.to(wide)
    updated: torch.Tensor = (wide + lam * delta(wide, g)).to(tokens.dtype)
    return updated


def _agci_delta(tokens: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return _distance(tokens, g) * g


def _uniform_delta(tokens: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return _distance(tokens, g).mean(dim=0, keepdim=True) * g


def _random_delta(tokens: torch.Tensor, g: torch.Tensor, *, seed: int) -> torch.Tensor:
    length: torch.Tensor = g.norm()
    return _distance(tokens, g) * length * random_direction(g.shape[0], seed).to(g)


def _noise_delta(tokens: torch.Tensor, g: torch.Tensor, *, seed: int) -> torch.Tensor:
    draw = _drawn(seed, *tokens.shape)
    direction = draw.div(draw.norm(dim=-1, keepdim=True)).to(g)
    delta: torch.Tensor = _distance(tokens, g) * g.norm() * direction
    return delta


def _shuffled_delta(tokens: torch.Tensor, g: torch.Tensor, *, seed: int) -> torch.Tensor:
    order = torch.randperm(tokens.shape[0], generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    delta: torch.Tensor = _distance(tokens, g)[order.to(tokens.device)] * g
    return delta


def _distance(tokens: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """1 - cos(v_i, g) as [N, 1], in 0..2."""
    cos: torch.Tensor = cosine_similarity(tokens, g.unsqueeze(0), dim=-1, eps=EPS)
    distance: torch.Tensor = 1 - cos
    return distance.unsqueeze(-1)


def _widen(tokens: torch.Tensor) -> torch.Tensor:
    # In bfloat16 a cosine near 1 leaves only two or three distinct weights 1 - cos.
    return tokens if tokens.dtype == torch.float64 else tokens.float()
