"""Writes the API page of the library from its docstrings: ``python docs/api.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import lasaft

if __name__ == "__main__":
    for name in lasaft.__all__:
        getattr(lasaft, name)  # pdoc sees what has been loaded
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("lasaft", output_directory=Path(sys.argv[1]))
