"""A CUDA graph's way of working on the CPU: kernels and addresses are kept, and whatever the host did meanwhile is not.

What is recorded runs below autograd and Python; played again, each kernel reads and writes the very memory that it read
and wrote when it was recorded. A number that came from the host is baked in, as in a graph, and a value that the host
would have to read is an error at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten: Any = torch.ops.aten
READS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.equal,
    aten.is_nonzero, aten.repeat_interleave,
}  # fmt: skip
"""Kernels whose result the host waits for: a value, or how many there are."""
FROM_HOST = {aten.lift_fresh, aten.lift_fresh_copy}
"""Tensors made of Python's numbers: copied to the device, and baked in."""
METHODS = {"tolist", "numpy", "cpu", "item", "__bool__", "__float__", "__int__", "__index__"}
"""Ways of reading a tensor that are no kernel on the CPU."""


class Unread(TorchDispatchMode):
    """Within this block no value of a tensor may be looked at, and no tensor be made of numbers of the host."""

    def __init__(self) -> None:
        super().__init__()
        self._methods = _Methods()

    def __enter__(self) -> Unread:
        self._methods.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kernel = func.overloadpacket
        by_mask = kernel is aten.index and any(i is not None and i.dtype == torch.bool for i in args[1])
        if kernel in READS or by_mask:
            raise AssertionError(f"the host waits for a value: {func}")
        if kernel in FROM_HOST:
            raise AssertionError(f"a number of the host goes to the device: {func}")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in METHODS:
            raise AssertionError(f"the host waits for a value: Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Records work as a CUDA graph does; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], Mapping[str, Any], Any]] = []
        self.plays = 0

    def record(self, work: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        work()
        with Unread(), self:
            work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace == "aten":  # a view looks at its memory by itself
            self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def play(self) -> None:
        self.plays += 1
        for func, args, kwargs, kept in self.calls:
            fresh = func(*args, **kwargs)
            for old, new in zip(tree_leaves(kept), tree_leaves(fresh), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
