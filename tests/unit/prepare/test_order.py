"""The order of examples: nothing dropped, nothing repeated early, a pure function of (seed, step)."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from limner.prepare.order import Group, Order, permutation, uniform


def one_group(n: int, buckets: list[int], batch: int) -> Order:
    return Order([Group(tuple(range(n)), n)], buckets, batch)


@given(n=st.integers(1, 40), batch=st.integers(1, 9), seed=st.integers(0, 2**31), turns=st.integers(1, 3))
def test_one_bucket_every_example_is_seen_once_before_any_repeats(n, batch, seed, turns):
    order = one_group(n, [0] * n, batch)
    stream = [i for step in range(-(-n * turns // batch)) for i in order.rows(step, seed)[0]]
    for turn in range(turns):
        assert sorted(stream[turn * n : (turn + 1) * n]) == list(range(n))
    assert all(len(order.rows(step, seed)[0]) == batch for step in range(3))


@given(buckets=st.lists(st.integers(0, 5), min_size=1, max_size=40), batch=st.integers(1, 8), seed=st.integers(0, 99))
def test_several_buckets_every_example_once_per_epoch_and_one_bucket_a_batch(buckets, batch, seed):
    order = one_group(len(buckets), buckets, batch)
    if order.has_one_bucket:
        return
    steps = order.steps_per_epoch(seed)
    for epoch in range(2):
        batches = [order.rows(epoch * steps + k, seed)[0] for k in range(steps)]
        assert sorted(i for b in batches for i in b) == list(range(len(buckets)))
        assert all(len({buckets[i] for i in b}) == 1 for b in batches)
        assert all(1 <= len(b) <= batch for b in batches)
    planned = order.batch_sizes()
    assert [sum(size * n for size, n in counts.items()) for counts in planned] == [
        buckets.count(number) for number in range(max(buckets) + 1)
    ]
    assert sum(n for counts in planned for n in counts.values()) == order.steps_per_epoch()
    sizes = Counter(buckets)
    assert steps == sum(-(-size // batch) for size in sizes.values())


@given(buckets=st.lists(st.integers(0, 2), min_size=1, max_size=20), batch=st.integers(1, 4), step=st.integers(0, 60))
def test_rows_before_a_step_are_those_of_all_steps_before_it(buckets, batch, step):
    order = one_group(len(buckets), buckets, batch)
    assert order.rows(step, 0)[1] == sum(len(order.rows(s, 0)[0]) for s in range(step))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 9))
def test_groups_of_unequal_size_get_equal_shares(sizes, batch, seed):
    """Five pictures of one subject and fifty of another: as many rows of each, and its own pictures take turns."""
    edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    largest = max(sizes)
    groups = [Group(tuple(range(a, b)), largest) for a, b in zip(edges, edges[1:], strict=False)]
    order = Order(groups, [0] * edges[-1], batch)
    epochs = 3
    rows = epochs * order.examples_per_epoch
    stream = [i for step in range(-(-rows // batch)) for i in order.rows(step, seed)[0]][:rows]
    seen = Counter(stream)
    for group in groups:
        counts = [seen[i] for i in group.members]
        assert sum(counts) == epochs * largest
        assert max(counts) - min(counts) <= 1


def test_the_order_depends_on_seed_and_step_only():
    first, second = one_group(7, [0, 0, 1, 1, 1, 0, 0], 2), one_group(7, [0, 0, 1, 1, 1, 0, 0], 2)
    forwards = [first.rows(step, 5) for step in range(30)]
    backwards = [second.rows(step, 5) for step in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert [first.rows(step, 6) for step in range(30)] != forwards


def test_epochs_differ_from_one_another():
    order = one_group(12, [0] * 12, 12)
    assert len({tuple(order.rows(epoch, 0)[0]) for epoch in range(5)}) == 5


def test_draws_are_uniform_and_pinned():
    """Pinned, because a changed draw would break the exact resume of runs that exist."""
    draws = [uniform(0, "x", i) for i in range(4000)]
    assert 0 <= min(draws) < max(draws) < 1
    assert abs(sum(draws) / len(draws) - 0.5) < 0.02
    assert uniform(1, "dropout", 2, 3) == 0.9624245544340474
    assert permutation(5, 0, "turn", 0, 0) == (4, 1, 3, 2, 0)
