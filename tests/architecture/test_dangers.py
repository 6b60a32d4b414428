"""What no file may do: unpickle, run remote code, start a shell, evaluate text, leave old code or open ends behind."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.sources import OURS, keyword, sources

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
EVALUATORS = {"eval", "exec", "compile", "__import__"}


def dangers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and reason of everything in a module that could run somebody else's code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if PICKLES & {name.split(".")[0] for name in named}:
                yield node.lineno, "unpickles: use safetensors or JSON"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {argument.arg for argument in node.keywords}
            if called == "torch.load" and keyword(node, "weights_only") is not True:
                yield node.lineno, "torch.load without weights_only=True"
            if called.endswith(("np.load", "numpy.load")) and keyword(node, "allow_pickle"):
                yield node.lineno, "allow_pickle"
            if "trust_remote_code" in given:
                yield node.lineno, "trust_remote_code"
            if called in SHELLS or keyword(node, "shell") not in (None, False):
                yield node.lineno, "starts a shell: pass a list of arguments"
            if called in EVALUATORS:
                yield node.lineno, f"{called}() of text"


@pytest.mark.parametrize("folder", OURS)
def test_no_file_runs_what_it_is_given(folder: str) -> None:
    found = [f"{source.name}:{line} {reason}" for source in sources(folder) for line, reason in dangers(source.tree)]
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "Model.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "eval(text)",
    ],
)
def test_the_search_finds(code: str) -> None:
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code", ["torch.load(path, weights_only=True)", "model.eval()", "re.compile(text)", "subprocess.run([program])"]
)
def test_the_search_lets_pass(code: str) -> None:
    assert not list(dangers(ast.parse(code)))


def test_no_open_ends() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "raise NotImplemented" + "Error")
    found = [
        f"{source.name}:{number}"
        for source in sources("src", "pretraining", "benchmarks", "docs")
        for number, line in enumerate(source.lines, start=1)
        if any(mark in line for mark in marks)
    ]
    assert not found, f"finish it or leave it out: {found}"
