"""A PATH on which some programs are missing."""

from __future__ import annotations

import os
from pathlib import Path


def path_without(folder: Path, *missing: str) -> str:
    """Return a PATH with all programs of this one but ``missing``, as links in ``folder``."""
    programs = folder / "programs"
    programs.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            link = programs / program.name
            if program.name not in missing and not link.is_symlink():
                link.symlink_to(program)
    return str(programs)
