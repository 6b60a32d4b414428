"""How far apart the results of two runs are."""

from __future__ import annotations

from safetensors.torch import load_file

from limner.rundir import RunDir


def apart(one: RunDir, other: RunDir) -> float:
    """Return how far the results of two runs are apart, relative to how large they are."""
    ours, theirs = (
        {
            name: t.double()
            for path in (run.adapter, *run.embeddings())
            if path.exists()
            for name, t in load_file(path).items()
        }
        for run in (one, other)
    )
    assert ours.keys() == theirs.keys()
    size = sum(float(t.square().sum()) for t in ours.values())
    return (sum(float((t - theirs[n]).square().sum()) for n, t in ours.items()) / size) ** 0.5
