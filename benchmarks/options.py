"""What the benchmarks' command lines have in common."""

import argparse


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
