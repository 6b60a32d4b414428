"""Run code on tensors that have no memory, and count what it would take: live bytes, operations, bytes moved."""

# What runs for every kernel is marked `no_type_check`: checked while tests run, it would take most of a plan's time.

from __future__ import annotations

import functools
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, no_type_check

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import _engine_run_backward  # pyright: ignore[reportPrivateUsage]
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from limner.families.storage import Stored, pieces

META = torch.device("meta")
BLOCK_BYTES = 512
"""Allocators give memory in multiples of this; a GPU's do."""
aten: Any = torch.ops.aten
IN_BASE_FORMAT = (F.conv2d, F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm)
"""What autocast computes in the base's number format."""
IN_FLOAT32 = (F.group_norm, F.layer_norm, F.softmax)
"""What CUDA's autocast computes in float32, and the CPU's in the number format that it is given."""


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Kernels whose operations torch's own table does not count."""


PLAIN = (int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Arguments of operations that are what they say."""


@dataclass
class Cost:
    """What a piece of work takes."""

    begun_bytes: int = 0
    """How many bytes lived before it."""
    peak_bytes: int = 0
    """The most bytes that lived at once, those from before it among them."""
    host_bytes: int = 0
    """What was kept on the host meanwhile."""
    flops: Counter[torch.dtype] = field(default_factory=Counter[torch.dtype])
    """Operations of matrix products, convolutions and attention, by number format."""
    moved_bytes: int = 0
    """Bytes read and written by all kernels."""
    kernels: int = 0
    """How many kernels run."""


@no_type_check
class Trace(TorchDispatchMode):
    """Counts the storages that live, however many tensors look at each, and the work that is done on them.

    Where a branch depends on values, that of finite numbers and of truth is taken; where a shape does, the largest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.host_bytes = 0
        self._cost = Cost()
        self._storages: dict[int, weakref.ref[Any]] = {}

    @contextmanager
    def measuring(self) -> Iterator[Cost]:
        """Yield the cost of what happens within this block; it is complete at the block's end."""
        outer, self._cost = self._cost, Cost(self.live_bytes, self.live_bytes, self.host_bytes)
        try:
            yield self._cost
        finally:
            outer.peak_bytes = max(outer.peak_bytes, self._cost.peak_bytes)
            self._cost = outer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage] - a kernel at work chooses no more
            return self._dispatched(func, args, kwargs or {})

    def _dispatched(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 1
        if func is aten.nonzero.default and args[0].is_meta:
            return args[0].new_empty((args[0].numel(), args[0].ndim), dtype=torch.int64)
        if func is aten.index.Tensor:
            args = (args[0], [_every(index) for index in args[1]])
        if func is aten._to_copy.default and args[0].is_meta and kwargs.get("device", META) != META:
            return self._to_host(args[0], kwargs.get("dtype"))
        nothing_made = _changes_only(func) and args[0].is_meta
        out = args[0] if nothing_made else _run(func, args, kwargs)
        self._count(func, args, kwargs, out)
        return out

    def _to_host(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return the copy of a tensor on the host, which has no memory there either."""
        copy = torch.empty_like(tensor, dtype=dtype)
        storage = copy.untyped_storage()
        self.host_bytes += storage.nbytes()
        weakref.finalize(storage, self._free_host, storage.nbytes())
        return copy

    def _free_host(self, size: int) -> None:
        self.host_bytes -= size

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        results = _tensors(out)
        for tensor in results:
            self.hold(tensor)
        cost = self._cost
        cost.peak_bytes = max(cost.peak_bytes, self.live_bytes)
        if func.is_view or func is aten.detach.default or not results:
            return
        cost.kernels += 1
        cost.moved_bytes += sum(tensor.numel() * tensor.itemsize for tensor in (*_tensors(args), *results))
        formula = ATTENTION.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
        if formula:
            cost.flops[results[0].dtype] += formula(*args, **kwargs, out_val=out)

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it is freed; that of a layer that is brought from the host counts there."""
        if not tensor.is_meta:
            return
        away = isinstance(tensor, Stored) and tensor.packed.courier is not None
        for piece in pieces(tensor):
            storage = piece.untyped_storage()
            key = storage._cdata  # pyright: ignore[reportPrivateUsage]
            size = math.ceil(storage.nbytes() / BLOCK_BYTES) * BLOCK_BYTES
            if key not in self._storages:
                self._storages[key] = weakref.ref(storage, functools.partial(self._free, key, size, away))
                self._add(size, away)

    def _add(self, size: int, away: bool) -> None:
        if away:
            self.host_bytes += size
        else:
            self.live_bytes += size

    def _free(self, key: int, size: int, away: bool, _: object) -> None:
        self._add(-size, away)
        del self._storages[key]


@no_type_check
class _Kernels(TorchFunctionMode):
    """Chooses as a device does: fused attention, and under autocast the number formats."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.in_float32 = IN_FLOAT32 if device == "cuda" else ()
        self._cast: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named: dict[str, Any] = dict(kwargs or {})
        if not torch.is_autocast_enabled("cpu"):
            self._cast.clear()
        elif func in IN_BASE_FORMAT or func is F.scaled_dot_product_attention:
            args, named = tree_map_only(Tensor, self._in_base_format, (args, named))
        elif func in self.in_float32:
            args, named = tree_map_only(Tensor, Tensor.float, (args, named))
        if func is F.scaled_dot_product_attention:
            return _fused_attention(*args, **named)
        if func is Tensor.backward:
            with self:  # past torch's own way in, which would leave this mode, and checkpointing computes again here
                return _engine_run_backward(
                    (args[0],), (torch.ones_like(args[0]),), False, False, (),
                    allow_unreachable=True, accumulate_grad=True,
                )  # fmt: skip
        if func is Tensor.tolist and args[0].is_meta:
            return torch.ones(args[0].shape).tolist()
        return func(*args, **named)

    def _in_base_format(self, tensor: Tensor) -> Tensor:
        """Return a tensor as autocast gives it to a kernel; a weight that learns is cast once."""
        dtype = torch.get_autocast_dtype("cpu")
        if tensor.dtype == dtype or not tensor.is_floating_point():
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(dtype)
        if id(tensor) not in self._cast:
            self._cast[id(tensor)] = tensor, tensor.to(dtype)
        return self._cast[id(tensor)][1]


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Attend as the fused kernels of CPU and GPU do: no matrix of attention weights is kept."""
    mask = attn_mask.to(query.dtype) if attn_mask is not None and attn_mask.dtype != torch.bool else attn_mask
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale
    )[0]


@contextmanager
def tracing(device: str) -> Iterator[Trace]:
    """Within this block what is done with tensors on torch's device "meta", which have no memory, is counted.

    `device` ("cpu", "cuda") is the one whose choices are followed.
    """
    with Trace() as trace, _Kernels(device):
        yield trace


@functools.cache
def _changes_only(func: Any) -> bool:
    """Return whether an operation writes into its first tensor and makes nothing: there is nothing to be run."""
    return torch.Tag.pointwise in func.tags and func.overloadpacket.__name__.endswith("_")


@no_type_check
class _Like(NamedTuple):
    """All of a tensor without memory that a kernel's results can depend on."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> Tensor:
        """Return a new one."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _Unlike(Exception):
    """An operation has an argument or a result that no `_Like` and no plain value stands for."""


@no_type_check
def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation; what comes of the same inputs is found out once: on "meta" that is Python, and slow."""
    if func.is_view or func._schema.is_mutable:
        return func(*args, **kwargs)
    try:
        made = _makes(func, _told(args), _told(tuple(kwargs.items())))
    except _Unlike:
        return func(*args, **kwargs)
    return _untold(made)


@functools.lru_cache(maxsize=100_000)
def _makes(func: Any, args: Any, kwargs: Any) -> Any:
    """Return what an operation makes, as `_told` tells it.

    Raises:
        _Unlike: the results are no new tensors without memory, or share theirs.
    """
    given = _untold(args)
    out = func(*given, **dict(_untold(kwargs)))
    results = _tensors(out)
    every = [*_tensors(given), *results]
    storages = {tensor.untyped_storage()._cdata for tensor in every}  # pyright: ignore[reportPrivateUsage]
    if not results or len(storages) < len(every):
        raise _Unlike
    return _told(out)


@no_type_check
def _told(tree: Any) -> Any:
    """Return what an operation takes or gives in a form that can be looked up."""
    if isinstance(tree, Tensor):
        if not tree.is_meta or tree.layout != torch.strided:
            raise _Unlike
        return _Like(tree.shape, tree.stride(), tree.dtype)
    if isinstance(tree, list | tuple):
        return type(tree).__name__, *map(_told, tree)
    if tree is None or isinstance(tree, PLAIN):
        return type(tree), tree
    raise _Unlike


@no_type_check
def _untold(told: Any) -> Any:
    """Return what `_told` told of, with new tensors."""
    if isinstance(told, _Like):
        return told.made()
    kind, *rest = told
    if kind in ("list", "tuple"):
        parts = map(_untold, rest)
        return list(parts) if kind == "list" else tuple(parts)
    return rest[0]


@no_type_check
def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors in what an operation takes or gives."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, list | tuple):
        return [tensor for part in tree for tensor in _tensors(part)]
    return []


def _every(index: Tensor | None) -> Tensor | None:
    """Return the numbers of all places of a mask: the most that it can choose."""
    if index is None or index.dtype != torch.bool or not index.is_meta:
        return index
    return index.new_empty(index.numel(), dtype=torch.int64)
