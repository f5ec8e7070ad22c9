"""The documents name files and folders that exist, and changes that fit the code as it is."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

import lasaft
from jobs.cli.job_table import JOBS
from lasaft.cli.arguments import read_arguments
from lasaft.cli.commands import VERBS
from lasaft.cli.grammar import Given, parse
from pipeline.config.roles import all_options
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


# Clusters are not at hand where tests run. What their commands say is checked by what reads them.
_FILES = (
    "cluster.yaml",
    "deploy/rayjob.yaml",
    "deploy/mlflow/kubernetes.yaml",
    "deploy/Dockerfile",
)


def _blocks() -> list[str]:
    """Return the blocks of commands in the guide's sections on clusters."""
    text = (ROOT / "docs" / "guide.md").read_text()
    (section,) = re.findall(r"^## 5\..*?(?=^## Reading)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def _at_the_top_of(name: str) -> str:
    """Return the commands in the comments that a file begins with."""
    lines = takewhile(lambda line: line.startswith("#"), (ROOT / name).read_text().splitlines())
    return "".join(f"{line[4:]}\n" for line in lines if line.startswith("#   "))


_CLUSTER_COMMANDS = [*_blocks(), *map(_at_the_top_of, _FILES)]


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each simple command, without what it does with its output."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                yield [one for one in words if not re.fullmatch(r"[A-Z]\w*=.*|/dev/null|>", one)]
                words = []
            else:
                words.append(word)


def test_a_block_of_cluster_commands_runs_or_says_what_it_needs(tmp_path: Path) -> None:
    blocks = _blocks()
    assert len(blocks) > 5
    for block in blocks:
        subprocess.run(["bash", "-n", "-c", block], check=True)
        if not block.startswith("# needs "):
            subprocess.run(["bash", "-ec", block], check=True, cwd=ROOT, capture_output=True)


def test_ray_knows_every_option_of_its_commands() -> None:
    from ray.scripts.scripts import cli

    found = set()
    for words in (words for text in _CLUSTER_COMMANDS for words in _commands(text)):
        if words[:1] == ["ray"]:
            command, rest = cli.commands[words[1]], words[2:]
            if command.name == "job":
                command, rest = getattr(command, "commands")[rest[0]], rest[1:]  # noqa: B009
            command.make_context(str(command.name), rest)
            found.add(command.name)
    assert {"up", "down", "dashboard", "get-auth-token", "start", "submit", "logs", "stop"} <= found


def test_every_job_on_a_cluster_knows_its_options() -> None:
    found = set()
    for words in (words for text in _CLUSTER_COMMANDS for words in _commands(text)):
        if "python" in words and words[words.index("python") + 2].startswith("jobs."):
            start = words.index("python")
            job = words[start + 2].removeprefix("jobs.")
            given = read_arguments(
                words[start + 3 :],
                all_options(),
                flags={"json", *JOBS[job].flags},
                values=("preset", "rerun"),
            )
            assert given.problems == []
            found.add(job)
    assert found == {"doctor", "run", "report"}


@pytest.mark.parametrize("name", _FILES)
def test_the_guide_and_the_file_say_the_same_commands(name: str) -> None:
    said = [words for block in _blocks() for words in _commands(block)]
    programs = (
        "ray",
        "docker",
        "kubectl apply -f deploy",
        "kubectl create secret generic lasaft-mlflow",
    )
    own = [words for words in _commands(_at_the_top_of(name)) if words]
    named = [words for words in own if " ".join(words).startswith(programs)]
    assert named
    # Where a file leaves something open, the guide may say it.
    assert [words for words in named if words not in said and "..." not in " ".join(words)] == []


def test_the_notebook_runs_and_separates(tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "docs" / "five_minutes.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in cells)
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    gains = re.findall(r"SDR (-?[\d.]+) dB, the mixture itself (-?[\d.]+) dB", done.stdout)
    assert len(gains) == 2
    assert all(float(after) > float(before) + 6 for after, before in gains)
    assert done.stdout.endswith("the same again: True\n")


def test_the_api_page_has_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    command = [sys.executable, "-W", "error", str(ROOT / "docs" / "api.py"), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "lasaft.html").read_text()
    names = set(lasaft.__all__) - {"metrics"}
    assert {name for name in names if f'<section id="{name}">' not in page} == set()
    assert "names of sources, or one of them" in page
    assert (tmp_path / "lasaft" / "metrics.html").is_file()


def test_every_command_of_lasaft_in_a_document_is_one() -> None:
    found = []
    for document in DOCUMENTS:
        for words in (words for text in _code(document) for words in _commands(text)):
            words = words[1:] if words[:1] == ["./run"] else words  # noqa: PLW2901
            if words[:1] == ["lasaft"]:
                end = next((at for at, word in enumerate(words) if word in ("<", "#")), None)
                assert isinstance(parse(words[1], VERBS[words[1]], words[2:end]), Given)
                found.append(words[1])
    assert set(found) == set(VERBS)


def _code(document: Path) -> list[str]:
    """Return the blocks of commands, and those in the cells of tables."""
    text = document.read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return blocks + re.findall(r"^\|.*`(lasaft [^`]*)`", text, re.MULTILINE)
