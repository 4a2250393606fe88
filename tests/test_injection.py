"""The formula and its controls, by hand and against a slow version in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_agci.method import names
from transformers_agci.method.injection import (
    METHODS,
    SEEDED,
    inject_global_context,
    inject_random,
    inject_uniform,
    injection_of,
    random_direction,
)


def test_by_hand() -> None:
    """Tokens (1,0) and (0,1): g = (1/2, 1/2), cos = 1/sqrt 2, so each gets (1 - 0.7071) * 1/2 = 0.1464 more."""
    tokens = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    dose = (1 - 1 / math.sqrt(2)) / 2
    expected = torch.tensor([[1 + dose, dose], [dose, 1 + dose]])
    torch.testing.assert_close(inject_global_context(tokens, 1.0), expected)


def test_parallel_orthogonal_opposite() -> None:
    """With g given as (2, 0): a parallel token stays, an orthogonal one gets lambda g, an opposite one 2 lambda g."""
    tokens = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    expected = torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(inject_global_context(tokens, 0.5, torch.tensor([2.0, 0.0])), expected)


def slow(tokens: list[list[float]], lam: float, method: str) -> list[list[float]]:
    """Loops over Python floats, straight from the definition."""
    n, dim = len(tokens), len(tokens[0])
    g = [sum(token[d] for token in tokens) / n for d in range(dim)]

    def norm(v: list[float]) -> float:
        return max(math.sqrt(sum(x * x for x in v)), 1e-8)

    weights = [1 - sum(a * b for a, b in zip(token, g)) / (norm(token) * norm(g)) for token in tokens]
    if method == "uniform":
        weights = [sum(weights) / n] * n
    direction = g
    if method == "random":
        length = math.sqrt(sum(x * x for x in g))
        direction = [length * r for r in random_direction(dim, 0).tolist()]
    return [[x + lam * w * d for x, d in zip(token, direction)] for token, w in zip(tokens, weights)]


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 6).flatmap(
        lambda dim: st.lists(st.lists(st.floats(-10, 10), min_size=dim, max_size=dim), min_size=1, max_size=7)
    ),
    lam=st.floats(0, 4),
    method=st.sampled_from(sorted(METHODS)),
)
def test_against_slow_version(tokens: list[list[float]], lam: float, method: str) -> None:
    # Below 1e-8 the two versions bound the norms in different places, and both results are the token itself.
    tokens = [[x if abs(x) > 1e-3 else 0.0 for x in token] for token in tokens]
    result = METHODS[method](torch.tensor(tokens, dtype=torch.float64), lam)
    mean = torch.tensor(tokens, dtype=torch.float64).mean(0)
    if 0 < float(mean.norm()) < 1e-6:
        return
    expected = torch.tensor(slow(tokens, lam, method), dtype=torch.float64)
    torch.testing.assert_close(result, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_dtype_is_kept_and_arithmetic_is_wide(dtype: torch.dtype, method: str) -> None:
    tokens = (torch.randn(50, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3).to(dtype)
    result = METHODS[method](tokens, 0.7)
    wide = METHODS[method](tokens.double(), 0.7)
    assert result.dtype == dtype
    # One rounding to dtype at the end, nothing before it beyond float32.
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(result.double(), wide, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(
    "tokens",
    [torch.zeros(4, 8), torch.randn(1, 8), torch.ones(5, 8), torch.cat([torch.zeros(2, 8), torch.randn(2, 8)])],
    ids=["all zero", "one token", "identical", "some zero"],
)
def test_degenerate_tokens_are_finite_with_gradients(tokens: torch.Tensor, method: str) -> None:
    tokens = tokens.clone().requires_grad_()
    result = METHODS[method](tokens, 0.5)
    result.sum().backward()
    assert torch.isfinite(result).all()
    assert torch.isfinite(tokens.grad).all()


def test_one_token_and_identical_tokens_stay_under_agci() -> None:
    for tokens in (torch.randn(1, 8), torch.ones(5, 8)):
        torch.testing.assert_close(inject_global_context(tokens, 1.0), tokens)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_gradients(method: str) -> None:
    tokens = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: METHODS[method](t, 0.6), tokens)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_lambda_zero_is_the_input(method: str) -> None:
    tokens = torch.randn(4, 3)
    assert METHODS[method](tokens, 0.0) is tokens


def test_controls_move_as_far_as_agci() -> None:
    tokens = torch.randn(40, 16, dtype=torch.float64) + 1
    moved = {name: inject(tokens, 0.5) - tokens for name, inject in METHODS.items()}
    torch.testing.assert_close(moved["random"].norm(dim=1), moved["agci"].norm(dim=1))
    torch.testing.assert_close(moved["uniform"].mean(0), moved["agci"].mean(0))
    torch.testing.assert_close(moved["uniform"], moved["uniform"][:1].expand_as(moved["uniform"]))


def test_noise_moves_every_token_along_a_direction_of_its_own() -> None:
    tokens = torch.randn(40, 16, dtype=torch.float64) + 1
    moved = {name: injection_of(name)(tokens, 0.5) - tokens for name in ("agci", "noise", "noise-1")}
    torch.testing.assert_close(moved["noise"].norm(dim=1), moved["agci"].norm(dim=1))
    unit = moved["noise"] / moved["noise"].norm(dim=1, keepdim=True)
    assert (unit @ unit.T).triu(1).abs().max() < 0.95
    assert not torch.allclose(moved["noise"], moved["noise-1"])


def test_shuffled_gives_the_doses_to_other_tokens() -> None:
    tokens = torch.randn(40, 16, dtype=torch.float64) + 1
    moved = {name: injection_of(name)(tokens, 0.5) - tokens for name in ("agci", "shuffled", "shuffled-1")}
    doses = {name: moved[name].norm(dim=1) for name in moved}
    torch.testing.assert_close(doses["shuffled"].sort().values, doses["agci"].sort().values)
    assert not torch.allclose(doses["shuffled"], doses["agci"])
    assert not torch.allclose(doses["shuffled"], doses["shuffled-1"])
    for name in moved:
        assert injection_of(name)(tokens, 0.0) is tokens


def test_draws_do_not_depend_on_the_default_device() -> None:
    tokens = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    expected = [method(tokens, 0.5, seed=1) for method in SEEDED.values()]
    with torch.device("meta"):  # as torch.set_default_device("cuda")
        found = [method(tokens, 0.5, seed=1) for method in SEEDED.values()]
    assert all(map(torch.equal, found, expected))


def test_names_of_methods_carry_a_seed() -> None:
    assert (*SEEDED, names.OTHER) == names.SEEDED
    assert {*METHODS, *SEEDED, names.OTHER} == {"agci", *names.CONTROLS}  # what help and messages list
    tokens = torch.randn(5, 16)
    torch.testing.assert_close(injection_of("random-3")(tokens, 1.0), inject_random(tokens, 1.0, seed=3))
    assert injection_of("random") is METHODS["random"]
    for name in ("", "agci-1", "uniform-0", "random-", "random-01", "random--1", "random-x", "nothing"):
        assert injection_of(name) is None


def test_random_direction_is_one_per_seed() -> None:
    tokens = torch.randn(5, 16, dtype=torch.float64)
    first, again, other = (inject_random(tokens, 1.0, seed=s) - tokens for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    elsewhere = inject_random(torch.randn(9, 16, dtype=torch.float64) + 5, 1.0)
    assert elsewhere.shape == (9, 16)
    unit = first / first.norm(dim=1, keepdim=True)
    torch.testing.assert_close(unit, random_direction(16, 0).expand_as(unit))


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf"), "0.5", "abc", None, True, [0.5]])
def test_bad_lambda(bad: object) -> None:
    for inject in (inject_global_context, inject_uniform, inject_random):
        with pytest.raises(ValueError, match="finite number >= 0") as error:
            inject(torch.ones(2, 2), bad)
        assert repr(bad) in str(error.value)


@pytest.mark.parametrize("bad", [torch.ones(2), torch.ones(2, 3, 4), torch.ones(0, 3), torch.ones(2, 3).long()])
def test_bad_tokens(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        inject_global_context(bad, 0.5)
