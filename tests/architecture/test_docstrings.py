"""Every public method says what it does, itself or in the interface that it implements."""

from __future__ import annotations

import ast

from tests.architecture.sources import sources


def test_public_methods_are_documented_where_they_are_declared() -> None:
    methods = [
        (source.name, owner.name, method)
        for source in sources("src")
        for owner in source.tree.body
        if isinstance(owner, ast.ClassDef) and not owner.name.startswith("_")
        for method in owner.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
    ]
    documented = {method.name for _, _, method in methods if ast.get_docstring(method)}
    silent = [
        f"{name}:{method.lineno} {owner}.{method.name}"
        for name, owner, method in methods
        if method.name not in documented and not any(ast.unparse(d) == "property" for d in method.decorator_list)
    ]
    assert not silent
