"""Where torch's global generator is needed (initialisation, dropout): seeded by purpose, and left as found."""

from __future__ import annotations

import hashlib


def derived_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for one purpose; seeds of different purposes are unrelated."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little") >> 1
