"""How signatures are checked while the tests run: shapes where arrays are named, types everywhere, each call once.

jaxtyping's own way binds every call's arguments and checks them twice, which was a fifth of the tests' time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import jaxtyping
from jaxtyping import AbstractArray

_jaxtyped = jaxtyping.jaxtyped


def check_quickly() -> None:
    """Have the modules that `--jaxtyping-packages` names checked by `jaxtyped` below; none is imported yet."""
    jaxtyping.jaxtyped = jaxtyped


def jaxtyped(item: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """Decorate a function with the type checker, and with jaxtyping's scope of shapes where it names arrays."""
    if item is None:
        return partial(jaxtyped, typechecker=typechecker)
    if not isinstance(item, FunctionType):
        return _jaxtyped(item, typechecker=typechecker)
    item.__annotations__ = {name: known(hint, item.__globals__) for name, hint in item.__annotations__.items()}
    checked = typechecker(item)
    has_arrays = any(map(names_arrays, item.__annotations__.values()))
    return _jaxtyped(checked, typechecker=None) if has_arrays else checked


def known(hint: Any, namespace: dict[str, Any]) -> Any:
    """Return what an annotation says; Any where it names what only the type checker imports, or a class to come."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": hint}), namespace, include_extras=True)["it"]
    except NameError:
        return Any


def names_arrays(hint: Any) -> bool:
    """Tell whether an annotation has an array of jaxtyping's in it."""
    is_array = inspect.isclass(hint) and issubclass(hint, AbstractArray)
    return is_array or any(map(names_arrays, get_args(hint)))
