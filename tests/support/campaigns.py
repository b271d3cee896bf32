"""The text of a campaign that runs in seconds."""

from __future__ import annotations

from collections.abc import Mapping

PLAIN = {"plain": "{kind: standard, model: tiny-cnn, epochs: 1}"}
FGSM = {"fgsm": "{kind: fgsm}"}


def external(code: str, name: str = "mine", **params: object) -> dict[str, str]:
    """The one defense of a campaign: a model that a file of one's own builds."""
    given = "".join(f", {key}: {value}" for key, value in params.items())
    return {name: f"{{kind: external, code: '{code}'{given}}}"}


def tiny_campaign(
    name: str = "tiny",
    defenses: Mapping[str, str] = PLAIN,
    attacks: Mapping[str, str] = FGSM,
    *,
    train: int | None = 100,
    test: int = 20,
    eps: float = 0.1,
    checks: str | None = "none",
    **sections: str,
) -> str:
    """A campaign in linf on a few digits; ``defenses`` and ``attacks`` map names to uses as they are written.

    Args:
        train: None leaves it out.
        checks: ``none``, a level or a mapping in braces; None leaves the section out.
        sections: others, such as ``matrix="{seeds: [0, 1]}"``, above the defenses: the attacks come last, so that a test may add one.
            ``data`` and ``threat`` take the place of those above.
    """
    counts = {"test": test} if train is None else {"train": train, "test": test}
    digits = ", ".join(f"{part}: {count}" for part, count in {"name": "digits", **counts}.items())
    head = {"version": "1", "name": name, "data": f"{{{digits}}}", "threat": f"{{norm: linf, eps: {eps}}}"}
    head |= ({} if checks is None else {"checks": checks}) | sections
    lines = [f"{key}: {value}" for key, value in head.items()]
    for section, uses in (("defenses", defenses), ("attacks", attacks)):
        lines += [f"{section}:", *(f"  {key}: {use}" for key, use in uses.items())]
    return "\n".join(lines) + "\n"


def transfer_campaign(
    name: str, *, epochs: int = 1, second: int = 1, exclude: str = "[{defense: second}, {defense: student}]"
) -> str:
    """A campaign in which ``plain`` is attacked from a ``second`` network and from one that was distilled from itself.

    Args:
        epochs: of ``plain``.
        second: of that network.
        exclude: what is not attacked.
    """
    network = "model: tiny-cnn, batch_size: 32, lr: 0.05"
    return tiny_campaign(
        name,
        {
            "plain": f"{{kind: standard, {network}, epochs: {epochs}}}",
            "second": f"{{kind: standard, {network}, epochs: {second}, replica: 1}}",
            "student": "{kind: kd, teacher: plain, student: tiny-cnn, epochs: 1, batch_size: 32, lr: 0.05}",
        },
        {"transfer": "{kind: transfer, surrogates: [second, student], attacks: [{kind: fgsm}]}"},
        matrix=f"{{exclude: {exclude}}}",
    )
