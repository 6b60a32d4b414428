"""Frozen weights in fewer bits, or elsewhere: brought to the computing format and device where they act."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from limner.families.convolution import convolve, convolve_back
from limner.families.courier import Courier

BaseStorage = Literal["as_computed", "int8", "float8", "nf4"]
LARGEST = {"int8": 127.0, "float8": 448.0}
"""The largest number of each format of one byte; a row's largest weight is brought to it."""
FLOAT8_SHIFT = 2.0**120
"""What a float8's bits, read as those of a bfloat16, are too small by: its exponent begins at -7, not at -127."""
BLOCK = 64
"""Neighbouring weights that share a scale in nf4."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 numbers of NormalFloat (arXiv:2305.14314, appendix E): equally many of a normal distribution near each."""
AT_ONCE = 2**20
"""Weights that are packed together, so that packing takes little memory beside them."""
WHOLE = ("embedding", "conv_in", "conv_out")
"""Parts of names of layers that stay as they are: few weights, on which all others depend."""
aten: Any = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Packed:
    """The numbers of one weight, and what they are multiplied with."""

    form: BaseStorage
    numbers: Tensor
    """[rows, columns] of one byte each; of nf4 [blocks, 32] bytes, each with two weights' numbers. As computed: the
    weight itself."""
    scales: Tensor
    """One for each row or block, in the computing format."""
    shape: torch.Size
    courier: Courier | None = None
    """Brings both to the device where they act, if they lie elsewhere."""

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """What has the weight's memory."""
        return self.numbers, self.scales

    @property
    def device(self) -> torch.device:
        """Where the weight acts."""
        return self.courier.device if self.courier else self.scales.device

    def plain(self) -> Tensor:
        """Return the weight in the computing format."""
        numbers, scales = self.courier.bring(self) if self.courier else self.tensors
        dtype = scales.dtype
        if self.form == "as_computed":
            return numbers
        if self.form == "nf4":
            numbers = _pairs(numbers, dtype)
        elif self.form == "float8":  # torch's own way takes six times as long on a CPU, for the same bits
            bits = numbers.view(torch.int8).to(torch.int16).bitwise_left_shift_(4).bitwise_and_(-0x7810)
            numbers = bits.view(torch.bfloat16).mul_(FLOAT8_SHIFT).to(dtype)
        else:
            numbers = numbers.to(dtype)
        return numbers.mul_(scales).view(-1)[: self.shape.numel()].view(self.shape)

    def moved(self, device: torch.device) -> Packed:
        """Return the same, on another device for good."""
        return replace(self, numbers=self.numbers.to(device), scales=self.scales.to(device), courier=None)

    def away(self, courier: Courier) -> Packed:
        """Return the same on the host, from where it is brought each time that it acts."""
        return replace(self, numbers=courier.home(self.numbers), scales=courier.home(self.scales), courier=courier)


