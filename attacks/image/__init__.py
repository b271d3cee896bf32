"""Attacks on images: an attack is a loss, a constraint, an initialiser and a step rule around one loop (``engine.ascent``)."""
