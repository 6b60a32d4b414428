"""Attention on a CPU in bfloat16, as matrix products of bfloat16, in half the time of torch's kernel and less.

torch's fused kernel multiplies bfloat16 at the speed of float32, since it needs the scores in float32: rounded to
bfloat16 a score of 10 is wrong by .03, and its weight by 3 %. Here what is rounded is a score's distance from where the
weights of its query lie, which the product itself takes off: it is small where a weight is large. Of few tokens only
the way back is ours, over all heads at once; few scores can be had in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MANY_TOKENS = 512
"""From so many queries and keys on torch's kernel is slower."""
FEW_SCORES = 2**16
"""A head's. Up to so many torch's way back is slower, which takes one head after the other."""
AT_ONCE = 2**20
"""Scores that are computed together: what a processor's cache holds."""
FAR = 4.0
"""A query's scores are computed again where its weights lie further than this from where they were thought to."""
LN_2 = math.log(2)
aten: Any = torch.ops.aten


def attend(
    query: Float[Tensor, "rows heads tokens width"],
    key: Float[Tensor, "rows heads keys width"],
    value: Float[Tensor, "rows heads keys width"],
) -> Float[Tensor, "rows heads tokens width"]:
    """Return softmax(query key^T / sqrt(width)) value (arXiv:1706.03762, equation 1)."""
    queries, keys = query.shape[2], key.shape[2]
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and _multiplies_bfloat16():
        if min(queries, keys) >= MANY_TOKENS:
            return _Attention.apply(query, key, value)
        if queries * keys <= FEW_SCORES:
            return _BackAtOnce.apply(query, key, value)
    return F.scaled_dot_product_attention(query, key, value)


class Processor:
    """What a layer of diffusers' is computed by: its own processor's steps, but for `attend`."""

    def __init__(self, own: Callable[..., Tensor]) -> None:
        self.own = own

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return states (rows, tokens, channels) or pixels (rows, channels, height, width) after attention."""
        special = (*args, *kwargs.values(), attn.spatial_norm, attn.norm_cross or None, attn.norm_q, attn.norm_k)
        if torch.compiler.is_compiling() or any(thing is not None for thing in special):  # masks and the like
            return self.own(attn, hidden_states, encoder_hidden_states, *args, **kwargs)
        x = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        told = x if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(seen).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, seen in ((attn.to_q, x), (attn.to_k, told), (attn.to_v, told))
        )
        out = attend(query, key, value).transpose(1, 2).flatten(2)
        for layer in attn.to_out:  # the projection, and a dropout
            out = layer(out)
        if hidden_states.ndim == 4:
            out = out.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            out = out + hidden_states
        return out if attn.rescale_output_factor == 1 else out / attn.rescale_output_factor


def attend_faster(module: nn.Module) -> None:
    """Have attention in a UNet or a VAE computed by `attend`; a layer with a processor of its own keeps that."""
    from diffusers.models.attention_processor import AttnProcessor2_0  # the module has brought it

    layer: Any
    for layer in module.modules():
        if type(getattr(layer, "processor", None)) is AttnProcessor2_0:
            layer.processor = Processor(layer.processor)


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Say whether this processor multiplies bfloat16 faster than float32; with AMX, torch's kernel does so itself."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16")) and not able.get("amx_bf16")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.contiguous() for x in (query, key, value))
        out, log_sum = _like(query), query.new_empty(query.shape[:3], dtype=torch.float32)
        for head in _heads(query):
            out[head], log_sum[head] = _of_head(query[head], key[head], value[head])
        if not log_sum.isfinite().all():  # scores beyond what an exponential holds
            out, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        ctx.save_for_backward(query, key, value, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, out, log_sum = ctx.saved_tensors
        back = _like(query), _like(key), _like(value)
        for head in _heads(query):
            found = _back_through_head(grads[0][head], *(x[head] for x in (query, key, value, out, log_sum)))
            for whole, of_head in zip(back, found, strict=True):
                whole[head] = of_head
        return back


class _BackAtOnce(torch.autograd.Function):
    """torch's kernel, and its gradients by the formulas at `_back_through_head`, of scores and dO V^T in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        ctx.save_for_backward(query, key, value, out, log_sum)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        saved = ctx.saved_tensors  # may be asked for once, where they are made again
        grad, q, k, v, out, log_sum = (x.flatten(0, 1) for x in (*grads, *saved))
        scale = q.shape[2] ** -0.5
        with torch.autocast("cpu", enabled=False):
            own = (grad.float() * out.float()).sum(2, keepdim=True)
            weights = torch.baddbmm(log_sum[:, :, None], q.float(), k.float().mT, beta=-1, alpha=scale).exp_()
            of_scores = torch.baddbmm(own, grad.float(), v.float().mT, beta=-1).mul_(weights).mul_(scale).to(q)
            back = of_scores @ k, of_scores.mT @ q, weights.to(q).mT @ grad
        return tuple(x.view_as(like) for x, like in zip(back, saved[:3], strict=True))


