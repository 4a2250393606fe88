"""Rivals: methods by others that change nothing but a live model, behind the same switch as AGCI.

`RIVALS` is the table, one file each; it loads no torch. `handle.py` puts one on a model.
"""

from collections.abc import Mapping
from types import MappingProxyType

from transformers_agci.method.rivals import adaptvis, bapa, cca, cca_positions, flat, pai, uac, vcd
from transformers_agci.method.rivals.declaration import Rival

__all__ = ["RIVALS", "Rival"]

_FILES = (bapa, flat, cca, cca_positions, adaptvis, pai, uac, vcd)

RIVALS: Mapping[str, Rival] = MappingProxyType({module.RIVAL.name: module.RIVAL for module in _FILES})
