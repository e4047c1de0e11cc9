"""The report's templates: how they are rendered, and their files as text."""

from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined


def new_environment() -> Environment:
    """Templates in which every text is escaped and an unknown name is an error."""
    return Environment(
        loader=PackageLoader("stargate.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def template_text(name: str) -> str:
    """A file beside the templates (a style, a script) as it is."""
    folder = resources.files("stargate.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")
