"""Fewer and larger steps within a model's layers, on its instances, where they agree with transformers' own.

    norms           RMSNorm as one kernel of PyTorch's; transformers' takes five passes over memory, in float32
    padded_width    the vision tower's MLP padded with zeros: rows of 3,420 bfloat16 are 6,840 bytes, which no kernel of
                    a GPU reads 16 bytes at a time; 3,456 are. silu(0) * 0 = 0, so the padding adds nothing.
    last_positions  the decoder's last MLP on the positions whose logits are asked for: last_positions.py
    rotary          the forward of an attention layer of the vision tower compiled: rotary embeddings in one kernel
    activation      the forward of an MLP compiled: silu(gate) * up in one kernel

Each is tried on random values beside what it replaces, and stays off with a reason where the two differ by more than
rounding, or where something else (accelerate) has put a forward on the module. No class is touched; `remove` gives
the model back as it was. Without a GPU only norms and last_positions are worth it.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference.last_positions import ASKED, last_mlp, narrow
from transformers_agci.inference.quick import OF_THE_MODEL
from transformers_agci.inference.vision_tower import TOLERANCE, computed_in

MULTIPLE = 64  # of elements, to which a width is padded: 128 bytes in bfloat16
BOTH = ("weight", "bias")
ALIGNED = 16  # bytes that a kernel reads at a time
COMPILER = "inductor"
ROWS = 40  # of the random values
PROMPTS = (2, ROWS // 2)  # the same for a layer of the decoder, which sees prompts
LARGE, SMALL = (
    300.0,
    1e-3,
)  # times the random values: squares that float16 does not hold, and those near a norm's epsilon


@dataclass(frozen=True)
class Kernels:
    """What is on, and of each of the others why it is not."""

    on: tuple[str, ...] = ()
    reasons: tuple[tuple[str, str], ...] = ()
    remove: Callable[[], None] = lambda: None


class Disagreement(Exception):
    """Why a way must stay off."""


def use_kernels(model: Any, names: Sequence[str] | frozenset[str]) -> Kernels:
    """Put on what was asked for, fits and agrees."""
    on, reasons = [], []
    with contextlib.ExitStack() as put_on:  # all or, where something else goes wrong, none
        for name in OF_THE_MODEL:
            if name not in names:
                continue
            try:
                put_on.callback(_PUT_ON[name](model))
                on.append(name)
            except Disagreement as why:
                reasons.append((name, str(why)))
        return Kernels(tuple(on), tuple(reasons), put_on.pop_all().close)


# --- norms ---


def _norms(model: Any) -> Callable[[], None]:
    found = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm") and _is_free(module)]
    if not found:
        raise Disagreement("this model has no RMSNorm of transformers'")
    checked: dict[Any, str | None] = {}
    fitting = []
    for module in found:
        kind = (type(module), tuple(module.weight.shape), module.weight.dtype, module.weight.device)
        if kind not in checked:
            checked[kind] = _apart_at_any_size(
                module, partial(_put_forward, module, _rms_norm), module.weight.shape[-1]
            )
        if checked[kind] is None:
            fitting.append(module)
    if not fitting:
        raise Disagreement(next(reason for reason in checked.values() if reason))
    return _all([_put_forward(module, _rms_norm) for module in fitting])


def _is_free(module: Any) -> bool:
    """Whether nothing else runs it, and its weight is there."""
    weight = getattr(module, "weight", None)
    return "forward" not in vars(module) and weight is not None and weight.dim() == 1 and not weight.is_meta


def _rms_norm(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    epsilon = getattr(module, "variance_epsilon", None)
    epsilon = module.eps if epsilon is None else epsilon
    return nn.functional.rms_norm(hidden_states, module.weight.shape, module.weight, epsilon)


# --- width ---


def _padded_width(model: Any) -> Callable[[], None]:
    layers = [mlp for mlp in _vision_mlps(model) if _is_gated(mlp)]
    if not layers:
        raise Disagreement("this family's vision tower has no gated MLP")
    weight = layers[0].gate_proj.weight
    if weight.device.type != "cuda":
        raise Disagreement(f"a width matters to a GPU, and the vision tower is on {weight.device.type}")
    return pad_widths(layers)


def pad_widths(layers: Sequence[Any]) -> Callable[[], None]:
    """Pad gated MLPs whose rows are not aligned; Disagreement where that cannot be done or changes the result."""
    weight = layers[0].gate_proj.weight
    width = weight.shape[0]
    if width * weight.element_size() % ALIGNED == 0:
        raise Disagreement(f"its width of {width} is aligned already")
    if any(type(part) is not nn.Linear for mlp in layers for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)):
        raise Disagreement("its matrices are quantized")
    more = -width % MULTIPLE
    reason = _apart(layers[0], lambda: _pad(layers[0], more), layers[0].gate_proj.in_features)
    if reason is not None:
        raise Disagreement(reason)
    return _all([_pad(mlp, more) for mlp in layers])


def _pad(mlp: Any, more: int) -> Callable[[], None]:
    """`more` zeros: rows and biases of gate and up, columns of down. What is saved of the model is without them."""
    pads = {"gate_proj": (0, 0, 0, more), "up_proj": (0, 0, 0, more), "down_proj": (0, more)}
    found = {name: (getattr(mlp, name).weight, getattr(mlp, name).bias) for name in pads}
    for name, pad in pads.items():
        linear = getattr(mlp, name)
        linear.weight = _padded(linear.weight, pad)
        if linear.bias is not None and name != "down_proj":
            linear.bias = _padded(linear.bias, (0, more))
        linear.out_features, linear.in_features = linear.weight.shape
    parts = (
        (f"{name}.{part}", tensor)
        for name, of_both in found.items()
        for part, tensor in zip(BOTH, of_both, strict=True)
    )
    shapes = {name: tensor.shape for name, tensor in parts if tensor is not None}
    hook = mlp.register_state_dict_post_hook(partial(_as_found, shapes))

    def remove() -> None:
        hook.remove()
        for name, (weight, bias) in found.items():
            linear = getattr(mlp, name)
            linear.weight, linear.bias = weight, bias
            linear.out_features, linear.in_features = weight.shape

    return remove


def _padded(found: torch.Tensor, pad: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(nn.functional.pad(found.data, pad), requires_grad=found.requires_grad)


def _as_found(shapes: Mapping[str, torch.Size], mlp: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Cut what `state_dict` gives back to the shapes that config.json speaks of."""
    for name, shape in shapes.items():
        state[f"{prefix}{name}"] = state[f"{prefix}{name}"][tuple(slice(size) for size in shape)]


