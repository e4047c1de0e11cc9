"""The layout of a training stage: literal plans, splits and rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stargate.actors.training.step_plan import (
    Layout,
    learning_rate,
    plan_steps,
    share_out,
    split_validation,
)


def test_learning_rate_literal_values() -> None:
    rates = [learning_rate(step, 10, 1.0, 0.2) for step in range(10)]
    assert rates == pytest.approx(
        [1 / 3, 2 / 3, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060],
        abs=1e-6,
    )


def test_learning_rate_without_warmup_starts_at_the_peak() -> None:
    assert [learning_rate(s, 2, 2e-5, 0.0) for s in range(2)] == pytest.approx([2e-5, 1e-5])


def test_learning_rate_never_wastes_a_step() -> None:
    # The paper's settings on 128 examples: two steps, one of them warm-up.
    assert [learning_rate(s, 2, 2e-5, 0.1) for s in range(2)] == pytest.approx([1e-5, 2e-5])
    assert learning_rate(0, 1, 2e-5, 1.0) == 2e-5


def test_learning_rate_outside_the_stage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.\.9, got 10"):
        learning_rate(10, 10, 1.0, 0.1)


def test_split_holds_out_whole_pairs() -> None:
    pair_ids = [f"p{i // 2}" for i in range(40)]
    split = split_validation(pair_ids, 0.1, seed=0)
    assert len(split.validation) == 4
    assert sorted(split.train + split.validation) == list(range(40))
    assert not {pair_ids[i] for i in split.train} & {pair_ids[i] for i in split.validation}


def test_split_depends_on_the_seed_and_nothing_else() -> None:
    pair_ids = [f"p{i}" for i in range(20)]
    assert split_validation(pair_ids, 0.2, seed=1) == split_validation(pair_ids, 0.2, seed=1)
    assert split_validation(pair_ids, 0.2, seed=1) != split_validation(pair_ids, 0.2, seed=2)
    held = {pair_ids[i] for i in split_validation(pair_ids, 0.2, seed=1).validation}
    turned = pair_ids[::-1]
    assert {turned[i] for i in split_validation(turned, 0.2, seed=1).validation} == held


@pytest.mark.parametrize(
    ("num_examples", "fraction", "expected"),
    [(9, 0.05, 0), (10, 0.05, 1), (10, 0.0, 0), (100, 0.05, 5), (1, 0.9, 0)],
)
def test_split_sizes(num_examples: int, fraction: float, expected: int) -> None:
    split = split_validation([f"p{i}" for i in range(num_examples)], fraction, seed=3)
    assert len(split.validation) == expected


@given(st.sets(st.integers(0, 60), min_size=2), st.data())
def test_pairs_keep_their_side_when_others_are_dropped(
    numbers: set[int], data: st.DataObject
) -> None:
    pairs = [f"p{number}" for number in sorted(numbers)]
    dropped = data.draw(st.sampled_from(pairs))
    rest = [pair for pair in pairs if pair != dropped]
    before, after = split_validation(pairs, 0.2, seed=5), split_validation(rest, 0.2, seed=5)
    held_before, held_after = (
        {of[i] for i in split.validation} for of, split in ((pairs, before), (rest, after))
    )
    assert len((held_before ^ held_after) - {dropped}) <= 1


def test_most_pairs_stay_held_out_whatever_is_dropped() -> None:
    pairs = [f"p{number}" for number in range(400)]
    held = {pairs[i] for i in split_validation(pairs, 0.05, seed=0).validation}
    rest = [pair for number, pair in enumerate(pairs) if number % 20]
    held_of_rest = {rest[i] for i in split_validation(rest, 0.05, seed=0).validation}
    assert len(held) == 20 and len(held_of_rest) == 19
    assert len(held_of_rest - held) <= 1


def test_split_always_leaves_a_pair_to_train_on() -> None:
    split = split_validation(["p"] * 12, 0.5, seed=0)
    assert split.train == tuple(range(12))
    assert split.validation == ()


def test_share_out_deals_to_and_fro() -> None:
    lengths = [10, 80, 30, 70, 50]
    step = share_out([0, 1, 2, 3, 4], lengths, Layout(8, 2, 2))
    # By length: 1 3 4 2 0. Rank 0 gets 1, 2, 0; rank 1 gets 3, 4 and an empty pass.
    assert step.ranks == (((1, 2), (0,)), ((3, 4), ()))


def test_plan_uses_the_last_partial_batch_in_every_epoch() -> None:
    steps = plan_steps(range(11), [5] * 11, Layout(4, 2, 1), num_epochs=2, seed=0)
    assert [len(step.examples) for step in steps] == [4, 4, 3, 4, 4, 3]
    first = [i for step in steps[:3] for i in step.examples]
    second = [i for step in steps[3:] for i in step.examples]
    assert sorted(first) == sorted(second) == list(range(11))
    assert {frozenset(s.examples) for s in steps[:3]} != {frozenset(s.examples) for s in steps[3:]}


@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    micro_batch_size=st.integers(1, 5),
    num_ranks=st.integers(1, 5),
    accumulation=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_every_example_once_and_equal_counts_on_all_ranks(
    lengths: list[int], micro_batch_size: int, num_ranks: int, accumulation: int, seed: int
) -> None:
    layout = Layout(micro_batch_size * num_ranks * accumulation, micro_batch_size, num_ranks)
    steps = plan_steps(range(len(lengths)), lengths, layout, num_epochs=1, seed=seed)
    assert sorted(i for step in steps for i in step.examples) == list(range(len(lengths)))
    for step in steps:
        assert len(step.ranks) == num_ranks
        counts = {len(micros) for micros in step.ranks}
        assert len(counts) == 1
        assert counts.pop() <= accumulation
        assert all(len(m) <= micro_batch_size for micros in step.ranks for m in micros)
        assert any(micros[-1] for micros in step.ranks), "no step ends in passes that are all empty"


def test_rows_are_filled_evenly_and_equally_many_on_all_ranks() -> None:
    lengths = [80, 70, 50, 30, 10, 40]
    # Rank 0 is dealt 80, 40, 30, rank 1 is dealt 70, 50, 10: two rows of at most 100 tokens each.
    step = share_out(range(6), lengths, Layout(8, 1, 2, max_row_tokens=100))
    assert step.ranks == (((0,), (5, 3)), ((1,), (2, 4)))


def test_a_row_takes_all_that_fits() -> None:
    assert share_out(range(3), [50, 30, 20], Layout(8, 1, 1, 100)).ranks == (((0, 1, 2),),)
    assert share_out(range(3), [50, 30, 21], Layout(8, 1, 1, 100)).ranks == (((0,), (1, 2)),)


def test_an_example_longer_than_a_row_stands_alone() -> None:
    assert share_out(range(3), [500, 30, 20], Layout(8, 1, 1, 100)).ranks == (((0,), (1, 2)),)
    assert share_out(range(2), [500, 400], Layout(8, 1, 2, 100)).ranks == (((0,),), ((1,),))


@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    row=st.integers(50, 400),
    num_ranks=st.integers(1, 5),
)
def test_packed_rows_hold_every_example_once_within_their_limit(
    lengths: list[int], row: int, num_ranks: int
) -> None:
    step = share_out(range(len(lengths)), lengths, Layout(8, 1, num_ranks, max_row_tokens=row))
    assert sorted(step.examples) == list(range(len(lengths)))
    assert len(step.ranks) == num_ranks
    assert len({len(rows) for rows in step.ranks}) == 1
    for rows in step.ranks:
        assert all(len(r) <= 1 or sum(lengths[i] for i in r) <= row for r in rows)
    assert any(rows[-1] for rows in step.ranks), "no step ends in passes that are all empty"
    fewest = sum(lengths) / (num_ranks * row)
    assert len(step.ranks[0]) <= 2 * fewest + 2, "rows are half empty"


def test_a_group_that_does_not_fit_begins_the_next_step() -> None:
    groups = ["a", "b", "a", "", "b", "b", "", "a"]
    steps = plan_steps(range(8), [5] * 8, Layout(4, 2, 1), num_epochs=1, seed=0, groups=groups)
    assert [sorted(step.examples) for step in steps] == [[0, 2, 7], [1, 3, 4, 5], [6]]


def test_a_whole_group_shares_a_micro_batch() -> None:
    lengths, groups = [10, 20, 30, 40, 50, 60], ["a", "b", "c", "a", "b", "c"]
    # By tokens: c (90), b (70), a (50). Rank 0 gets c and an empty pass, rank 1 gets b and a.
    step = share_out(range(6), lengths, Layout(8, 2, 2, None, whole_groups=True), groups)
    assert step.ranks == (((2, 5), ()), ((1, 4), (0, 3)))
    step = share_out(range(6), lengths, Layout(8, 2, 2, 150, whole_groups=True), groups)
    assert step.ranks == (((2, 5),), ((1, 4, 0, 3),))


@given(
    groups=st.lists(st.sampled_from(["", *"abcdefgh"]), min_size=1, max_size=40),
    row=st.none() | st.integers(5, 40),
    num_ranks=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_groups_are_never_parted(
    groups: list[str], row: int | None, num_ranks: int, seed: int
) -> None:
    lengths = [3 + 5 * i % 7 for i in range(len(groups))]
    layout = Layout(6, 2, num_ranks, row, whole_groups=True)
    steps = plan_steps(range(len(groups)), lengths, layout, 1, seed, groups)
    micros = [micro for step in steps for micros in step.ranks for micro in micros]
    assert sorted(i for micro in micros for i in micro) == list(range(len(groups)))
    for name in set(groups) - {""}:
        members = {i for i, group in enumerate(groups) if group == name}
        assert sum(bool(members & {*micro}) for micro in micros) == 1
