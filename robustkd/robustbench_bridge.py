"""``build`` under the name that saved cards hold: ``robustkd.robustbench_bridge:build``. The code is in ``integrations``."""

from robustkd.integrations.robustbench import build

__all__ = ["build"]
