"""An array's header may claim any size, and a small archive may unpack to more than the machine has."""

import struct
import zipfile

import pytest

from robustkd.cli import main
from support.campaigns import tiny_campaign


def test_it_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1500000, 1024, 1024), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    text = tiny_campaign().replace("{name: digits, train: 100, test: 20}", "{name: npz, file: huge.npz}")
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["robustkd", "plan", "c.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "data 'npz': they do not fit into memory" in capsys.readouterr().err
