"""Teach Stable Diffusion a subject or a style from a handful of pictures, and prove what changed."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limner.comparing import compare
    from limner.demonstration import demo
    from limner.distilling import distill
    from limner.live import live
    from limner.many import resume_many, train_many
    from limner.measuring import measure
    from limner.run import check, evaluate, generate, report, resume, train
    from limner.sweeping import sweep

__all__ = [
    "check",
    "compare",
    "demo",
    "distill",
    "evaluate",
    "generate",
    "live",
    "measure",
    "report",
    "resume",
    "resume_many",
    "sweep",
    "train",
    "train_many",
]
PLACES = {
    "compare": "comparing",
    "demo": "demonstration",
    "distill": "distilling",
    "live": "live",
    "measure": "measuring",
    "resume_many": "many",
    "sweep": "sweeping",
    "train_many": "many",
}
"""Where the verbs are that are not in `run`."""


def _verb(name: str) -> property:
    def get(_module: types.ModuleType) -> Any:
        import importlib

        return getattr(importlib.import_module(f"limner.{PLACES.get(name, 'run')}"), name)

    return property(get, lambda _module, _value: None)


class _Limner(types.ModuleType):
    """This module, with its verbs as properties.

    `import limner` alone then loads neither torch nor diffusers, and the folders `train/`, `generate/` ... do not take
    the place of the functions of the same name when Python sets an imported submodule as an attribute.
    """


for _name in __all__:
    setattr(_Limner, _name, _verb(_name))
sys.modules[__name__].__class__ = _Limner
