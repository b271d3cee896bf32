"""The weights in a file as somebody's training wrote it.

Such a file may hold much beside the weights, may hold them under a key or under several, and may have a prefix before each name: of
``DataParallel``, of Lightning, of a module around the network. No key and no prefix is known here by its name. Every place in the
file is one that fits where each of the network's names follows, with the right shape.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robustkd.contracts import TargetError
from robustkd.lazy import torch
from robustkd.targets.checkpoint_file import Tensors, plain, read
from robustkd.targets.fit import listed, require_fit

if TYPE_CHECKING:
    from torch import Tensor, nn

_LOG = logging.getLogger(__name__)
_CONSTANTS = {"mean": {"mean", "means", "mu"}, "std": {"std", "stds", "sd", "sds", "sigma"}}
"""Words in the names of the constants of a normalisation."""
_NEUTRAL = {"mean": 0.0, "std": 1.0}
_AVERAGES = {"ema", "swa", "average", "averaged", "avg"}


def load_weights(module: nn.Module, file: Path, key: str | None = None, *, normalised: bool = False) -> None:
    """Load a safetensors file, or a file of torch.save, into a network; the log says where in the file the weights were found.

    No code of a file is run: what is no tensor, number, text or container in it is read as something empty.

    Args:
        key: where in the file to look, such as ``ema`` or ``state_dict.student``. Without it, where two sets of weights fit and one
            is named as an average (``ema``, ``swa``), that one is taken.
        normalised: whether the network is going to be given normalised images.

    Raises:
        TargetError: the file is missing or damaged, holds no weights, or none that fit the network, or several; or it holds the
            constants of a normalisation that the network does not have, and nobody else normalises.
    """
    found = read(file).under(key)
    names = _Names(module)
    if not found.flat:
        return require_fit(file, missing=names.shapes.keys() - names.optional)
    if match := _the_one(file, _fitting(found, names)) or _in_parts(found, names):
        misfits = _load(module, names, match)
    else:
        # The network's own loading may know the names of former versions, which nobody else does.
        misfits, match = _first_that_loads(module, names, _nearest(found, names))
    require_fit(
        file,
        missing=misfits.missing,
        unexpected=[*misfits.unexpected, *match.stray],
        mismatched=misfits.mismatched,
        fix=f"if that part of the file is meant, {_choose(match)}" if match.stray else None,
    )
    if not normalised and not any(_constant(name) for name, _ in module.named_buffers()):
        _require_no_constants(file, found, match)
    if said := match.said():
        _LOG.warning("%s: %s", file.name, said)


@dataclass(frozen=True)
class Match:
    """One way to read a network's weights from a file.

    Attributes:
        prefixes: what stands before the network's names in the file.
        inner: the part of the network that they are; what is outside of it has no parameters.
        state: the tensors by the network's names, and those under the prefix that it does not have.
        missing: names of the network that the file lacks.
        misfit: whether a name is not the network's, or has another shape there.
        beside: names in the same mapping of the file, outside of the prefix.
        others: the places of other weights that fit as well.
    """

    prefixes: tuple[str, ...]
    inner: str
    state: dict[str, Tensor]
    missing: list[str]
    misfit: bool
    beside: list[str]
    others: tuple[str, ...] = ()

    @property
    def stray(self) -> list[str]:
        """What is beside the weights, where it is most of the mapping: then they are a part of another network."""
        return self.beside if len(self.beside) > len(self.state) else []

    @property
    def fits(self) -> bool:
        """Whether each name of the network is there with its shape, and none under the prefix is left over."""
        return not (self.missing or self.misfit or self.stray)

    @property
    def place(self) -> str:
        """The prefixes as a user writes them."""
        return listed([prefix.rstrip(".") or "no prefix" for prefix in self.prefixes])

    def said(self) -> str:
        """What a user should know; empty where the names are simply the network's."""
        said = [f"the weights are those under {self.place}"] if any(self.prefixes) else []
        if self.inner:
            said.append(f"they are loaded into the network's part {self.inner.rstrip('.')}")
        if self.others:
            said.append(f"{listed(self.others)} would fit as well (weights_key chooses)")
        if self.beside and any(self.prefixes):
            said.append(f"left out: {listed(self.beside)}")
        return "; ".join(said)


