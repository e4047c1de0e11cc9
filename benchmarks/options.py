"""What the benchmarks' command lines have in common."""

import argparse


class BenchmarkHelp(argparse.RawDescriptionHelpFormatter):
    """Keeps the description as it is written, and says each option's default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, [], argparse.SUPPRESS) or "default" in text:
            return text
        return f"{text} (default: %(default)s)".lstrip()


def positive(text: str) -> int:
    """A count, for argparse."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """A count that may be 0, for argparse."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    number = int(text)
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
    return number
