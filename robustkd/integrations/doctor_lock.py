"""Write ``doctor.lock``: the versions and the hashes of all that ``robustkd doctor --fix`` may install (``make doctor-lock``; needs uv).

What robustkd itself requires is left out, with what these packages require in turn: it is there, and a repair never moves it.
"""

from __future__ import annotations

import importlib.metadata as metadata
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

from robustkd.integrations.doctor import LOCK, PEERS

HEAD = "# What 'robustkd doctor --fix' may install, each file by its hash; 'make doctor-lock' writes it. Not torch's own packages.\n"
OF_TORCH = re.compile(r"torchvision|nvidia-|triton|colorama|httpx2-jsfetch")
"""torchvision's build must belong to torch's; the rest is for systems on which robustkd does not run campaigns, or torch's own."""


def main() -> None:
    """Resolve, and write the file."""
    extra = [need for need in _requirements("robustkd", "robustbench") if need not in _requirements("robustkd", "")]
    there = set()
    waiting = [need.name for need in _requirements("robustkd", "")]
    while waiting:
        name = waiting.pop()
        if name not in there:
            there.add(name)
            waiting += [need.name for need in _requirements(name, "")]
    left_out = [word for name in sorted(there) for word in ("--no-emit-package", name)]
    blocks = _compiled([f"{name}=={version}" for name, version in PEERS.items()], "--no-deps")
    blocks += [block for block in _compiled([str(need) for need in extra], *left_out) if not OF_TORCH.match(block)]
    LOCK.write_text(HEAD + "\n".join(sorted(blocks)) + "\n")


def _requirements(package: str, extra: str) -> list[Requirement]:
    try:
        lines = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    needs = [Requirement(line) for line in lines]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return [Requirement(f"{need.name}{need.specifier}") for need in needs]


def _compiled(requirements: list[str], *options: str) -> list[str]:
    uv = Path(sys.executable).with_name("uv")
    always = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
    command = [str(uv), "pip", "compile", "-", *always, *options]
    done = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True, check=True)
    return re.split(r"\n(?=\S)", done.stdout.strip())


if __name__ == "__main__":
    main()
