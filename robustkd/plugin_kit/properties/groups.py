"""Which properties are asked of which group, and of plug-ins for prompts in the place of those for images."""

from __future__ import annotations

from robustkd.plugin_kit.properties.attacks import ATTACK
from robustkd.plugin_kit.properties.checks import ANALYSIS, CHECK
from robustkd.plugin_kit.properties.common import EVERY
from robustkd.plugin_kit.properties.condensers import CONDENSER
from robustkd.plugin_kit.properties.datasets import DATASET
from robustkd.plugin_kit.properties.defenses import DEFENSE
from robustkd.plugin_kit.properties.detectors import DETECTOR, PROMPT_DETECTOR
from robustkd.plugin_kit.properties.networks import MODEL, TRANSFORM
from robustkd.plugin_kit.properties.prompts import JUDGE, PROMPT_ATTACK, PROMPT_DATASET, PROMPT_DEFENSE
from robustkd.plugin_kit.subject import Property
from robustkd.plugins import Group

PROPERTIES: dict[Group, tuple[Property, ...]] = {
    "attacks": EVERY + ATTACK,
    "defenses": EVERY + DEFENSE,
    "checks": EVERY + CHECK,
    "analyses": EVERY + ANALYSIS,
    "datasets": EVERY + DATASET,
    "models": EVERY + MODEL,
    "transforms": EVERY + TRANSFORM,
    "detectors": EVERY + DETECTOR,
    "condensers": EVERY + CONDENSER,
}

OF_PROMPTS: dict[Group, tuple[Property, ...]] = {
    "attacks": EVERY + PROMPT_ATTACK,
    "defenses": EVERY + PROMPT_DEFENSE,
    "judges": EVERY + JUDGE,
    "checks": EVERY + CHECK,
    "analyses": EVERY + ANALYSIS,
    "datasets": EVERY + PROMPT_DATASET,
    "detectors": EVERY + PROMPT_DETECTOR,
}
