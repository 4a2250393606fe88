"""The names of AGCI and its controls, without torch: what the help of commands and messages list.

`method/injection.py` has the function of each; `method/rivals/` has the methods of others.
"""

OTHER = "other"  # AGCI with g of another image, which a run draws and encodes (inference/other_image.py)
CONTROLS = ("uniform", "random", "noise", "shuffled", OTHER)
SEEDED = ("random", "noise", "shuffled", OTHER)  # controls that draw something: "random-1" is "random" with seed 1
