"""A training that is killed after its first report, and run again: of defenses, and of condensers behind theirs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from robustkd.contracts import BaseTarget, Defense, Target
from robustkd.plugin_kit import fixtures
from robustkd.plugin_kit.subject import NotApplicable


class _Killed(BaseException):
    """What a kill looks like from inside: no ``except Exception`` stops it."""


def resumed(make: Callable[[], Defense], others: Callable[[Defense], Mapping[str, Target]], reports: str) -> BaseTarget:
    """The target of the run that takes up the killed one.

    Args:
        make: the defense, anew for each run.
        others: the targets that it is given.
        reports: what it reports, for the sentence that says that it reports none.

    Raises:
        NotApplicable: it reports nothing.
    """
    told: list[int] = []

    def dying(epoch: int, metrics: Mapping[str, float]) -> None:
        told.append(epoch)
        raise _Killed

    defense = make()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with fixtures.context(targets=others(defense), checkpoints=Path(folder) / "killed", log=dying) as context:
                defense.fit(context)
        except _Killed:
            pass
        if not told:
            raise NotApplicable(f"it reports {reports}: it is done at once, or starts over")
        with fixtures.context(targets=others(defense), checkpoints=Path(folder) / "killed") as context:
            return make().fit(context)
