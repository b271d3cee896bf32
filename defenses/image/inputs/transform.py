"""Input transforms in front of another defense's model: masking controls, most of them.

    f'(x) = f(t_n(.. t_1(x)))

f is taken as it is, not trained further. A transform that cannot be differentiated, or draws random numbers, stops a plain
gradient attack without making anything robust: attack it with ``bpda``, with ``eot`` around that where it draws.

Source: Guo et al.: Countering adversarial images using input transformations (ICLR 2018); how such defenses fall: Athalye,
Carlini, Wagner: Obfuscated gradients give a false sense of security (ICML 2018).
"""

from __future__ import annotations

from pydantic import Field, field_validator

from robustkd.contracts import FitContext, Params, Target, TargetRef
from robustkd.defenses.image.inputs.in_front import InFront
from robustkd.targets import ImageTarget, PipelineTarget, TransformSpec


class InputTransformParams(Params):
    base: TargetRef = Field(description="the defense whose model is put behind the transforms")
    transforms: tuple[TransformSpec, ...] = Field(
        min_length=1, description="in order; each a kind (robustkd list transforms) and its parameters"
    )

    @field_validator("transforms")
    @classmethod
    def _ready(cls, transforms: tuple[TransformSpec, ...]) -> tuple[TransformSpec, ...]:
        for spec in transforms:
            if spec.make().learns:
                raise ValueError(f"transform '{spec.kind}' must be trained; use the defense that does")
        return transforms


class InputTransform(InFront):
    """A model of the campaign behind input transforms."""

    Params = InputTransformParams
    uses_data = False
    source = "Guo et al. 2018, arXiv:1711.00117"

    def fit(self, context: FitContext) -> Target:
        """Put it together.

        Raises:
            UsageError: the base is no classifier of images.
        """
        base = context.target(self.params.base, ImageTarget)
        target = PipelineTarget(base, self.params.transforms).to(context.device)
        target.module.eval()
        return target
