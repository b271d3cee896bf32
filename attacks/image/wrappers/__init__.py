"""Attacks around another attack: over a target's randomness, through its surrogates, or from another target."""
