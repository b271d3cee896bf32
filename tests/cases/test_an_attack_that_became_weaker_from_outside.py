"""An attack whose other networks were trained otherwise is another attack, though its parameters are the same; of a defense that was
trained anew, with all that is made of it, the attack is the same.
"""

from __future__ import annotations

import json
from pathlib import Path

from support.campaigns import transfer_campaign
from support.command_line import CommandLine


def run(robustkd: CommandLine, name: str, *, epochs: int = 1, second: int = 1) -> None:
    Path(f"{name}.yaml").write_text(transfer_campaign(name, epochs=epochs, second=second))
    said = robustkd("run", f"{name}.yaml", "--workers", "0", "--quiet", "--no-track")
    assert said.code == 0, said.err


def test_the_gate_is_judged_of_a_defense_trained_anew_and_not_under_another_surrogate(robustkd: CommandLine) -> None:
    run(robustkd, "before")
    run(robustkd, "anew", epochs=2)
    run(robustkd, "weaker", second=3)
    robustkd("gate", "before", "--write-baseline", "base.json")
    for was in ("base.json", "before"):
        told = robustkd("gate", "anew", "--baseline", was).out
        assert "not judged" not in told
        assert "not the same attack" not in robustkd("compare", was, "anew").out
        judged = robustkd("gate", "weaker", "--baseline", was)
        assert judged.code == 5
        assert "transfer is not the attack of the baseline (its network second is another one)" in judged.out
        assert "transfer: not the same attack in A and B (its network second is another one)" in robustkd(
            "compare", was, "weaker"
        ).out.replace("\n", " ")
    # What was written before this was noted is judged as it was.
    old = json.loads(Path("base.json").read_text())
    for row in old["samples"]:
        row.pop("conditions", None)
    Path("old.json").write_text(json.dumps(old))
    assert robustkd("gate", "weaker", "--baseline", "old.json").code != 5