# --- what nobody asks for ---


def _last_positions(model: Any) -> Callable[[], None]:
    mlp = last_mlp(model)
    if mlp is None or not _is_gated(mlp) or "forward" in vars(mlp):
        raise Disagreement("the decoder's last layer has no gated MLP, or something else runs it")
    if ASKED not in inspect.signature(model.forward).parameters:
        raise Disagreement(f"{type(model).__name__} cannot be asked for some of the logits")
    reason = _apart(mlp, lambda: _each_position_alone(mlp), mlp.gate_proj.in_features, rows=PROMPTS)
    if reason is not None:
        raise Disagreement(reason)
    return narrow(model, mlp)


def _each_position_alone(mlp: Any) -> Callable[[], None]:
    """For the comparison: one position after the other."""
    stock = mlp.forward
    return _put_forward(mlp, lambda _, x: torch.cat([stock(position) for position in x.split(1, dim=1)], dim=1))


# --- compiled forwards ---


def _rotary(model: Any) -> Callable[[], None]:
    """Compiled together: the projection, the rotary embeddings, the way into the attention, which stays as it is."""
    from transformers_agci.inference import vision_tower

    layers = [layer for layer in vision_tower.packed_layers(model) if "forward" not in vars(layer)]
    if not layers:
        raise Disagreement("this family's vision tower has no packed attention layers, or something else runs them")
    _need_gpu(layers[0].proj.weight.device)
    if layers[0].config._attn_implementation != vision_tower.NAME:
        raise Disagreement(
            "the vision tower attends to one segment after the other, as transformers' own does: a compiler unrolls "
            "that loop, which takes longer than it saves"
        )
    reason = vision_tower.differs_from_itself(layers[0], lambda: _compile(layers[0]))
    if reason is not None:
        raise Disagreement(reason)
    return _all([_compile(layer) for layer in layers])


