import torch
import torch.nn.functional as F

from limner.train.trace import META, tracing

MIB = 2**20


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, device=META)


def test_a_storage_counts_once_until_it_is_freed():
    with tracing("cpu") as trace:
        whole = zeros(4, MIB // 4)
        views = [whole[1:], whole.view(-1), whole.t(), whole.detach()]
        assert trace.live_bytes == 4 * MIB
        del whole
        assert trace.live_bytes == 4 * MIB
        del views
        assert trace.live_bytes == 0
        small = zeros(1)
        assert trace.live_bytes == 512
        assert small.is_meta


def test_the_peak_is_that_of_the_block():
    with tracing("cpu") as trace:
        kept = zeros(MIB)
        with trace.measuring() as outer:
            with trace.measuring() as first:
                a = kept * 2 + kept  # kept, its double, the sum
            del a
            with trace.measuring() as second:
                kept.add_(1)
        assert (first.begun_bytes, first.peak_bytes) == (4 * MIB, 12 * MIB)
        assert second.peak_bytes == 4 * MIB
        assert outer.peak_bytes == 12 * MIB
        assert first.moved_bytes == (2 + 3) * 4 * MIB


def test_the_same_once_more_takes_the_same():
    costs = []
    for _ in range(2):
        with tracing("cpu") as trace, trace.measuring() as cost:
            q = zeros(2, 64).requires_grad_()
            normed, (half, _) = F.layer_norm(q, (64,)) * 2.0, zeros(4, 3).max(1)
            (torch.cat([normed, normed.half().float()]).sum() + half.sum()).backward()
            assert q.grad is not None
            assert (q.grad.dtype, half.dtype, (normed > 0).dtype) == (torch.float32, torch.float32, torch.bool)
            assert (zeros(3).double() * 2).dtype == torch.float64 != (zeros(3) * 2).dtype
        costs.append((cost.peak_bytes, cost.moved_bytes, cost.kernels, cost.flops))
    assert costs[0] == costs[1]


def test_gradients_and_what_backward_needs_live():
    with tracing("cpu") as trace:
        weight = torch.nn.Parameter(zeros(256, 256))
        with trace.measuring() as cost:
            F.linear(zeros(1024, 256), weight).square().mean().backward()
        assert trace.live_bytes == 2 * 256 * 256 * 4  # the weight and its gradient
        assert cost.flops[torch.float32] == 2 * (2 * 1024 * 256 * 256)  # forward, and the weight's gradient
        assert cost.peak_bytes >= (256 * 256 + 3 * 1024 * 256) * 4


def test_attention_keeps_no_matrix_and_counts():
    with tracing("cpu") as trace:
        q = zeros(1, 2, 1024, 32).requires_grad_()
        with trace.measuring() as cost:
            F.scaled_dot_product_attention(q, q, q).sum().backward()
        assert cost.peak_bytes < 2 * 1024 * 1024 * 4
        assert cost.flops[torch.float32] == (4 + 10) * 2 * 1024 * 1024 * 32


def test_what_depends_on_values_takes_the_largest_and_the_true():
    with tracing("cpu"):
        numbers = zeros(5)
        assert float(numbers.mean()) == 1
        assert bool((numbers > 3).any())
        assert numbers.tolist() == [1.0] * 5
        assert numbers[numbers > 0].shape == (5,)
        assert (numbers > 0).nonzero().shape == (5, 1)
        assert numbers.cpu().shape == (5,)


def test_what_goes_to_the_host_is_counted_there():
    with tracing("cuda") as trace:
        aside = zeros(MIB).cpu()
        assert (trace.live_bytes, trace.host_bytes) == (0, 4 * MIB)
        del aside
        assert trace.host_bytes == 0


def weighted(device: str, dtype: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    layer, norm = torch.nn.Linear(8, 8, device=META), torch.nn.LayerNorm(8, device=META)
    with tracing(device), torch.autocast("cpu", dtype=dtype):
        hidden = layer(zeros(2, 8))
        return hidden.dtype, norm(hidden.to(dtype)).dtype


def test_autocast_is_the_devices_own():
    assert weighted("cpu", torch.bfloat16)[0] == weighted("cuda", torch.bfloat16)[0] == torch.bfloat16
    assert weighted("cuda", torch.bfloat16)[1] == torch.float32


def test_a_weight_is_cast_once_while_autocast_is_on():
    weight = torch.nn.Parameter(zeros(256, 256))
    with tracing("cpu") as trace:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a = F.linear(zeros(1, 256), weight)
            before = trace.live_bytes
            b = F.linear(zeros(1, 256), weight)
        assert trace.live_bytes - before < 256 * 256 * 2
        del a, b
        zeros(1).add(1)
        assert trace.live_bytes == 0
