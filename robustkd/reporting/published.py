"""Published figures that stand beside measured ones in the trade-off chart, never among them."""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.scoring.results import Results

SETTING = "ResNet-18, CIFAR-10’s 10,000 test images, L∞ ≤ 8/255, AutoAttack"
TRANSCRIBED = "transcribed by a third party"
FROM_MEMORY = "from memory"


@dataclass(frozen=True)
class Published:
    """A figure of somebody else's.

    Attributes:
        clean, robust: shares of the test images, without an attack and under AutoAttack.
        source: the method's paper.
        provenance: how the figure came here. None was compared with its paper, and the page says so.
    """

    name: str
    clean: float
    robust: float
    source: str
    provenance: str


_CIFAR10 = (
    Published("B-MTARD", 0.8820, 0.4744, "Zhao et al., TPAMI 2024", TRANSCRIBED),
    Published("CIARD", 0.8887, 0.4888, "Lu et al., ICCV 2025", TRANSCRIBED),
    Published("RSLAD", 0.8338, 0.5149, "Zi et al., ICCV 2021", FROM_MEMORY),
    Published("ARD", 0.8393, 0.4919, "Goldblum et al., AAAI 2020", FROM_MEMORY),
    Published("IAD", 0.8324, 0.4910, "Zhu et al., ICLR 2022", FROM_MEMORY),
    Published("PGD-AT", 0.8338, 0.4583, "Madry et al., ICLR 2018", FROM_MEMORY),
)


def references(results: Results) -> tuple[Published, ...]:
    """The figures that were measured on this campaign's data and threat model; none for any other."""
    threat = results.threat
    same = (
        results.data.name == "cifar10" and threat.norm == "linf" and abs(threat.eps - 8 / 255) < 1e-6 and threat.where is None
    )
    return _CIFAR10 if same else ()