def pack(weight: Float[Tensor, "out ..."], form: BaseStorage) -> Packed:
    """Return a weight in fewer bits: each row (nf4: each block of 64 neighbours) is scaled to its largest number."""
    if form == "as_computed":
        return Packed(form, weight, weight.new_empty(0), weight.shape)
    flat = weight.detach().reshape(weight.shape[0], -1)
    if form == "nf4":
        flat = F.pad(flat.reshape(-1), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    rows, columns = flat.shape
    dtype = {"int8": torch.int8, "float8": torch.float8_e4m3fn}.get(form, torch.uint8)
    numbers = flat.new_empty(rows, columns // 2 if form == "nf4" else columns, dtype=dtype)
    scales, some = flat.new_empty(rows, 1), max(1, AT_ONCE // columns)
    for part, its_numbers, its_scales in zip(*(held.split(some) for held in (flat, numbers, scales)), strict=True):
        _pack(part, form, its_numbers, its_scales)
    return Packed(form, numbers, scales, weight.shape)


def _pack(rows: Float[Tensor, "rows columns"], form: BaseStorage, numbers: Tensor, scales: Tensor) -> None:
    """Write the numbers of some rows, and their scales, which are rounded before they are divided by."""
    largest = LARGEST.get(form, 1.0)
    scales.copy_(rows.float().abs().amax(1, keepdim=True) / largest).clamp_(min=torch.finfo(rows.dtype).tiny)
    ratios = (rows.float() / scales.float()).clamp_(-largest, largest)
    if form == "nf4":
        levels = torch.tensor(NF4, device=rows.device)
        nearest = torch.bucketize(ratios, (levels[1:] + levels[:-1]) / 2, out_int32=True)
        numbers.copy_(nearest[:, 0::2] + 16 * nearest[:, 1::2])
    else:
        numbers.copy_(ratios.round_() if form == "int8" else ratios)


def _pairs(numbers: Tensor, dtype: torch.dtype) -> Float[Tensor, "blocks 64"]:
    """Return the two levels of every byte: a table holds both of each possible byte as one number of their size."""
    levels = torch.tensor(NF4, dtype=dtype, device=numbers.device)
    both = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], dim=1).contiguous()
    table = both.view(torch.int64 if both.itemsize == 4 else torch.int32).view(-1)
    return table.index_select(0, numbers.reshape(-1).int()).view(dtype).view(-1, BLOCK)


class Stored(Tensor):
    """A frozen weight that is packed, and for everyone who reads it a tensor in the computing format.

    A linear layer or a convolution unpacks it for as long as it computes, forward and backward, and autograd keeps
    nothing of it. It cannot be written to; a deep copy is a plain tensor.
    """

    packed: Packed

    def __new__(cls, packed: Packed) -> Any:
        return Tensor._make_wrapper_subclass(cls, packed.shape, dtype=packed.scales.dtype, device=packed.device)

    def __init__(self, packed: Packed) -> None:
        self.packed = packed

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        return memo.setdefault(id(self), nn.Parameter(self.packed.plain(), requires_grad=False))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in (F.linear, F.conv2d) and not kwargs and isinstance(args[1], Stored):
            x, weight, *rest = args
            rows = x if func is F.conv2d else x.reshape(-1, x.shape[-1])  # what is made of a view cannot be added to
            out = Acting.apply(rows, weight.packed, *rest)
            return out if func is F.conv2d else out.view(*x.shape[:-1], -1)
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})  # pyright: ignore[reportPrivateUsage]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, Stored):
            if func is aten.detach.default:
                return Stored(first.packed)
            if func is aten._to_copy.default and kwargs.get("device") and kwargs.get("dtype") in (None, first.dtype):
                return Stored(first.packed.moved(kwargs["device"]))
            if func._schema.is_mutable:
                raise RuntimeError(f"{func} on a frozen weight that is stored as {first.packed.form}")
        args, kwargs = tree_map_only(Stored, lambda weight: weight.packed.plain(), (args, kwargs))
        return func(*args, **kwargs)


class Acting(torch.autograd.Function):
    """A frozen linear layer or convolution whose weight is unpacked in either direction, and kept in neither."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Packed, bias: Tensor | None = None, *geometry: Any) -> Tensor:
        ctx.packed, ctx.shape, ctx.geometry = packed, x.shape, geometry
        return (convolve if geometry else F.linear)(x, packed.plain(), bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,), weight = grads, ctx.packed.plain()
        if not ctx.geometry:
            return grad @ weight, None, None
        back = convolve_back(grad, ctx.shape, weight, *ctx.geometry)
        return back, None, None, *(None for _ in ctx.geometry)


def keep(part: str, name: str, tensor: Tensor, form: BaseStorage, courier: Courier | None = None) -> Tensor:
    """Return a weight of a part ("unet", "vae", "text_encoder" ...) as it is to be held while the base is frozen.

    On a CPU the kernels of a VAE's encoder lie with their channels innermost, and take a sixth less time so; those of
    its decoder lie as ever, so that a picture is bit for bit diffusers'.
    """
    if part == "vae":
        innermost = name.startswith("encoder.") and tensor.ndim == 4 and tensor.device.type == "cpu"
        return tensor.contiguous(memory_format=torch.channels_last) if innermost else tensor
    acts = name.endswith(".weight") and tensor.ndim in (2, 4) and not any(word in name for word in WHOLE)
    if not acts or (form == "as_computed" and courier is None):
        return tensor
    packed = pack(tensor, form)
    return Stored(packed.away(courier) if courier else packed)


@no_type_check  # a plan asks it of every tensor that is made
def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors that have a weight's memory, on the device or on the host."""
    return tensor.packed.tensors if isinstance(tensor, Stored) else (tensor,)


def give(weight: Tensor, value: Tensor | None) -> None:
    """Have a weight hold what `value` holds, and nothing where it is None: its memory is then given back."""
    if isinstance(weight, Stored):
        own = weight.packed
        empty = replace(own, numbers=own.numbers.new_empty(0), scales=own.scales.new_empty(0))
        weight.packed = value.packed if isinstance(value, Stored) else empty
    else:
        weight.data = weight.data.new_empty(0) if value is None else value
