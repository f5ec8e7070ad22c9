"""The documents name files and folders that exist, and changes that fit the code as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_ROOMS = "benchmarks|deploy|docs|jobs|lasaft|pipeline|tests"
_PATH = re.compile(rf"(?<![\w./~-])(?:{_ROOMS})/[\w./*-]*\w")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    text = re.sub(r"```diff\n.*?```", "", document.read_text(), flags=re.DOTALL)
    named = set(_PATH.findall(text))
    assert [path for path in sorted(named) if not any(ROOT.glob(path))] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_module_that_a_document_runs_exists(document: Path) -> None:
    for name in set(re.findall(r"python -m ((?:jobs|benchmarks)\.\w+)", document.read_text())):
        assert (ROOT / name.replace(".", "/")).with_suffix(".py").is_file(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)\)", document.read_text())
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (document.parent / link).exists()] == []


def _hunks() -> list[tuple[str, str]]:
    """Return each hunk of the examples that changes a file of today: the file, and its lines."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    hunks, name = [], ""
    for part in re.split(r"^(?=--- |@@|```)", text, flags=re.MULTILINE):
        first, _, lines = part.partition("\n")
        if first.startswith("--- "):
            name = first.removeprefix("--- ").removeprefix("a/")
        elif first.startswith("@@") and name != "/dev/null":
            hunks.append((name, lines))
    return hunks


@pytest.mark.parametrize(("name", "lines"), _hunks())
def test_an_example_changes_lines_that_are_there(name: str, lines: str) -> None:
    before = [line[1:] for line in lines.splitlines() if not line.startswith("+")]
    assert "\n".join(before) in (ROOT / name).read_text()
