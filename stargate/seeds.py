"""One seed for everything: every random decision gets its own seed, derived from the run's and a
name.

A seed depends on what it is for, never on order or time, so a resumed or reordered run draws the
same.
"""

import hashlib

# vLLM and torch take 64-bit seeds, numpy's legacy generators 32-bit ones; 31 bits suit all.
_SEED_BITS = 31


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed in [0, 2**31) for one purpose, e.g. derive_seed(0, "t1", "week-meals:rosa", 3)."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - _SEED_BITS)