def _of_head(
    q: Float[Tensor, "tokens width"], k: Float[Tensor, "keys width"], v: Float[Tensor, "keys width"]
) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, " tokens"]]:
    """Return what one head's queries see, and the logarithm of the sum of the exponentials of their scores."""
    out, log_sum = torch.empty_like(q), torch.empty(len(q))
    centre, beside_keys = _centre(q, k), _with_ones(k, 3)
    for part in _parts(len(q), len(k)):
        weights = _exponentials(beside_keys, q[part], centre[part])
        total = weights.sum(0, dtype=torch.float32)
        nearest = _bounded(centre[part], centre[part] + total.log(), len(k))
        if (nearest - centre[part]).abs().max() > FAR:
            centre[part] = nearest
            weights = _exponentials(beside_keys, q[part], nearest)
            total = weights.sum(0, dtype=torch.float32)
        out[part], log_sum[part] = (weights.T @ v) / total[:, None], centre[part] + total.log()
    return out, log_sum


def _back_through_head(
    grad: Float[Tensor, "tokens width"], q: Float[Tensor, "tokens width"], k: Float[Tensor, "keys width"],
    v: Float[Tensor, "keys width"], out: Float[Tensor, "tokens width"], log_sum: Float[Tensor, " tokens"],
) -> tuple[Float[Tensor, "tokens width"], Float[Tensor, "keys width"], Float[Tensor, "keys width"]]:  # fmt: skip
    """Return the gradients of one head's queries, keys and values (arXiv:2205.14135, algorithm 4).

    With weights P, output O and its gradient dO they are dS K / sqrt(width), dS^T Q / sqrt(width) and P^T dO, where
    dS = P * (dO V^T - rowsum(dO * O)). P is exp(scores - centre) / 2^n for a centre that makes n whole: dO is divided
    instead, which takes no bit of it.
    """
    scale = q.shape[1] ** -0.5
    doublings = ((log_sum - _bounded(_centre(q, k), log_sum, len(k))) / LN_2).round()
    centre = log_sum - doublings * LN_2
    grad = grad * torch.exp2(-doublings).to(grad)[:, None]
    own = (grad.float() * out.float()).sum(1)
    beside_keys, beside_values, beside_grad = _with_ones(k, 3), _with_ones(v, 2), _with(grad, -own, 2)
    of_q, of_k, of_v = torch.empty_like(q), torch.zeros(k.shape), torch.zeros(v.shape)
    for part in _parts(len(q), len(k)):
        weights = _exponentials(beside_keys, q[part], centre[part])
        of_v += weights @ grad[part]
        of_scores = weights.mul_(beside_values @ beside_grad[part].T)
        of_k += of_scores @ q[part]
        of_q[part] = (of_scores.T @ k) * scale
    return of_q, (of_k * scale).to(k), of_v.to(v)


def _exponentials(
    beside_keys: Float[Tensor, "keys width_and_3"], q: Float[Tensor, "part width"], centre: Float[Tensor, " part"]
) -> Float[Tensor, "keys part"]:
    """Return exp(scores - centre); the centre is taken off within the product, before anything is rounded."""
    scale = q.shape[1] ** -0.5
    scores = q.new_empty(len(beside_keys), len(q))
    torch.addmm(scores, beside_keys, _with(q, -centre / scale, 3).T, beta=0, alpha=scale, out=scores)
    return scores.exp_()


def _centre(q: Float[Tensor, "tokens width"], k: Float[Tensor, "keys width"]) -> Float[Tensor, " tokens"]:
    """Return about where the scores of each query lie that have weight: the mean of its scores by their weights.

    It is that of normally distributed scores: mean + variance, but no further from the mean than the largest of so
    many lies, sqrt(2 ln(keys)) deviations.
    """
    q, k = q.float() * q.shape[1] ** -0.5, k.float()
    mean = k.mean(0)
    deviations = k - mean
    variance = ((q @ (deviations.T @ deviations / len(k))) * q).sum(1).clamp(min=0)
    return q @ mean + torch.minimum(variance, (variance * 2 * math.log(len(k))).sqrt())


def _bounded(
    centre: Float[Tensor, " tokens"], log_sum: Float[Tensor, " tokens"], keys: int
) -> Float[Tensor, " tokens"]:
    """Return centres where they can lie: log_sum less the weights' entropy, which is 0 to ln(keys)."""
    return centre.clamp(log_sum - math.log(keys), log_sum)


def _with(x: Float[Tensor, "tokens width"], further: Float[Tensor, " tokens"], columns: int) -> Tensor:
    """Return `x` and beside it columns of its format whose sum is `further`, to 8 bits a column."""
    parts = [x]
    for _ in range(columns):
        part = further.to(x.dtype)
        parts.append(part[:, None])
        further = further - part.float()
    return torch.cat(parts, dim=1)


def _with_ones(x: Float[Tensor, "tokens width"], columns: int) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), columns)], dim=1)


def _parts(tokens: int, keys: int) -> Iterator[slice]:
    """Yield the queries in parts whose scores are computed together."""
    at_once = max(1, AT_ONCE // keys)
    return (slice(start, start + at_once) for start in range(0, tokens, at_once))


def _heads(query: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the numbers of every row's every head."""
    return ((row, head) for row in range(query.shape[0]) for head in range(query.shape[1]))


def _like(x: Float[Tensor, "rows heads tokens width"]) -> Float[Tensor, "rows heads tokens width"]:
    """Return room for as much as `x`, the heads of each token beside one another, as what comes after wants them."""
    return x.new_empty(x.transpose(1, 2).shape).transpose(1, 2)
