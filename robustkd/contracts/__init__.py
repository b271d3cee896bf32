"""The contracts that plug-ins implement and that the platform is built on. Importing them does not import torch."""

from robustkd.contracts.analysis import Analysis, Table
from robustkd.contracts.attack import Attack, AttackResult, Batch, Traits
from robustkd.contracts.check import AttackEvidence, Check, CheckContext, Finding, Transcript
from robustkd.contracts.code import Code
from robustkd.contracts.data import Arrays, Dataset, Modality, RawData, Samples
from robustkd.contracts.defense import Defense, FitContext
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
from robustkd.contracts.model import Model
from robustkd.contracts.params import (
    CampaignPath,
    ModelName,
    Params,
    TargetRef,
    inner_params,
    named_plugins,
    target_references,
)
from robustkd.contracts.plugin import Plugin
from robustkd.contracts.prompts import Answered, Asked, Attempts, GenerativeTarget, Judge, PromptAttack, PromptBatch, Prompts
from robustkd.contracts.target import Target, WrappedTarget
from robustkd.contracts.threat import ThreatModel
from robustkd.contracts.transform import Transform

__all__ = [
    "Analysis",
    "Answered",
    "Arrays",
    "Asked",
    "Attack",
    "AttackError",
    "AttackEvidence",
    "AttackResult",
    "Attempts",
    "Batch",
    "CampaignPath",
    "Check",
    "CheckContext",
    "Code",
    "DataError",
    "Dataset",
    "Defense",
    "Finding",
    "FitContext",
    "GenerativeTarget",
    "IdentityError",
    "Judge",
    "Modality",
    "Model",
    "ModelName",
    "Params",
    "Plugin",
    "PluginError",
    "PromptAttack",
    "PromptBatch",
    "Prompts",
    "RawData",
    "RobustkdError",
    "Samples",
    "StoreError",
    "Table",
    "Target",
    "TargetError",
    "TargetRef",
    "ThreatModel",
    "Traits",
    "Transcript",
    "Transform",
    "UsageError",
    "WrappedTarget",
    "inner_params",
    "named_plugins",
    "suggestion",
    "target_references",
]
