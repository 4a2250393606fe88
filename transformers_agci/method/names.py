"""The names of AGCI and its controls, without torch: what the help of commands and messages list.

`method/injection.py` has the function of each; `method/rivals/` has the methods of others.
"""

CONTROLS = ("uniform", "random", "noise", "shuffled")
SEEDED = ("random", "noise", "shuffled")  # controls that draw something: "random-1" is "random" with seed 1
