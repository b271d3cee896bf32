"""The contracts that plug-ins implement and that the platform is built on. Importing them does not import torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustkd.contracts.analysis import Analysis, Certificate, Table
from robustkd.contracts.attack import Attack, AttackKind, AttackResult, BaseAttack, Batch, LossFamily, Traits
from robustkd.contracts.capability import Capabilities, Capability
from robustkd.contracts.card import Card
from robustkd.contracts.check import AttackEvidence, Check, CheckContext, Finding, Level, Severity, Transcript, Verdict
from robustkd.contracts.code import Code
from robustkd.contracts.condenser import Condenser
from robustkd.contracts.data import Arrays, Dataset, DeferredArrays, Modality, RawData, Samples, SoftArrays
from robustkd.contracts.defense import Defense, FitContext
from robustkd.contracts.detector import Detector
from robustkd.contracts.errors import (
    AttackError,
    DataError,
    IdentityError,
    PluginError,
    RobustkdError,
    StoreError,
    TargetError,
    UsageError,
    suggestion,
)
from robustkd.contracts.evidence import Evidence, Share
from robustkd.contracts.image_changes import ColourBudget, FlowBudget, PerceptualBudget, SpatialBudget
from robustkd.contracts.model import Model
from robustkd.contracts.params import (
    AddedLater,
    CampaignPath,
    ModelName,
    Params,
    TargetRef,
    inner_params,
    named_plugins,
    renamed,
    target_references,
)
from robustkd.contracts.plugin import Plugin
from robustkd.contracts.prompts import (
    Attempts,
    CutOff,
    Filtered,
    GenerativeTarget,
    Judge,
    Judgements,
    PromptAttack,
    PromptBatch,
    Prompts,
    Request,
    Responses,
    Unanswered,
)
from robustkd.contracts.region import Channels, Mask, Patch
from robustkd.contracts.target import BaseTarget, Precision, Target, WrappedTarget
from robustkd.contracts.threat import (
    AttemptBudget,
    Budget,
    Corruptions,
    EmbeddingRadius,
    Goal,
    Norm,
    PixelBudget,
    Space,
    ThreatModel,
)
from robustkd.contracts.transform import Transform
from robustkd.contracts.version import CONTRACT_VERSION

if TYPE_CHECKING:
    from robustkd.contracts.random import SampleRng

__all__ = [
    "CONTRACT_VERSION",
    "AddedLater",
    "Analysis",
    "Arrays",
    "Attack",
    "AttackError",
    "AttackEvidence",
    "AttackKind",
    "AttackResult",
    "AttemptBudget",
    "Attempts",
    "BaseAttack",
    "BaseTarget",
    "Batch",
    "Budget",
    "CampaignPath",
    "Capabilities",
    "Capability",
    "Card",
    "Certificate",
    "Channels",
    "Check",
    "CheckContext",
    "Code",
    "ColourBudget",
    "Condenser",
    "Corruptions",
    "CutOff",
    "DataError",
    "Dataset",
    "Defense",
    "DeferredArrays",
    "Detector",
    "EmbeddingRadius",
    "Evidence",
    "Filtered",
    "Finding",
    "FitContext",
    "FlowBudget",
    "GenerativeTarget",
    "Goal",
    "IdentityError",
    "Judge",
    "Judgements",
    "Level",
    "LossFamily",
    "Mask",
    "Modality",
    "Model",
    "ModelName",
    "Norm",
    "Params",
    "Patch",
    "PerceptualBudget",
    "PixelBudget",
    "Plugin",
    "PluginError",
    "Precision",
    "PromptAttack",
    "PromptBatch",
    "Prompts",
    "RawData",
    "Request",
    "Responses",
    "RobustkdError",
    "SampleRng",
    "Samples",
    "Severity",
    "Share",
    "SoftArrays",
    "Space",
    "SpatialBudget",
    "StoreError",
    "Table",
    "Target",
    "TargetError",
    "TargetRef",
    "ThreatModel",
    "Traits",
    "Transcript",
    "Transform",
    "Unanswered",
    "UsageError",
    "Verdict",
    "WrappedTarget",
    "inner_params",
    "named_plugins",
    "renamed",
    "suggestion",
    "target_references",
]


def __getattr__(name: str) -> Any:
    if name == "SampleRng":  # late: its module imports torch
        from robustkd.contracts.random import SampleRng

        return SampleRng
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
