"""Whether it is known which output of a network each class of the data is.

Data that name their classes number them by the alphabet or in an order of their own: of a folder with ``cat`` and ``dog`` the cat is class
0. A network with more outputs, or with the same ones in another order, means something else by output 0, and its accuracy would be that of
other labels.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustkd.contracts import UsageError
from robustkd.contracts.random import preserved_rng
from robustkd.data.cifar import CIFAR10, CIFAR100
from robustkd.data.class_names import ClassNames
from robustkd.lazy import torch
from robustkd.targets.frozen import frozen
from robustkd.targets.outputs import place

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustkd.targets.classifier import ClassifierTarget

_LOG = logging.getLogger(__name__)
_SHOWN = 5


def require_known_outputs(outputs: int, data: Sequence[str], *, known: bool, network: nn.Module | None = None) -> None:
    """Refuse a network whose outputs are not those of the data's classes by their numbers, unless the user said that they are.

    Of classes that are called by their numbers alone, label k is taken for output k, and the log says so.

    Args:
        outputs: how many the network has; 1 of one logit for two classes.
        data: what the data call their K classes.
        known: whether the user said which output each class is.
        network: where names of its outputs may be found; those of transformers have some.

    Raises:
        UsageError: the data name their classes, and the network has more outputs, or the same names in another order; or it has one more
            than the 1,000 classes of ImageNet, whose numbers the data give.
    """
    if known and len(data) == _IMAGENET and outputs == _IMAGENET + 1:
        raise UsageError(
            f"the model has {outputs} outputs, and the data number the {len(data)} classes of ImageNet from 0 on",
            fix="where output 0 is the background, as in networks that come from TensorFlow, in the data classes: imagenet-1001; else give "
            "the model the output of each class",
        )
    own = () if network is None else names_of_outputs(network)
    moved = len(own) == len(data) == outputs and list(map(_plain, own)) != list(map(_plain, data))
    if known or not data or (outputs <= len(data) and not moved):
        return
    if not moved and list(data) == [str(place) for place in range(len(data))]:
        _LOG.warning(
            "the data have the labels 0 to %d and the model %d outputs: label k is taken for output k; where that is not so, say which "
            "with 'classes' and 'restrict'",
            len(data) - 1,
            outputs,
        )
        return
    index = _index(data, own or _usual_names(outputs))
    if moved and index is None:
        return  # other names, so nothing is known of their order
    shown = ", ".join(data[:_SHOWN]) + (", .." if len(data) > _SHOWN else "")
    if moved:
        raise UsageError(
            f"the classes of the data are {shown}, the model's outputs are {', '.join(own[:_SHOWN])}, in another order",
            fix=f"give the output of each class: classes: {index}, restrict: true",
        )
    raise UsageError(
        f"the model has {outputs} outputs, the data have {len(data)} classes ({shown}), and nothing says which outputs these are",
        fix=f"give the output of each class: classes: {index or _example(data)} with restrict: true or false"
        + ("" if index is None else f" ({'the model' if own else _NAMED[outputs]} calls these outputs so)")
        + f", or in the data classes: {'imagenet' if index and outputs == _IMAGENET and not own else 'FILE'}",
    )


def count_outputs(target: ClassifierTarget, samples: Tensor) -> int | None:
    """How many numbers a network returns for a sample; None where that is not (N, K), which ``as_logits`` explains.

    Args:
        samples: (N, *shape) a few.
    """
    from robustkd.targets.modules import taken  # late: it imports torch

    with frozen(target.module), torch.no_grad(), preserved_rng(target.device):
        try:
            returned: Any = target.answer(samples)
            found = taken(returned, place(returned, len(samples)))
        except Exception:  # the user's own code; ``as_logits``, which asks again, says what it raised
            return None
    fits = isinstance(found, torch.Tensor) and found.ndim == 2 and len(found) == len(samples) and found.is_floating_point()
    return found.shape[1] if fits else None


def names_of_outputs(network: nn.Module) -> tuple[str, ...]:
    """What a network of transformers calls its outputs, where somebody named them; else ()."""
    for part in network.modules():
        named = getattr(getattr(part, "config", None), "id2label", None)
        if isinstance(named, Mapping) and sorted(named) == list(range(len(named))):
            names = tuple(str(named[place]) for place in range(len(named)))
            return () if any(name == f"LABEL_{place}" for place, name in enumerate(names)) else names
    return ()


_IMAGENET = 1000
_NAMED = {10: "CIFAR-10", 100: "CIFAR-100", _IMAGENET: "ImageNet"}


def _usual_names(outputs: int) -> Sequence[str] | Mapping[str, int]:
    """The classes of the data set that has so many."""
    if outputs == _IMAGENET:
        return ClassNames.of("imagenet", ()).index
    return {10: CIFAR10.classes, 100: CIFAR100.classes}.get(outputs, ())


def _index(data: Sequence[str], names: Sequence[str] | Mapping[str, int]) -> list[int] | None:
    """The outputs with the data's names, where each is the name of one."""
    places = names if isinstance(names, Mapping) else {name: at for at, name in enumerate(names)}
    plain = {_plain(name): at for name, at in places.items()}
    found = [plain.get(_plain(name)) for name in data]
    index = [at for at in found if at is not None]
    return index if len(set(index)) == len(data) else None


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ")


def _example(data: Sequence[str]) -> str:
    return "[" + ", ".join(f"<output of {name}>" for name in data[:2]) + (", ..]" if len(data) > 2 else "]")
