"""The program `rdpm`, which the wheel installs beside this package."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def find() -> str:
    """The path of the program: that of this environment, else the first in PATH.

    Raises FileNotFoundError if there is none: this package was installed without it.
    """
    name = "rdpm" + (sysconfig.get_config_var("EXE") or "")
    beside = Path(__file__).resolve().parent.parent
    folders = [
        sysconfig.get_path("scripts"),
        sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
        beside / "bin",  # pip install --target
    ]
    for folder in folders:
        path = Path(folder) / name
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(
            f"the program `{name}` is neither in {', '.join(map(str, folders))} nor in PATH: "
            "install the wheel of rdpm, which has both"
        )
    return found
