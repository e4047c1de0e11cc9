"""Texts that begin alike, side by side in one row: every common beginning stands there once.

    opening | dialogue 1 | gold | gold | dialogue 2 | gold | ...     one row, no padding

A text is a context and the gold after it. Contexts that begin with the same tokens (the dialogues
of a pair, a dialogue and its first turns) share these; texts of one context share all of it. Each
gold is a piece of its own. A token has the position that it would have alone, and sees the pieces
that lead to its own.

Example: the contexts (1, 2, 3) and (1, 2, 4, 5) with the golds (8, 9) and (7, 7):

    ids        1 2 | 3 | 8 | 4 5 | 7      the last token of a gold predicts nothing that is wanted
    positions  0 1   2   3   2 3   4
    places     (2, 3) and (5, 6)          where each token of each gold is predicted
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

# A context and the golds after it.
Item = tuple[Sequence[int], Sequence[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Text:
    """A context and one gold after it."""

    context: tuple[int, ...]
    gold: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens [start, stop) of a row, and the (start, stop) of all pieces before them in a text."""

    start: int
    stop: int
    before: tuple[tuple[int, int], ...] = ()

    @property
    def seen(self) -> tuple[tuple[int, int], ...]:
        """What its last token sees."""
        return (*self.before, (self.start, self.stop))


@dataclass(slots=True)
class Row:
    """Ids and positions (T,), the pieces from left to right, and places[text] (G,)."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    places: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, ids: Sequence[int], position: int, before: tuple[tuple[int, int], ...]) -> Piece:
        """Appends a piece of at least one token."""
        start = len(self.ids)
        piece = Piece(start, start + len(ids), before)
        self.ids += ids
        self.positions += range(position, position + len(ids))
        self.pieces.append(piece)
        return piece


def lay_out(texts: Sequence[Text]) -> Row:
    """One row with all the texts. No context and no gold may be empty."""
    row = Row(places=[()] * len(texts))
    order = _in_order([text.context for text in texts])
    # Texts order[low:high] have their first `depth` tokens in common, which stand in `before`.
    todo: list[tuple[int, int, int, tuple[tuple[int, int], ...]]] = []
    if order:
        todo.append((0, len(order), 0, ()))
    while todo:
        low, high, depth, before = todo.pop()
        branches = list(_branches(texts, order, low, high, depth))
        if len(branches) > 1:
            todo += [(first, last, depth, before) for first, last in reversed(branches)]
            continue
        # In sorted order, what the first and the last share, all between them share.
        context, gold = texts[order[low]].context, texts[order[low]].gold
        if high - low == 1:  # nobody shares the rest of it
            piece = row.add((*context[depth:], *gold[:-1]), depth, before)
            row.places[order[low]] = tuple(range(piece.stop - len(gold), piece.stop))
            continue
        end = common_length(context, texts[order[high - 1]].context)
        piece = row.add(context[depth:end], depth, before)
        while low < high and len(texts[order[low]].context) == end:
            row.places[order[low]] = _add_gold(row, texts[order[low]], piece)
            low += 1
        if low < high:
            todo.append((low, high, end, piece.seen))
    return row


def group_alike(items: Sequence[Item], max_tokens: int) -> list[list[int]]:
    """Indices of the items that make up each row: those with most in common together.

    A row has at most `max_tokens` tokens; an item that is too large for that is alone. Golds of one
    context, and what adds no more than it shares (a dialogue after each of its turns), may fill
    twice as many tokens: to compute a long context again costs more than a row that leaves the
    cache.
    """
    found: list[list[int]] = []
    tokens = 0
    for i in _in_order([context for context, _ in items]):
        context, golds = items[i]
        own = len(context) + sum(map(len, golds)) - len(golds)
        shared = common_length(items[found[-1][-1]][0], context) if found else 0
        added = own - shared
        room = 2 * max_tokens if shared >= min(added, len(context)) else max_tokens
        if found and tokens + added <= room:
            found[-1].append(i)
            tokens += added
        else:
            found.append([i])
            tokens = own
    return found


def group_by_length(items: Sequence[Item], max_tokens: int) -> list[list[int]]:
    """Indices grouped by length, longest first, for rows of one text each that are padded.

    A group has at most `max_tokens` tokens with padding; an item that is too large for that is
    alone.
    """
    longest = [len(context) + max(map(len, golds), default=0) for context, golds in items]
    groups: list[list[int]] = []
    rows = 0
    for i in sorted(range(len(items)), key=lambda i: (-longest[i], i)):
        num_golds = len(items[i][1])
        rows += num_golds
        if groups and longest[groups[-1][0]] * rows <= max_tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
            rows = num_golds
    return groups


def num_unique_tokens(texts: Sequence[Text]) -> int:
    """Tokens of one row with all the texts."""
    return len(lay_out(texts).ids)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(i for i in range(length) if one[i] != other[i])


def _branches(
    texts: Sequence[Text], order: Sequence[int], low: int, high: int, depth: int
) -> Iterator[tuple[int, int]]:
    """Ranges of order[low:high] with the same token at `depth`."""
    start = low
    for i in range(low + 1, high + 1):
        if i == high or (texts[order[i]].context[depth] != texts[order[start]].context[depth]):
            yield start, i
            start = i


def _add_gold(row: Row, text: Text, context: Piece) -> tuple[int, ...]:
    """Where each token of the gold is predicted: its first by the context's last token."""
    if len(text.gold) == 1:
        return (context.stop - 1,)
    piece = row.add(text.gold[:-1], len(text.context), context.seen)
    return (context.stop - 1, *range(piece.start, piece.stop))


def _in_order(contexts: Sequence[Sequence[int]]) -> list[int]:
    """Indices such that those with most in common are neighbours."""
    return sorted(range(len(contexts)), key=lambda i: (contexts[i], i))
