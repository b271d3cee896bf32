"""A folder was copied, restored from a backup, or the clock was set back: files' times say nothing of which is newer.

The campaign is then changed and run again. The table had the new number, and the report beside it the former one.
"""

import os
import time

import robustkd
from support.campaigns import tiny_campaign


def test_the_report_is_of_the_results_beside_it(tmp_path):
    file, out = tmp_path / "c.yaml", tmp_path / "out"
    former = tiny_campaign("dated", train=60, test=12)
    file.write_text(former)
    quietly = {"out": out, "workers": 0, "device": "cpu", "track": False}
    robustkd.run(file, **quietly)
    later = time.time() + 3600
    for name in ("report.html", "report.md"):
        os.utime(out / name, (later, later))
    file.write_text(former.replace("eps: 0.1", "eps: 0.7"))
    (cell,) = robustkd.run(file, **quietly).cells
    assert cell.eps == 0.7
    for name in ("report.html", "report.md"):
        assert "0.7" in (out / name).read_text()
    written = (out / "report.html").stat().st_mtime_ns
    robustkd.run(file, **quietly)
    assert (out / "report.html").stat().st_mtime_ns == written
