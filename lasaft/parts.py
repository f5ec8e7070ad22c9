"""What networks are put together from, by name: modulations and blocks.

Nothing here imports torch, because ``--help`` and the checks of a command line need this file.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple


class DeclaredModulation(NamedTuple):
    """What a file of ``lasaft/network/modulations`` says of its modulation (see that package).

    Attributes:
        summary: its one line of help.
        label: its class, and its part of a network's name.
        options: those of the network that it uses and not every modulation does.
    """

    summary: str
    label: str
    options: tuple[str, ...]


def _declared_modulation(path: Path) -> DeclaredModulation:
    """Read what a file declares without running it: it imports torch, and ``--help`` must not."""
    code = ast.parse(path.read_text(encoding="utf-8"), str(path))
    found: dict[str, Any] = {}
    for statement in code.body:
        match statement:
            case ast.Assign([ast.Name("LABEL" | "OPTIONS" as name)], value):
                found[name] = ast.literal_eval(value)
    summary = (ast.get_docstring(code) or "").partition("\n")[0].rstrip(".")
    assert summary, f"{path}: has no docstring, whose first line is the text of --help"
    assert len(found) == 2, f"{path}: must set LABEL and OPTIONS to constants"
    return DeclaredModulation(summary, found["LABEL"], tuple(found["OPTIONS"]))


# By name, which is that of the file.
MODULATIONS: Mapping[str, DeclaredModulation] = {
    "none": DeclaredModulation("Leaves the blocks alone", "", ()),
    **{
        path.stem: _declared_modulation(path)
        for path in sorted((Path(__file__).parent / "network" / "modulations").glob("[!_]*.py"))
    },
}
# What blocks mix with and their transform of frequencies, as names of networks have it.
BLOCKS: Mapping[str, tuple[str, str]] = {
    "tfc": ("TFC", ""),
    "tfc_tdf": ("TFC", "_TDF"),
    "tfc_lasaft": ("TFC", "_LaSAFT"),
    "tfc_lightsaft": ("TFC", "_LightSAFT"),
    "tfc_lasaft_v2": ("TFC", "_LaSAFTv2"),
    "tfc_lightsaft_v2": ("TFC", "_LightSAFTv2"),
    "tfc_rnn": ("TFC", "_RNN"),
    "tdf": ("TDF", ""),
    "tdc": ("TDC", ""),
    "tdc_rnn": ("TDC", "_RNN"),
}
V2_BLOCKS = ("tfc_lasaft_v2", "tfc_lightsaft_v2")
if TYPE_CHECKING:
    ModulationName = BlockName = str
else:
    ModulationName, BlockName = Literal[tuple(MODULATIONS)], Literal[tuple(BLOCKS)]
