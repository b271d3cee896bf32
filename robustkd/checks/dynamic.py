"""Does the forward pass do more than compute?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field

from robustkd.contracts import Check, CheckContext, Finding, Params
from robustkd.lazy import torch


class DynamicInferenceParams(Params):
    samples: int = Field(16, ge=2, description="samples that are looked at")


class DynamicInference(Check):
    """Does the network optimise or learn while it answers, or look at the other samples of the batch?

    Then the network that an attack differentiates is not the one that answers afterwards. What is found is restored. The
    tolerance for the batch is ten times that of ``randomised-output``: other batch sizes take other kernels, whose float32
    sums differ by about 1e-6 of the logits' size.
    """

    Params = DynamicInferenceParams
    regions = ("given", "chosen")
    severity = "severe"
    rule = (
        "the forward pass calls autograd, or changes parameters or buffers; or a sample's logits move by over 1e-3 of their size "
        "with the batch that it is in"
    )
    source = "AutoAttack's flag for optimisation at inference (Croce & Hein 2020); Croce et al. 2022, arXiv:2202.13711"
    cost = "2.5 forward passes a sample, on 16 samples"

    def run(self, context: CheckContext) -> Finding:
        """Watch one pass, and compare it with a second one and with one over half of its samples."""
        inputs = context.batch.inputs[: self.params.samples]
        module = context.target.module
        before = {name: tensor.detach().clone() for name, tensor in module.state_dict(keep_vars=True).items()}
        with torch.no_grad(), _autograd_calls() as calls:
            whole = context.target(inputs)
        changed = [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])]
        half = max(1, len(inputs) // 2)
        with torch.no_grad():
            module.load_state_dict(before)
            again = context.target(inputs)
            module.load_state_dict(before)
            part = context.target(inputs[:half])
            module.load_state_dict(before)
        # A target that answers at random is another check's business.
        gap = (
            float((whole[:half] - part).abs().max() / whole.abs().max().clamp_min(1e-12)) if torch.equal(whole, again) else 0.0
        )
        said = []
        if calls:
            said.append(f"one forward pass calls torch.autograd {len(calls)} times")
        if changed:
            said.append(f"one forward pass changes {len(changed)} of its tensors ({', '.join(changed[:3])})")
        if gap > 1e-3:
            said.append(f"a sample's logits differ by {100 * gap:.2g} % of their size with the batch that it is in")
        return self.finding(
            bool(said),
            fix="make the forward pass a plain function of its input: evaluation mode for BatchNorm, no optimisation at test time; "
            "or attack through the whole procedure",
            explanation="; ".join(said),
            autograd_calls=len(calls),
            changed_tensors=len(changed),
            gap_between_batches=gap,
            n=len(inputs),
        )


@contextmanager
def _autograd_calls() -> Iterator[list[str]]:
    """The calls of ``torch.autograd.grad`` and ``backward`` inside the block, under whatever name they were imported."""
    watched = {torch.autograd.grad.__code__: "grad", torch.autograd.backward.__code__: "backward"}
    calls: list[str] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in watched:
            calls.append(watched[frame.f_code])

    outer = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(outer)
