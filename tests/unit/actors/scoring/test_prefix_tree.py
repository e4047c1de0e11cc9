"""Rows of texts that begin alike: literal layouts, and what every layout must keep."""

import random

from stargate.actors.scoring.prefix_tree import (
    Row,
    Text,
    common_length,
    group_alike,
    group_by_length,
    lay_out,
    num_unique_tokens,
)


def spelled(row: Row, text: Text, number: int) -> list[int]:
    """The tokens that the gold's last prediction sees, in the order of their positions."""
    last = row.places[number][-1]
    [piece] = [piece for piece in row.pieces if piece.start <= last < piece.stop]
    places = [i for low, high in piece.seen for i in range(low, min(high, last + 1))]
    assert [row.positions[i] for i in places] == list(range(len(places)))
    return [row.ids[i] for i in places]


def test_contexts_that_begin_alike_share_their_beginning() -> None:
    row = lay_out([Text((1, 2, 3), (8, 9)), Text((1, 2, 4, 5), (7, 7))])
    assert row.ids == [1, 2, 3, 8, 4, 5, 7]
    assert row.positions == [0, 1, 2, 3, 2, 3, 4]
    assert [(piece.start, piece.stop) for piece in row.pieces] == [
        (0, 2),
        (2, 4),
        (4, 7),
    ]
    assert row.pieces[2].seen == ((0, 2), (4, 7))
    assert row.places == [(2, 3), (5, 6)]


def test_golds_of_one_context_stand_side_by_side_even_if_equal() -> None:
    row = lay_out([Text((1, 2), (5, 6, 7))] * 2)
    assert row.ids == [1, 2, 5, 6, 5, 6]
    assert row.places == [(1, 2, 3), (1, 4, 5)]
    assert row.pieces[2].seen == ((0, 2), (4, 6))


def test_a_context_that_another_continues() -> None:
    row = lay_out([Text((1, 2, 3, 4), (6,)), Text((1, 2), (5,))])
    assert row.ids == [1, 2, 3, 4]
    assert row.places == [(3,), (1,)]


def test_texts_with_nothing_in_common() -> None:
    row = lay_out([Text((3,), (1, 1)), Text((2, 2), (4,))])
    assert row.ids == [2, 2, 3, 1]
    assert row.places == [(2, 3), (1,)]
    assert lay_out([]) == Row()


def test_every_text_finds_its_own_tokens_at_its_own_positions() -> None:
    draw = random.Random(7)
    for _ in range(200):
        texts = [
            Text(
                tuple(draw.choices((1, 2), k=draw.randint(1, 9))),
                tuple(draw.choices((3, 4), k=draw.randint(1, 4))),
            )
            for _ in range(draw.randint(1, 12))
        ]
        row = lay_out(texts)
        for number, text in enumerate(texts):
            assert spelled(row, text, number) == [*text.context, *text.gold[:-1]]
            assert len(row.places[number]) == len(text.gold)
            assert row.places[number][0] == row.places[number][-1] or len(text.gold) > 1
        beginnings = {text.context[: n + 1] for text in texts for n in range(len(text.context))}
        golds = sum(len(text.gold) - 1 for text in texts)
        assert num_unique_tokens(texts) == len(beginnings) + golds


def test_a_deep_chain_of_contexts_needs_no_deep_recursion() -> None:
    texts = [Text(tuple(range(1, n + 1)), (0, 0)) for n in range(1, 501)]
    row = lay_out(texts)
    assert len(row.ids) == 500 + 500
    assert len(row.pieces[-1].before) == 499


def test_groups_count_shared_beginnings_once() -> None:
    items = [((1, 1, 1, n), ((5, 6, 7, 8),)) for n in range(4)]
    assert group_alike(items, 7 + 4) == [[0, 1], [2, 3]]
    assert group_alike(items, 7 + 4 + 4) == [[0, 1, 2], [3]]
    assert group_alike(items, 1) == [[0], [1], [2], [3]]
    assert group_alike([((2,), ()), ((1,), ())], 100) == [[1, 0]]
    assert group_alike([], 1) == []


def test_groups_hold_what_they_may() -> None:
    draw = random.Random(3)
    texts = [
        Text(tuple(draw.choices((1, 2, 3), k=draw.randint(1, 12))), (9,) * draw.randint(1, 5))
        for _ in range(60)
    ]
    groups = group_alike([(text.context, (text.gold,)) for text in texts], 40)
    assert sorted(i for group in groups for i in group) == list(range(60))
    for group in groups:
        chosen = [texts[i] for i in group]
        assert num_unique_tokens(chosen) <= 80
        if num_unique_tokens(chosen) > 40:
            before, last = chosen[-2:]
            shared = common_length(before.context, last.context)
            own = len(last.context) + len(last.gold) - 1
            assert shared >= own - shared or shared == len(last.context)


def test_padded_groups_are_sorted_by_length() -> None:
    items = [((1,) * n, ((2, 2),)) for n in (3, 10, 4, 9)]
    assert group_by_length(items, 24) == [[1, 3], [2, 0]]
    assert group_by_length([((1,) * 3, ((2,), (2,)))], 1) == [[0]]


def test_common_length() -> None:
    assert common_length((1, 2, 3), (1, 2, 4)) == 2
    assert common_length((1, 2), (1, 2, 4)) == 2
    assert common_length((), (1,)) == 0
    assert common_length((3,), (1,)) == 0


def test_golds_of_one_context_fill_twice_as_much() -> None:
    golds = [(tuple(range(10)), ((7, 7, 7),)) for _ in range(4)]  # 10 + 2 tokens each
    assert group_alike(golds, 9) == [[0, 1, 2, 3]]  # 10 + 4 * 2 = 18
    assert group_alike(golds, 8) == [[0, 1, 2], [3]]
    other = ((*range(3), *[1] * 7), ((7, 7, 7),))
    assert group_alike([golds[0], other], 9) == [[1], [0]]


def test_a_dialogue_after_each_of_its_turns_may_fill_twice_as_much() -> None:
    turns = [((*range(1, length), 0), ((7, 7, 7),)) for length in (8, 11, 14, 17)]
    # The dialogue's 17 + 2; 3 times a closing of one token and 2 of the gold.
    assert group_alike(turns, 14) == [[0, 1, 2, 3]]
    assert group_alike(turns, 13) == [[0, 1, 2], [3]]
    # One that adds more than it shares begins a row of its own.
    longer = ((*range(1, 20), 0), ((7, 7, 7),))
    assert group_alike([turns[0], longer], 22) == [[0], [1]]
