"""Types are checked at every call: by jaxtyping where a shape is named, else by beartype alone, in a tenth of the time.

jaxtyping's import hook asks `jaxtyping.jaxtyped` to wrap each function and dataclass of Limner: `use` puts ours there.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

_by_shape = jaxtyping.jaxtyped


def use() -> None:
    """Let jaxtyping's import hook check what it imports from now on as `checked` does."""
    jaxtyping.jaxtyped = lambda *, typechecker: checked


def checked(what: Any) -> Any:
    """Return a function, or a dataclass with its `__init__`, whose types are checked at every call."""
    if inspect.isclass(what):
        if (
            dataclasses.is_dataclass(what)
            and not getattr(what, "__no_type_check__", False)
            and "__init__" in vars(what)
        ):
            what.__init__ = checked(what.__init__)
        return what
    if not inspect.isfunction(what) or _names_a_shape(what):
        return _by_shape(what, typechecker=beartype)
    return beartype(what)


def _names_a_shape(function: Callable[..., Any]) -> bool:
    """Say whether an annotation has a shape in it, or cannot be read, which jaxtyping takes for `Any`."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # noqa: BLE001
        return True
    return any(map(_has_shape, hints.values()))


def _has_shape(hint: Any) -> bool:
    is_shape = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_shape or any(map(_has_shape, typing.get_args(hint)))
