"""Attacks on small ReLU networks that solve mixed-integer programs."""
