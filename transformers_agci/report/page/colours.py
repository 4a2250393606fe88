"""The maps' colours as style-sheet classes: the page's policy allows no style attributes that could name them."""

import numpy as np

from transformers_agci.report.heatmap import Scale, ink_on

STEPS = 64  # of a colour map: neighbours cannot be told apart by eye


def colour_class(value: float, scale: Scale) -> str:
    """The class of a value on a scale: "a0" to "a63" for amounts, "d0" to "d63" for differences; "blank" for NaN.

    >>> colour_class(0.0, Scale(0, 1, "")), colour_class(2.0, Scale(-1, 1, "", diverging=True))
    ('a0', 'd63')
    """
    if not np.isfinite(value):
        return "blank"
    share = (value - scale.low) / ((scale.high - scale.low) or 1)
    step = int(np.clip(np.floor(share * STEPS), 0, STEPS - 1))
    return f"{'d' if scale.diverging else 'a'}{step}"


def style_sheet() -> str:
    """A rule per class: the colour, and black or white ink, whichever is readable on it."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    rules = []
    for letter, diverging in (("a", False), ("d", True)):
        colours = colormaps[Scale(0, 1, "", diverging).colours](np.linspace(0, 1, STEPS))
        for step, colour in enumerate(colours):
            rules.append(f".{letter}{step}{{background:{to_hex(colour)};fill:{to_hex(colour)};color:{ink_on(colour)}}}")
    return "\n".join(rules)
