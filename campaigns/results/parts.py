"""The classes of a campaign's test samples, and the groups of classes that its file names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from robustkd.campaigns.plan.plan import Plan


def by_class(labels: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """(N,) bool of each class that has samples, by its name; of one without a name, by its number."""
    names = dict(enumerate(classes))
    return {names.get(number, str(number)): labels == number for number in np.unique(labels).tolist()}


def by_group(labels: np.ndarray, groups: Mapping[str, frozenset[int]]) -> dict[str, np.ndarray]:
    """(N,) bool of each group, by its name."""
    return {name: np.isin(labels, sorted(members)) for name, members in groups.items()}


def groups_of(plan: Plan) -> dict[str, frozenset[int]]:
    """The numbers of the classes of each group; ``plan`` has seen to it that there are such."""
    return plan.campaign.class_groups(plan.data.classes)
