"""Distillation of a teacher's knowledge on clean images."""