def _activation(model: Any) -> Callable[[], None]:
    decoder: Any = decoder_of(find_vlm(model))
    text = [layer.mlp for layer in getattr(decoder, "layers", ()) if hasattr(layer, "mlp")]
    seen = {**dict.fromkeys(text, PROMPTS), **dict.fromkeys(_vision_mlps(model), (ROWS,))}  # the shape of their rows
    layers = [mlp for mlp in seen if _is_gated(mlp) and "forward" not in vars(mlp)]
    if not layers:
        raise Disagreement("this model has no gated MLP, or something else runs it")
    _need_gpu(layers[0].down_proj.weight.device)
    fitting, reason = [], None
    for mlp in {type(mlp): mlp for mlp in layers}.values():
        apart = _apart(mlp, partial(_compile, mlp), mlp.gate_proj.in_features, rows=seen[mlp])
        reason = reason or apart
        fitting += [other for other in layers if type(other) is type(mlp) and apart is None]
    if not fitting:
        raise Disagreement(str(reason))
    return _all([_compile(mlp) for mlp in fitting])


def _need_gpu(device: torch.device) -> None:
    if device.type != "cuda":
        raise Disagreement(f"compiling takes longer than it saves on {device.type}")


def _compile(module: Any) -> Callable[[], None]:
    """This instance's forward as torch.compile makes it, for any number of rows; equal layers share one compilation,
    and a copy of the model computes with its own weights.
    """
    return _put_forward(module, torch.compile(type(module).forward, dynamic=True, backend=COMPILER))


# --- all of them ---


def _vision_mlps(model: Any) -> Iterator[Any]:
    blocks = getattr(getattr(find_vlm(model), "visual", None), "blocks", ())
    return (block.mlp for block in blocks if hasattr(block, "mlp"))


def _is_gated(mlp: Any) -> bool:
    return all(hasattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))


def _put_forward(module: Any, forward: Callable[..., torch.Tensor]) -> Callable[[], None]:
    """Give this instance, and copies of it, another forward."""
    vars(module)["forward"] = MethodType(forward, module)
    return lambda: vars(module).pop("forward", None)


def _all(removers: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def remove() -> None:
        for undo in removers:
            undo()

    return remove


def _apart_at_any_size(module: Any, put_on: Callable[[], Callable[[], None]], width: int) -> str | None:
    """The first reason among random rows of several sizes."""
    return next((why for scale in (1.0, LARGE, SMALL) if (why := _apart(module, put_on, width, scale))), None)


def _apart(
    module: Any,
    put_on: Callable[[], Callable[[], None]],
    width: int,
    scale: float = 1.0,
    rows: tuple[int, ...] = (ROWS,),
) -> str | None:
    """Why the replacement must stay off, or None: both run on the same random rows of this width."""
    weight = next(module.parameters())
    random = scale * torch.randn(*rows, width, generator=torch.Generator().manual_seed(0))
    dtype = computed_in(weight.dtype)
    with torch.inference_mode(), contextlib.ExitStack() as put_off:
        try:
            given = random.to(weight.device, dtype, copy=True)  # made here, as in a run: others are compiled once more
            stock = module(given).float()
            put_off.callback(put_on())
            ours = module(given).float()
        except Exception as error:  # whatever a compiler raises on a machine that it does not like
            return f"it raises {type(error).__name__} ({' '.join(str(error).split())[:200]})"
    apart = float((ours - stock).abs().max() / stock.abs().max())
    if not apart <= TOLERANCE[dtype]:
        return f"it differs from transformers' own by {apart:.1e} of the largest value"
    return None


_PUT_ON: dict[str, Callable[[Any], Callable[[], None]]] = {
    "norms": _norms,
    "padded_width": _padded_width,
    "last_positions": _last_positions,
    "rotary": _rotary,
    "activation": _activation,
}
