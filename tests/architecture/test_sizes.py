"""The size budgets: a file of at most 400 lines, a function of at most 60."""

from __future__ import annotations

import ast

from tests.architecture.sources import OURS, sources

FILE_LINES = 400
FUNCTION_LINES = 60


def test_files_stay_within_their_budget() -> None:
    long = [f"{s.name}: {len(s.lines)} lines" for s in sources(*OURS) if len(s.lines) > FILE_LINES]
    assert not long, f"more than {FILE_LINES} lines, split them: {long}"


def test_functions_stay_within_their_budget() -> None:
    long = [
        f"{source.name}:{function.lineno} {function.name}: {length(function)} lines"
        for source in sources(*OURS)
        for function in source.functions()
        if length(function) > FUNCTION_LINES
    ]
    assert not long, f"more than {FUNCTION_LINES} lines, split them: {long}"


def test_length_counts_signature_and_docstring() -> None:
    tree = ast.parse('def f(\n    a,\n):\n    """Doc."""\n    return a\n')
    assert length(tree.body[0]) == 5


def length(node: ast.stmt) -> int:
    """Return how many lines a statement takes."""
    return (node.end_lineno or node.lineno) - node.lineno + 1
