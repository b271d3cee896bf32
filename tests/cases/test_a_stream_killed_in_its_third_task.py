"""A campaign that is killed while a network learns its third task goes on in the third task, and ends with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from robustkd.defenses.image.streams.wa import WARecipe
from robustkd.defenses.training import train
from support.campaigns import tiny_campaign

Command = Callable[..., tuple[int, str, str]]
STREAM = "{kind: wa, model: tiny-cnn, model_params: {width: 2}, tasks: 5, memory: 20, epochs: 2, batch_size: 10}"


def weights(out: str) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in Path(out).rglob("*.safetensors")}


def test_it_goes_on_in_the_third_task(robustkd: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(tiny_campaign("stream", defenses={"stream": STREAM}))
    monkeypatch.setitem(train.__kwdefaults__, "checkpoint_seconds", 0)
    loss, tasks = WARecipe.loss, list[int]()

    def ran(out: str, dies_in: int | None = None) -> int:
        tasks.clear()

        def watched(self: WARecipe, *arguments):
            number = self.task.new[0] // 2 + 1
            if number == dies_in and tasks.count(number) == 2:
                raise KeyboardInterrupt
            tasks.append(number)
            return loss(self, *arguments)

        monkeypatch.setattr(WARecipe, "loss", watched)
        return robustkd("run", "c.yaml", "--no-track", "--quiet", "--workers", "0", "--out", out)[0]

    assert ran("whole") == 0
    whole = list(tasks)
    assert ran("out", dies_in=3) != 0
    assert sorted(set(tasks)) == [1, 2, 3]
    done = list(tasks)
    assert ran("out") == 0
    assert tasks[0] == 3
    assert done + tasks == whole  # no step is made twice, and none is left out
    found = weights("whole")
    assert found
    assert weights("out") == found
