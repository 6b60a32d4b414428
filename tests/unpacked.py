"""A base whose layers are stored in fewer bits, with the weights that they compute with in full."""

from __future__ import annotations

import copy

from limner.families.family import Family
from limner.families.storage import Stored


def unpacked(family: Family) -> Family:
    """Give every layer the weights that it computes with, as they lie in memory elsewhere."""
    for module in (layer for root in family.modules.values() for layer in root.modules()):
        weight = module._parameters.get("weight")
        if isinstance(weight, Stored):
            module.register_parameter("weight", copy.deepcopy(weight))
    return family
