"""What is asked of detectors: each is put around a small classifier or language model, as a campaign does it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkd import plugins
from robustkd.contracts import BaseTarget, FitContext, GenerativeTarget, Prompts, Target, ThreatModel, target_references
from robustkd.lazy import torch
from robustkd.plugin_kit import fixtures, prompt_fixtures
from robustkd.plugin_kit.subject import Subject, generators_at, listed, require
from robustkd.targets import backward_surrogates, declared_surrogates
from robustkd.targets.detecting import DetectingTarget
from robustkd.targets.guarded import GuardedTarget

if TYPE_CHECKING:
    from torch import Tensor


def scores(subject: Subject) -> None:
    """It gives each image one finite score, and not the same to all."""
    target, x = _target(subject), _images()
    found = target.scores(x)  # says so where it has another shape
    require(bool(torch.isfinite(found).all()), "its scores are not finite", "look for a division or a logarithm")
    require(bool((found != found[0]).any()), "every image gets the same score", "score what differs from image to image")


def images_scored_alone(subject: Subject) -> None:
    """An image's score depends on no other image."""
    target, x = _target(subject), _images()
    whole, alone = target.scores(x), torch.cat([target.scores(image) for image in x.split(1)])
    away = float((whole - alone).abs().max() / whole.abs().max().clamp_min(1e-6))
    require(
        away < 1e-3, f"one by one the scores differ by {away:.2g} of the largest", "no statistics of the batch; evaluation mode"
    )


def same_scores(subject: Subject) -> None:
    """One seed gives the same scores, whatever else has drawn random numbers before, and a second look gives them again."""
    found, x = [], _images()
    for elsewhere in (1, 2):
        with generators_at(elsewhere):
            target = _target(subject)
            found += [target.scores(x), target.scores(x)]
    require(
        all(torch.equal(found[0], other) for other in found[1:]),
        "from one seed come different scores",
        "draw from context.seed alone while it learns, and nothing while it scores",
    )


def saved_with_its_model(subject: Subject) -> None:
    """Saved and loaded with the classifier, it accepts and rejects the same images."""
    target, x = _target(subject), _images()
    again = fixtures.saved_and_loaded(target)
    assert isinstance(again, Target)
    with torch.no_grad():
        require(
            torch.equal(target(x), again(x)),
            "saved and loaded, it scores differently",
            "what it has learnt is a parameter or a buffer of the scorer",
        )


def leaves_the_model(subject: Subject) -> None:
    """The classifier, the other targets that it asks and the global random generators are left as they were."""
    base = fixtures.classifier()
    with fixtures.left_alone("it", base.module):
        _target(subject, base).scores(_images())


def attackable_scores(subject: Subject) -> None:
    """A gradient goes from the score to the image, or a stage without one declares a surrogate."""
    target, x = _target(subject), _images().requires_grad_()
    declared = declared_surrogates(target)
    surrogates: dict[str, Callable[..., Tensor]] = dict(declared)
    with backward_surrogates(target.module, surrogates), torch.enable_grad():
        found = target.scorer(x, target.base(x))
        slope = torch.autograd.grad(found.sum(), x, allow_unused=True)[0] if found.requires_grad else None
    require(
        slope is not None and bool((slope != 0).any()),
        "no gradient goes through its score" + (f", nor through {listed(declared)}" if declared else ""),
        "no detach() or no_grad() in forward; declare a surrogate where a stage has no useful gradient",
    )


DETECTOR = (scores, images_scored_alone, same_scores, saved_with_its_model, leaves_the_model, attackable_scores)


def _target(subject: Subject, base: Target | None = None) -> DetectingTarget:
    """The example's classifier with the detector, which has learnt and is calibrated."""
    made = {
        "kind": "with-detector",
        "base": "plain",
        "detector": {"kind": subject.name, **subject.values(fixtures.QUICK_TRAINING)},
    }
    defense = plugins.make("defenses", made)
    names = [name for name in target_references(defense.params) if name != "plain"]
    others = {name: fixtures.classifier(place + 1) for place, name in enumerate(names)}
    with fixtures.context(targets={"plain": base or fixtures.classifier(), **others}) as context:
        target: DetectingTarget = defense.fit(context)
    return target


def _images() -> Tensor:
    return torch.from_numpy(fixtures.digits().test.unit())


# --- of prompts


def scores_prompts(subject: Subject) -> None:
    """It gives each prompt one score, and not the same to all."""
    found = _filter(subject).alarm(_prompts())
    require(
        tuple(found.shape) == (len(_prompts()),),
        f"{len(_prompts())} prompts get scores of shape {tuple(found.shape)}",
        "return one score a prompt; NaN of one that it cannot read",
    )
    require(
        bool(torch.isfinite(found).all()), "it cannot read ordinary prompts", "score whatever fits into the model's context"
    )
    require(bool((found != found[0]).any()), "every prompt gets the same score", "score what differs from prompt to prompt")


def prompts_scored_alone(subject: Subject) -> None:
    """A prompt's score depends on no other prompt, and one seed gives it again."""
    target = _filter(subject)
    whole = target.alarm(_prompts())
    alone = torch.cat([target.alarm([prompt]) for prompt in _prompts()])
    with generators_at(2):
        again = _filter(subject).alarm(_prompts())
    away = float((torch.stack([alone, again]) - whole).abs().max() / whole.abs().max().clamp_min(1e-6))
    require(
        away < 1e-3,
        f"one by one, or learnt again, the scores differ by {away:.2g} of the largest",
        "pad without a trace; draw from context.seed alone while it learns, and nothing while it scores",
    )


def filter_saved_and_loaded(subject: Subject) -> None:
    """Saved and loaded with the model, it holds back the same prompts."""
    target = _filter(subject)
    again = fixtures.saved_and_loaded(target)
    assert isinstance(again, GuardedTarget)
    require(
        torch.allclose(target.alarm(_prompts()), again.alarm(_prompts()), atol=1e-5),
        "saved and loaded, it scores differently",
        "what it has learnt is a parameter or a buffer of the scorer",
    )


PROMPT_DETECTOR = (scores_prompts, prompts_scored_alone, filter_saved_and_loaded)


def _prompts() -> tuple[str, ...]:
    return tuple(prompt_fixtures.requests()["prompt"])


@functools.cache
def _language_model() -> GenerativeTarget:
    """A small one, which has seen the suite's requests once."""
    settings = {"kind": "lm-pretrain", "steps": 1, "batch_size": 2, "width": 16, "layers": 2, "heads": 2}
    with _context({}) as context:
        model: GenerativeTarget = plugins.make("defenses", settings).fit(context)
    return model


@contextmanager
def _context(targets: Mapping[str, BaseTarget]) -> Iterator[FitContext[Prompts]]:
    asked = prompt_fixtures.requests()
    columns = {"prompt": asked["prompt"], "response": asked["answer"], "role": ("task",) * len(asked)}
    known = Prompts(columns, asked.labels)
    with tempfile.TemporaryDirectory() as folder:
        yield FitContext(
            known, known, (), 2, ThreatModel.by_prompt(1), 0, torch.device("cpu"), Path(folder), targets=dict(targets)
        )


def _filter(subject: Subject) -> GuardedTarget[Any]:
    made = {"kind": "detector-filter", "model": "plain", "detector": {"kind": subject.name, **subject.values({"steps": 2})}}
    with _context({"plain": _language_model()}) as context:
        target: GuardedTarget[Any] = plugins.make("defenses", made).fit(context)
    return target
