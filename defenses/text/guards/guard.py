"""What guards share: the model that is guarded is another defense's, and so is the one that the guard reads with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import (
    BaseTarget,
    Capabilities,
    FitContext,
    GenerativeTarget,
    Params,
    Prompts,
    TargetRef,
)
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.targets.guarded import GuardedTarget


class GuardParams(Params):
    """Which model is guarded."""

    model: TargetRef = Field(description="the defense whose model is guarded, local or served", examples=["model"])


class ReadingGuardParams(GuardParams):
    """Which model is guarded, and which one reads."""

    reader: TargetRef | None = Field(None, description="the defense whose model the guard reads with; null: the guarded one")


class Guard(TextDefense):
    """A guard around another defense's model, local or served. A subclass names its ``target``."""

    uses_data = False
    version = "2"  # 1 asked through the guard whether the model knows what is asked for
    target: ClassVar[type[GuardedTarget[Any]]]

    @property
    def _reader(self) -> str | None:
        reader: str | None = getattr(self.params, "reader", None)
        return None if reader == self.params.model else reader

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """Those of the model that is guarded."""
        return others[self.params.model]

    def asks(self) -> Mapping[str, int]:
        """See ``Defense.asks``: the model once, and the reader once."""
        return {self.params.model: 1} | ({self._reader: 1} if self._reader else {})

    @override
    def parts(self, target: BaseTarget) -> Mapping[str, BaseTarget]:
        assert isinstance(target, GuardedTarget)
        read = {self._reader: target.reader} if self._reader and target.reader else {}
        return {self.params.model: target.model} | read

    def settings(self, context: FitContext[Prompts], model: GenerativeTarget, reader: GenerativeTarget | None) -> Params:
        """What the target is told: those of the parameters that its ``Settings`` have."""
        kept = self.target.Settings
        return kept(**self.params.model_dump(include=set(kept.model_fields)))

    def models(self, context: FitContext[Prompts]) -> tuple[GenerativeTarget, GenerativeTarget | None]:
        """The model that is guarded, and the one that reads where it is another."""
        reader = context.target(self._reader, GenerativeTarget) if self._reader else None
        return context.target(self.params.model, GenerativeTarget), reader

    def fit(self, context: FitContext[Prompts]) -> GuardedTarget[Any]:
        """Put the guard in front of the model.

        Raises:
            UsageError: the model, or the reader, is none that answers.
        """
        model, reader = self.models(context)
        target = self.target(model, self.settings(context, model, reader), reader)
        target.to(context.device).module.eval()
        return target
