"""The text of a campaign that runs in seconds."""

from __future__ import annotations

from collections.abc import Mapping

PLAIN = {"plain": "{kind: standard, model: tiny-cnn, epochs: 1}"}
FGSM = {"fgsm": "{kind: fgsm}"}


def tiny_campaign(
    name: str = "tiny",
    *,
    train: int = 100,
    test: int = 20,
    checks: str | None = "none",
    defenses: Mapping[str, str] = PLAIN,
    attacks: Mapping[str, str] = FGSM,
    **sections: str,
) -> str:
    """A campaign in linf with eps = 0.1 on a few digits; ``defenses`` and ``attacks`` map names to uses as they are written.

    Args:
        checks: ``none``, a level or a mapping in braces; None leaves the section out.
        sections: others, such as ``matrix="{seeds: [0, 1]}"``, above the defenses: the attacks come last, so that a test may add one.
    """
    head = {"version": "1", "name": name, "data": f"{{name: digits, train: {train}, test: {test}}}"}
    head |= {"threat": "{norm: linf, eps: 0.1}"} | ({} if checks is None else {"checks": checks}) | sections
    lines = [f"{key}: {value}" for key, value in head.items()]
    for section, uses in (("defenses", defenses), ("attacks", attacks)):
        lines += [f"{section}:", *(f"  {key}: {use}" for key, use in uses.items())]
    return "\n".join(lines) + "\n"
