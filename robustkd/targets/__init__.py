"""Targets: what attacks are run against."""

from robustkd.targets.classifier import ClassifierTarget
from robustkd.targets.files import fingerprint, load_target, save_target

__all__ = ["ClassifierTarget", "fingerprint", "load_target", "save_target"]
