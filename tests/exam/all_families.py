"""Imports every family, which registers it."""

from exam import honest as honest
from exam.artefacts import decisions, gradients, inference, inputs, outputs, training

__all__ = ["decisions", "gradients", "honest", "inference", "inputs", "outputs", "training"]
