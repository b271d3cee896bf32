"""Targets: what attacks are run against."""

from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TokenBatch, Tokens
from robustkd.targets.classifier import ClassifierTarget
from robustkd.targets.ensemble import EnsembleTarget
from robustkd.targets.files import fingerprint, load_target, save_target
from robustkd.targets.frozen import frozen, recording_gradients, untouched
from robustkd.targets.image import ImageTarget
from robustkd.targets.passes import CountedTarget, PassCounter
from robustkd.targets.pipeline import PipelineTarget, TransformSpec
from robustkd.targets.split import SplitTarget
from robustkd.targets.surrogate import backward_surrogates, declared_surrogates

__all__ = [
    "CausalLMTarget",
    "ClassifierTarget",
    "CountedTarget",
    "EnsembleTarget",
    "ImageTarget",
    "PassCounter",
    "PipelineTarget",
    "SplitTarget",
    "TokenBatch",
    "Tokens",
    "TransformSpec",
    "backward_surrogates",
    "declared_surrogates",
    "fingerprint",
    "frozen",
    "load_target",
    "recording_gradients",
    "save_target",
    "untouched",
]
