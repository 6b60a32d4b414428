"""How signatures are checked while the tests run: shapes where arrays are named, types everywhere, each call once.

jaxtyping's own way binds every call's arguments and checks them twice, which was a fifth of the tests' time.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args

import jaxtyping
from jaxtyping import AbstractArray, AbstractDtype

NAME = re.compile(r"[A-Za-z_]\w*")
_jaxtyped = jaxtyping.jaxtyped


def check_quickly() -> None:
    """Have the modules that `--jaxtyping-packages` names checked by `jaxtyped` below; none is imported yet."""
    jaxtyping.jaxtyped = jaxtyped


def jaxtyped(item: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """Decorate a function with the type checker, and with jaxtyping's scope of shapes where it names arrays."""
    if item is None:
        return partial(jaxtyped, typechecker=typechecker)
    if not inspect.isfunction(item):
        return _jaxtyped(item, typechecker=typechecker)
    checked = typechecker(item)
    arrays = any(names_arrays(annotation, item.__globals__) for annotation in item.__annotations__.values())
    return _jaxtyped(checked, typechecker=None) if arrays else checked


def names_arrays(annotation: Any, namespace: Mapping[str, Any]) -> bool:
    """Tell whether an annotation, in words or evaluated, has an array of jaxtyping's in it."""
    if isinstance(annotation, str):
        known = [namespace[name] for name in NAME.findall(annotation) if name in namespace]
        return any(names_arrays(one, namespace) for one in known if not isinstance(one, str))
    is_array = inspect.isclass(annotation) and issubclass(annotation, AbstractArray | AbstractDtype)
    return is_array or any(names_arrays(one, namespace) for one in get_args(annotation))
