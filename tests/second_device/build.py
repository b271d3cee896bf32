"""Compiles the second device, and tells child processes of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

BACKEND = Path(__file__).with_name("backend")
ENTRY_POINT = "[torch.backends]\nsecond = second_backend:register\n"


def build(folder: Path) -> Path:
    """Compile the extension into ``folder``, which is one to put on PYTHONPATH; half a minute.

    Raises:
        FileNotFoundError: there is no C++ compiler (``CXX``, or c++).
        RuntimeError: it does not compile.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise FileNotFoundError(f"no C++ compiler: {compiler}")
    flags = ["-O0", "-w", "-shared", "-fPIC", "-std=c++20", "-DTORCH_EXTENSION_NAME=second_device_native"]
    includes = [f"-I{path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    libraries = [*(f"-L{path}" for path in library_paths()), "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]
    source, output = BACKEND / "second_device.cpp", folder / "second_device_native.so"
    command = [compiler, *flags, *includes, str(source), "-o", str(output), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the second device does not compile: {done.stderr[-2000:]}")
    info = folder / "second_device-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: second-device\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINT)
    return folder


def environment(built: Path, **more: str) -> Mapping[str, str]:
    """The environment of a process that has the device, and whose children have it too."""
    root = Path(__file__).resolve().parents[2]
    path = [str(built), str(BACKEND), str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **more}
