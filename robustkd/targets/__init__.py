"""Targets: what attacks are run against."""

from robustkd.targets.classifier import ClassifierTarget
from robustkd.targets.files import fingerprint, load_target, save_target
from robustkd.targets.frozen import frozen

__all__ = ["ClassifierTarget", "fingerprint", "frozen", "load_target", "save_target"]
