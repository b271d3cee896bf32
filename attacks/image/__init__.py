"""Attacks on images: an attack is a loss, a constraint, an initialiser and an update around one loop (``engine.ascent``)."""