class _Names:
    """The names of a network's tensors, without what torch puts into them.

    Attributes:
        shapes: by name; None where it is not known yet.
        original: the names that the network's own ``state_dict`` has.
        optional: those that may be missing: another name's tensor (tied weights), and the step counter of BatchNorm, which older
            checkpoints do not have and which has no effect in evaluation mode.
        inner: the prefixes of parts of the network outside of which there is no parameter, the whole first.
    """

    def __init__(self, module: nn.Module) -> None:
        state = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)}
        self.original = {plain(name): name for name in state}
        self.shapes = {
            plain(name): None if torch.nn.parameter.is_lazy(tensor) else tensor.shape for name, tensor in state.items()
        }
        self.optional = {plain(name) for name in tied(module)} | {
            name for name in self.shapes if name.endswith("num_batches_tracked")
        }
        self.inner = _shared([plain(name) for name, _ in module.named_parameters()])

    def inside(self, inner: str) -> set[str]:
        """The names of one part of the network, as they are in that part."""
        return {name.removeprefix(inner) for name in self.shapes if name.startswith(inner)}


def _match(found: Tensors, prefix: str, inner: str, names: _Names) -> Match:
    """The tensors after ``prefix`` as those of the network's part ``inner``."""
    wanted = names.inside(inner)
    homes = {found.home[prefix + name] for name in wanted if prefix + name in found.flat} or {prefix}
    near = [name for name in found.flat if found.home[name] in homes]
    state = {inner + name.removeprefix(prefix): found.flat[name] for name in near if name.startswith(prefix)}
    missing = {inner + name for name in wanted} - state.keys() - names.optional
    misfit = any(names.shapes.get(name, ()) not in (None, tensor.shape) for name, tensor in state.items())
    return Match((prefix,), inner, state, sorted(missing), misfit, [name for name in near if not name.startswith(prefix)])


def _prefixes_in(found: Tensors, inner: str, names: _Names) -> list[str]:
    """The places after which names of the network's part ``inner`` follow, those with most of them first."""
    wanted = names.inside(inner)
    count = Counter(prefix for name in found.flat for prefix in _prefixes(name) if name.removeprefix(prefix) in wanted)
    return sorted(count, key=lambda prefix: (-count[prefix], len(prefix)))


def _in_parts(found: Tensors, names: _Names) -> Match | None:
    """Where parts of the network have different prefixes: the tensors of one mapping are the network's, each of them once."""
    prefixes = _prefixes_in(found, "", names)
    for home in found.homes:
        own = {name: tensor for name, tensor in found.flat.items() if found.home[name] == home}
        state: dict[str, Tensor] = {}
        used: dict[str, str] = {}
        for prefix, (name, shape) in product(prefixes, names.shapes.items()):
            place = prefix + name
            if name not in state and place not in used and place in own and shape in (None, own[place].shape):
                state[name], used[place] = own[place], prefix
        if used.keys() == own.keys() and not names.shapes.keys() - state.keys() - names.optional:
            return Match(tuple(dict.fromkeys(used.values())), "", state, [], False, [])
    return None


def _nearest(found: Tensors, names: _Names) -> list[Match]:
    """What comes closest, the closest first: what follows where most names are found, or after a prefix that all tensors have."""
    largest = found.homes[0]
    all_have = _shared([name for name in found.flat if found.home[name] == largest])
    return [_match(found, prefix, "", names) for prefix in _prefixes_in(found, "", names)[:3] or [largest, *all_have]]


def _fitting(found: Tensors, names: _Names) -> list[Match]:
    for inner in names.inner:
        complete: list[Match] = []
        for prefix in sorted(_prefixes_in(found, inner, names), key=len):
            match = _match(found, prefix, inner, names)
            # What is inside of a place that has all names is a part of it.
            if not match.missing and not any(prefix.startswith(outer.prefixes[0]) for outer in complete):
                complete.append(match)
        if fitting := [match for match in complete if match.fits]:
            return fitting
    return []


