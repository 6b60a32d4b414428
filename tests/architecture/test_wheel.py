"""What `pip install` brings is what the repository has: code, assets, recipes, templates."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

LEFT_OUT = {".pyc"}


def test_the_wheel_holds_every_file_of_the_package(root: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    done = subprocess.run(build, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    package = root / "src" / "limner"
    there = {
        path.relative_to(root / "src").as_posix()
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in LEFT_OUT
    }
    assert "limner/py.typed" in packed
    assert not there - packed, "in the package but not in the wheel"
    assert not {name for name in packed - there if ".dist-info/" not in name}, "in the wheel but not in the package"
