"""A network as a graph of its layers, which bounds are carried through."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from robustkd.contracts import RobustkdError
from robustkd.normalisation.layer import Normalise, Restored


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (Normalise, Restored)) or super().is_leaf_module(m, module_qualified_name)


def traced(module: nn.Module, refusal: Callable[[str], RobustkdError]) -> fx.GraphModule:
    """The graph of a module; it shares the module's layers and weights.

    Args:
        module: layers of ``torch.nn`` in any arrangement that ``torch.fx`` can follow.
        refusal: makes the error that is raised from a reason.
    """
    try:
        return fx.GraphModule(module, _Tracer().trace(module))
    except Exception as error:  # whatever a foreign forward raises when it is given symbols
        first = str(error).splitlines()[0] if str(error) else repr(error)
        raise refusal(f"torch.fx cannot follow it ({first})") from error