def _the_one(file: Path, fitting: list[Match]) -> Match | None:
    """The only one that fits, or of several different ones that which is named as an average."""
    if len(fitting) < 2 or all(_same(match.state, fitting[0].state) for match in fitting):
        return next(iter(fitting), None)
    averaged = [match for match in fitting if _AVERAGES & set(re.split(r"[._]", match.place.lower()))]
    if len(averaged) != 1:
        raise TargetError(
            f"{file} holds several weights that fit the network: {listed([match.place for match in fitting])}",
            fix=_choose(fitting[0]),
        )
    return replace(averaged[0], others=tuple(match.place for match in fitting if match is not averaged[0]))


def _require_no_constants(file: Path, found: Tensors, match: Match) -> None:
    """Nothing, where no mean or std of the pixels is beside the weights: without them the network is given what it never learnt."""
    constants: dict[str, tuple[str, list[float]]] = {}
    for name in match.beside:
        tensor = found.flat[name]
        of_channels = tensor.is_floating_point() and tensor.numel() == max(tensor.shape, default=1)
        if of_channels and (kind := _constant(name)):
            constants.setdefault(kind, (name, tensor.flatten().tolist()))
    if all(number == _NEUTRAL[kind] for kind, (_, numbers) in constants.items() for number in numbers):
        return  # there are none, or they change nothing
    channels = max(len(numbers) for _, numbers in constants.values())
    mean, std = (constants.get(kind, ("", [neutral] * channels))[1] for kind, neutral in _NEUTRAL.items())
    scale = 255 if max(map(abs, mean)) > 1 else 1  # of a layer that takes bytes
    given = ", ".join(
        f"{kind}: [{', '.join(f'{number / scale:.6g}' for number in each)}]" for kind, each in (("mean", mean), ("std", std))
    )
    raise TargetError(
        f"{file} has the constants of a normalisation beside the weights ({listed([name for name, _ in constants.values()])}), "
        "and the network has no place for them",
        fix=f"give them as normalise: {{{given}}}, in Python to attack, with load_model(.., normalised=True); where the network's code "
        f"normalises by itself, {_choose(match)}",
    )


def _constant(name: str) -> str | None:
    """Which of the constants of a normalisation a tensor is called; None for another, such as BatchNorm's."""
    words = set(re.split(r"[._]", name.lower().rpartition(".")[2]))
    return next((kind for kind, names in _CONSTANTS.items() if words & names and "running" not in words), None)


def _choose(match: Match) -> str:
    return f"choose it: weights_key: {match.place}, or --weights-key {match.place}"


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class _Misfits(NamedTuple):
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def _first_that_loads(module: nn.Module, names: _Names, matches: list[Match]) -> tuple[_Misfits, Match]:
    tried = []
    for match in matches:
        tried.append((_load(module, names, match), match))
        if not any(tried[-1][0]):
            return tried[-1]
    return tried[0]


def _load(module: nn.Module, names: _Names, match: Match) -> _Misfits:
    """Load by the network's own method; what did not fit."""
    state = {names.original.get(name, name): tensor for name, tensor in match.state.items()}
    shapes = {names.original[name]: shape for name, shape in names.shapes.items() if name.startswith(match.inner)}
    wrong: list[str] = []
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError:
        wrong = [name for name, shape in shapes.items() if name in state and shape != state[name].shape]
        if not wrong:
            raise
        missing, unexpected = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    missing = [name for name in missing if name in shapes and plain(name) not in names.optional]
    return _Misfits(missing, unexpected, wrong)


def tied(module: nn.Module) -> dict[str, str]:
    """The names of tensors that are another one under an earlier name, and that name."""
    first: dict[tuple[int, torch.Size], str] = {}
    state = module.state_dict()
    is_lazy = torch.nn.parameter.is_lazy
    shared = {
        name: first.setdefault((tensor.data_ptr(), tensor.shape), name)
        for name, tensor in state.items()
        if not is_lazy(tensor) and tensor.numel()
    }
    return {name: earlier for name, earlier in shared.items() if name != earlier}


def _prefixes(name: str) -> list[str]:
    """``a.b.c``: nothing, ``a.`` and ``a.b.``."""
    return ["", *(f"{before}." for before in accumulate(name.split(".")[:-1], "{}.{}".format))]


def _shared(names: Sequence[str]) -> list[str]:
    """The prefixes that all of them have, the shortest first."""
    return [prefix for prefix in _prefixes(next(iter(names), "")) if all(name.startswith(prefix) for name in names)]
