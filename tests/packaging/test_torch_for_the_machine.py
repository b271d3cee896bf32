"""Which build of torch ``make torch`` installs: without CUDA on a Linux machine without an accelerator, where its index can be reached."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch comes without CUDA anyhow")


def index(folder: Path, version: str) -> str:
    """A package index with one made-up wheel of each package; its address."""
    for name in PACKAGES:
        info, content = f"{name}-{version}.dist-info", f"__version__ = {version!r}\n"
        files = {
            f"{name}/__init__.py": content,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(
            f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
            for path, text in files.items()
        )
        page = folder / name
        page.mkdir(parents=True)
        wheel = f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(page / wheel, "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        (page / "index.html").write_text(f'<a href="{wheel.replace("+", "%2B")}">{wheel}</a>')
    return folder.as_uri()


@pytest.fixture
def made(tmp_path: Path):
    """Runs ``make torch`` in an empty environment; gives what it said and the versions that are installed."""
    bin_folder = Path(sys.executable).parent
    if not (bin_folder / "uv").exists():
        pytest.skip("uv is not beside this Python")
    home = tmp_path / "environment"
    subprocess.run([bin_folder / "uv", "venv", "--quiet", "--python", sys.executable, home], check=True)
    (home / "bin" / "uv").symlink_to(bin_folder / "uv")

    def run(**variables: str) -> tuple[str, dict[str, str]]:
        command = [
            "make",
            "--no-print-directory",
            "torch",
            f"VENV={home}",
            *(f"{key}={value}" for key, value in variables.items()),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        site = next((home / "lib").glob("python*/site-packages"))
        found = (path.name.removesuffix(".dist-info").partition("-")[::2] for path in site.glob("torch*.dist-info"))
        return done.stdout, dict(found)

    return run


def test_without_an_accelerator_it_is_the_build_without_cuda(made, tmp_path):
    said, found = made(CPU_TORCH=index(tmp_path / "cpu", "99.0+cpu"), ACCELERATOR="")
    assert found == dict.fromkeys(PACKAGES, "99.0+cpu")
    assert "without CUDA" in said
    assert made(CPU_TORCH=index(tmp_path / "later", "99.1+cpu"), ACCELERATOR="") == ("", found)  # what is there stays


@pytest.mark.parametrize("given", [{"ACCELERATOR": "/usr/bin/nvidia-smi"}, {"ACCELERATOR": "", "CPU_TORCH": ""}])
def test_with_one_or_when_asked_it_comes_with_everything_else(made, tmp_path, given):
    assert made(**{"CPU_TORCH": index(tmp_path / "cpu", "99.0+cpu"), **given}) == ("", {})


@pytest.mark.parametrize("where", ["nowhere", "old"])
def test_an_index_that_has_none_is_told_and_keeps_nobody(made, tmp_path, where):
    index(tmp_path / "old", "1.0+cpu")  # older than setup.py wants
    said, found = made(CPU_TORCH=(tmp_path / where).as_uri(), ACCELERATOR="")
    assert found == {}
    assert "comes with CUDA" in said
