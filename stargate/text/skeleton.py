"""Templates whose text is known once the values are: rendered once, then only put together.

    template --render with values that nobody may look at--> literal, value, literal, ..., literal

Jinja takes 50-150 us for a text, several times per turn. Most templates only copy their values.
Whether one does is found out, not assumed: it is rendered with `Unseen` values, which raise when
anything but copying is done with them, and only if its syntax tree has nothing that could look
behind their back. Whoever can't be shown to copy only is rendered every time, as ever.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jinja2 import Environment, TemplateSyntaxError, nodes

# Private-use characters: no template and no honest text contains them.
HOLE_OPEN, HOLE_CLOSE = "\ue000", "\ue001"
HOLE = re.compile(f"{HOLE_OPEN}(\\d+){HOLE_CLOSE}")

_SYNTAX = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)
# What can see a value only through its own methods (which Unseen overrides), or not at all.
_HARMLESS = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.For,
    nodes.If,
    nodes.Assign,
    nodes.Name,
    nodes.NSRef,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Add,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.CondExpr,
    nodes.List,
    nodes.Tuple,
    nodes.Operand,
    nodes.Keyword,
    nodes.Break,
    nodes.Continue,
)
_HARMLESS_FILTERS = {"trim", "length", "count"}
# Tests of a value's type: any text has the same.
_HARMLESS_TESTS = {"defined", "undefined", "string", "none", "mapping", "number", "boolean"}
_HARMLESS_CALLS = {"raise_exception", "namespace"}


class LookedAtError(Exception):
    """A template did more with a value than to copy it."""


class Unseen(str):
    """A value that a template may copy, and test for being there, and nothing else.

    It stands for any text that is not empty and has no white space at its ends, so stripping it
    changes nothing; what it was joined to may have some.
    """

    _whole: bool

    def __new__(cls, number: int) -> "Unseen":
        return cls._of(f"{HOLE_OPEN}{number}{HOLE_CLOSE}", whole=True)

    @classmethod
    def _of(cls, text: str, whole: bool) -> "Unseen":
        made = str.__new__(cls, text)
        made._whole = whole
        return made

    def __str__(self) -> str:
        return str.__str__(self)

    def __add__(self, other: str) -> "Unseen":
        return Unseen._of(str.__str__(self) + _as_text(other), whole=False)

    def __radd__(self, other: str) -> "Unseen":
        return Unseen._of(_as_text(other) + str.__str__(self), whole=False)

    def __bool__(self) -> bool:
        return True

    def strip(self, chars: Any = None, /) -> str:
        if chars is not None or not self._whole:
            raise LookedAtError("strip")
        return self


def _as_text(value: str) -> str:
    if not isinstance(value, str):
        raise LookedAtError("+")
    return str.__str__(value)


def _forbid(name: str) -> Callable[..., NoReturn]:
    def looked_at(self: Unseen, *arguments: Any, **keywords: Any) -> NoReturn:
        raise LookedAtError(name)

    return looked_at


_COPYING = {
    *("__new__", "__init__", "__str__", "__add__", "__radd__", "__bool__", "strip"),
    # What Python itself asks of any object.
    *("__class__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__doc__"),
    *("__init_subclass__", "__subclasshook__", "__sizeof__"),
}
for _name in {*dir(str), "__rmod__", "__rmul__"} - _COPYING:
    setattr(Unseen, _name, _forbid(_name))


def is_harmless(source: str) -> bool:
    """Whether a template has only parts that can't look at a value behind its back."""
    try:
        tree = _SYNTAX.parse(source)
    except TemplateSyntaxError:
        return False  # another dialect of Jinja
    return all(map(_is_harmless_node, _all_nodes(tree)))


def _all_nodes(tree: nodes.Template) -> Sequence[nodes.Node]:
    return [tree, *tree.find_all(nodes.Node)]


def _is_harmless_node(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Filter):
        return node.name in _HARMLESS_FILTERS and not (node.args or node.kwargs)
    if isinstance(node, nodes.Test):
        return node.name in _HARMLESS_TESTS
    if isinstance(node, nodes.Compare):
        # "text in value" asks the value; "value in text" asks the text.
        contained = any(operand.op in ("in", "notin") for operand in node.ops)
        return not contained or isinstance(node.expr, nodes.Const)
    if isinstance(node, nodes.Mod | nodes.Sub):
        return isinstance(node.right, nodes.Const)
    if isinstance(node, nodes.Call):
        if isinstance(node.node, nodes.Name):
            return node.node.name in _HARMLESS_CALLS
        plain = not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)
        return plain and isinstance(node.node, nodes.Getattr) and node.node.attr == "strip"
    return isinstance(node, _HARMLESS)


def literals(text: str, num_values: int) -> tuple[str, ...] | None:
    """The literals around the values in a text that was rendered with Unseen(0), Unseen(1), ...;
    None unless each value stands there once, in order.
    """
    parts = HOLE.split(text)
    if [int(number) for number in parts[1::2]] != list(range(num_values)):
        return None
    return tuple(parts[0::2])


def copied_parts(
    render: Callable[[str, dict[str, Unseen]], str], source: str, names: Sequence[str]
) -> list[str] | None:
    """A template's text as literal, name of a value, literal, ..., literal; None unless it only
    copies its values (as often as it likes).
    """
    if not is_harmless(source):
        return None
    try:
        text = render(source, {name: Unseen(n) for n, name in enumerate(names)})
    except Exception:  # it looked, or it is wrong: then it says so for the real values
        return None
    parts = HOLE.split(text)
    return [names[int(part)] if i % 2 else part for i, part in enumerate(parts)]


def is_unpadded(text: str) -> bool:
    """Whether a text is one that Unseen stands for."""
    return bool(text) and not (text[0].isspace() or text[-1].isspace())
