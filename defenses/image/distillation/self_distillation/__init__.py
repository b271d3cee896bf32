"""Distillation in which a network is, or was, its own teacher."""
