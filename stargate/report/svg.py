"""A figure as SVG inside the page: it takes the page's colours, fonts and width.

    matplotlib SVG -> parse -> ids made unique, sizes and metadata dropped, colours as CSS
        -> <svg viewBox role="img"> with <title> and <desc>

The drawing's own colours stand for the page's: ink becomes currentColor, the others
`var(--series-1, ...)` and so on, with a fallback for light and dark. The same figure gives the same
text.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from stargate.report.drawing import GRID, INK, MUTED, SERIES

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
# On dark paper the series need to be lighter; hue and order stay.
_DARK_SERIES = ("#56b4e9", "#f5935a", "#3fc79c", "#dd9ccb", "#e0c04c", "#a3a6ac")
_COLOURS = {
    INK: "currentColor",
    MUTED: "var(--muted, light-dark(#62656b, #a3a6ac))",
    GRID: "var(--line, light-dark(#e6e3de, #31343a))",
    **{
        light: f"var(--series-{number}, light-dark({light}, {dark}))"
        for number, (light, dark) in enumerate(zip(SERIES, _DARK_SERIES, strict=True), start=1)
    },
}
_COLOUR = re.compile("|".join(map(re.escape, _COLOURS)), re.IGNORECASE)
# A hundredth of a point is far below a pixel.
_SHORTER = re.compile(r"(\d\.\d\d)\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure. `section` is where it belongs: "curves", "origin", "selection", "training" or
    "time"; `description` says in words what is drawn, for those who can't see it.
    """

    name: str
    section: str
    title: str
    caption: str
    description: str
    figure: Figure

    def save_svg(self, file: Path | IO[str], **metadata: str) -> None:
        """The same figure gives the same bytes."""
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(file, format="svg", metadata={"Date": None, **metadata})

    def inline_svg(self) -> Markup:
        """The SVG element, to go into HTML as it is (its texts are escaped)."""
        buffer = io.StringIO()
        self.save_svg(buffer)
        root = ElementTree.fromstring(buffer.getvalue())
        _drop_general_parts(root)
        _name_ids(root, f"figure-{self.name}-")
        for element in root.iter():
            for name, value in element.attrib.items():
                element.set(name, _COLOUR.sub(lambda found: _COLOURS[found[0].lower()], value))
            style = element.get("style", "")
            if element.tag == f"{{{_SVG}}}text":
                element.set("style", _without_family(style))
        _describe(root, self)
        return Markup(_written(root))


def _drop_general_parts(root: ElementTree.Element) -> None:
    """Metadata, indentation, and a style sheet that would apply to the whole page."""
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    for element in root.iter():
        for sheet in element.findall(f"{{{_SVG}}}style"):
            element.remove(sheet)
        if element.text and element.text.isspace():
            element.text = None
        if element.tail and element.tail.isspace():
            element.tail = None
        if "d" in element.attrib:
            element.set("d", " ".join(_SHORTER.sub(r"\1", element.attrib["d"]).split()))
    # What the style sheet said, for this drawing only: both are inherited.
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")


def _name_ids(root: ElementTree.Element, prefix: str) -> None:
    """Prefixes the ids that are referred to and drops the rest: a page holds many figures."""
    link = f"{{{_XLINK}}}href"
    used: set[str] = set()
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            used.update(_REFERENCE.findall(value))
            if name == link:
                used.add(value.removeprefix("#"))
                # SVG 2's own name: a page that is HTML does not know the namespace.
                del element.attrib[link]
                element.set("href", f"#{prefix}{value.removeprefix('#')}")
            else:
                element.set(name, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
    for element in root.iter():
        key = element.attrib.pop("id", None)
        if key in used:
            element.set("id", f"{prefix}{key}")


def _without_family(style: str) -> str:
    """A text's style with its size, but in the page's font and in currentColor."""
    parts = [part.strip() for part in style.split(";") if part.strip()]
    kept = [part for part in parts if not part.startswith(("font:", "font-family:"))]
    size = re.search(r"(\d+(?:\.\d+)?)px", style)
    if size and not any(part.startswith("font-size") for part in kept):
        kept.insert(0, f"font-size: {size[1]}px")
    if not any(part.startswith("fill:") for part in kept):
        kept.append("fill: currentColor")
    return "; ".join(kept)


def _describe(root: ElementTree.Element, plot: Plot) -> None:
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    names = {part: f"figure-{plot.name}-{part}" for part in ("title", "desc")}
    root.set("role", "img")
    root.set("aria-labelledby", f"{names['title']} {names['desc']}")
    for place, (part, text) in enumerate((("title", plot.title), ("desc", plot.description))):
        element = ElementTree.Element(f"{{{_SVG}}}{part}", {"id": names[part]})
        element.text = text
        root.insert(place, element)


def _written(root: ElementTree.Element) -> str:
    """As HTML wants it: one default namespace, no prefixes."""
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
    root.set("xmlns", _SVG)
    return ElementTree.tostring(root, encoding="unicode")
