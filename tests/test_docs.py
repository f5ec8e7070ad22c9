"""The documents name files, commands and options that exist, and changes that fit the code."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from unittest import mock

import pytest

import lasaft
from jobs.__main__ import main as list_jobs
from jobs.cli import parse as parse_job
from jobs.cli.job_table import JOBS
from jobs.cli.readme import parse_readme
from lasaft.cli import main as lasaft_main
from lasaft.cli.arguments import read_arguments
from lasaft.cli.commands import VERBS
from lasaft.cli.grammar import FLAGS, parse
from lasaft.errors import ConfigError, refuse
from lasaft.output import be_quiet
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
def test_every_link_leads_to_a_file_and_a_heading_in_it(document: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    assert [link for link in links if "://" not in link and not _leads(document, link)] == []


def _leads(document: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    page = document.parent / name if name else document
    if not page.exists() or not anchor:
        return page.exists()
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return anchor in {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}


def test_readme_and_guide_lead_to_every_page() -> None:
    pages = {path.name for path in DOCUMENTS if path.parent.name == "docs"}
    said = (ROOT / "README.md").read_text()
    assert {page for page in pages if f"](docs/{page})" not in said} == set()
    guide = (ROOT / "docs" / "guide.md").read_text()
    not_for_users = {"guide.md", "house.md", "notes.md", "reliability.md", "shards.md"}
    assert {page for page in pages - not_for_users if f"| [{page}]({page}) |" not in guide} == set()


def test_the_examples_of_new_parts_fit_and_their_commands_are_understood(tmp_path: Path) -> None:
    """On a copy with all of the examples, whose parts the commands name."""
    document = ROOT / "CONTRIBUTING.md"
    for name in ("jobs", "lasaft", "pipeline"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # No repository is looked for above: in one, files outside of it would be left as they are.
    outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    examples = re.findall(r"^```diff\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
    for example in examples:
        subprocess.run(
            ["git", "apply"], input=example, text=True, cwd=tmp_path, env=outside, check=True
        )
    jobs = [
        [program[5:], *words] for program, words in _own_commands(document) if "..." not in words
    ]
    assert len(jobs) >= len(examples)
    code = "import json, sys; from jobs.cli import parse\n"
    code += "for job, *words in json.load(sys.stdin): parse(words, job)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(jobs), text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""}, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# Clusters are not at hand where tests run. What their commands say is checked by what reads them.
_FILES = (
    "cluster.yaml",
    "deploy/rayjob.yaml",
    "deploy/mlflow/kubernetes.yaml",
    "deploy/Dockerfile",
)


def _blocks() -> list[str]:
    """Return the blocks of commands of a cluster's own, which come before MLflow's page."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    (section,) = re.findall(r"^## A Ray.*?(?=^## MLflow)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def _at_the_top_of(name: str) -> str:
    """Return the commands in the comments that a file begins with."""
    lines = takewhile(lambda line: line.startswith("#"), (ROOT / name).read_text().splitlines())
    return "".join(f"{line[4:]}\n" for line in lines if line.startswith("#   "))


_CLUSTER_COMMANDS = [*_blocks(), *map(_at_the_top_of, _FILES)]


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each simple command, without what it reads and where its output goes."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|<>()"):
                yield [one for one in words if not re.fullmatch(r"[A-Z]\w*=.*|/dev/null", one)]
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


@pytest.mark.parametrize("name", _FILES)
def test_the_page_on_clusters_and_the_file_say_the_same_commands(name: str) -> None:
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
    # Where a file leaves something open, the page may say it.
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


# Programs of this project, as commands name them; others are not looked at.
_OWN = re.compile(r"(?:jobs|benchmarks)(?:\.\w+)?|lasaft")
_STANDS_FOR = {"PRESET": "film"}
# What a command needs and has not got here.
_NOT_HERE = re.compile(r"does not exist|is no (?:folder|checkpoint)|holds no (?:shards|scores)")
_BENCHMARKS = [
    path for path in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in path.read_text()
]


def _code(document: Path) -> list[str]:
    """Return what a document, or a benchmark's docstring, sets as code and may be commands."""
    text = document.read_text()
    if document.suffix == ".py":
        text = ast.get_docstring(ast.parse(text), clean=False) or ""
        lines = re.findall(r"^ {4}(\S.*(?:\n {20,}\S.*)*)", text, re.MULTILINE)
        code = [re.split(r" {2,}", re.sub(r"\n +", " ", line))[0] for line in lines]
        code += re.findall(r"``([^`]*)``", text)
        return [re.sub(r"[][]", "", line) for line in code]
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]*)`", text)]
    spans += re.findall(r"^ {4}(\S.*)", text, re.MULTILINE)
    return blocks + [span for span in spans if re.search(r"\b(?:jobs|benchmarks|lasaft)\b", span)]


def _own_commands(document: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield program and words of each command of this project; "..." stands for words left out."""
    for words in (words for text in _code(document) for words in _commands(text)):
        at = next((at for at, word in enumerate(words) if _OWN.fullmatch(word)), len(words))
        before, program, rest = words[:at], words[at : at + 1], words[at + 1 :]
        if program and before in ([], ["./run"]):
            yield program[0], rest if program == ["lasaft"] else ["...", *rest]
        elif program and before[-2:] == ["python", "-m"]:
            yield program[0], [_STANDS_FOR.get(word, word) for word in rest]


def _problems(program: str, words: list[str]) -> list[str]:
    """Return what a program finds wrong with its words, but for files that are not here.

    Of a name alone, and where words are left out, only the names are looked at.
    """
    package, _, name = program.partition(".")
    said = [word for word in words if word != "..."]
    try:
        if package == "benchmarks":
            _begin(program, said)
        elif package == "lasaft":
            _begin_lasaft(said)
        elif not name:
            assert list_jobs(said) == 0
        elif not words or said != words:
            flags, values = {*FLAGS, *JOBS[name].flags}, ("preset", "rerun")
            refuse(read_arguments(said, all_options(), flags=flags, values=values).problems)
        elif name == "main":
            parse_readme(words)
        else:
            parse_job(words, name)
    except ConfigError as error:
        return [text for text in map(str, error.problems) if not _NOT_HERE.search(text)]
    return []


def _begin_lasaft(words: list[str]) -> None:
    if words and words[0].startswith("-"):
        assert lasaft_main(words) == 0
    elif words:
        verb = VERBS[words[0]]
        if words[1:]:
            parse(words[0], verb, words[1:])


def _begin(program: str, words: list[str]) -> None:
    """Begin a benchmark, up to where its own parser has taken its words."""
    understand = ArgumentParser.parse_args

    class UnderstoodError(Exception):
        pass

    def stop(parser: ArgumentParser) -> None:
        understand(parser, words)
        raise UnderstoodError

    with mock.patch.object(ArgumentParser, "parse_args", stop), pytest.raises(UnderstoodError):
        import_module(program).main()


_SAYING = [path for path in DOCUMENTS if path.name != "CONTRIBUTING.md"] + _BENCHMARKS


@pytest.mark.parametrize("document", _SAYING, ids=lambda path: path.name)
def test_every_command_in_a_document_is_understood(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jobs.cli.command.bring", lambda config, job: None)  # no store is here
    found = tmp_path / "runs/search/search/best.yaml"
    found.parent.mkdir(parents=True)
    found.write_text("lr: 0.001\n")
    wrong = [
        (program, words, problems)
        for program, words in _own_commands(document)
        if (problems := _problems(program, words))
    ]
    be_quiet(False)
    assert wrong == []


def test_documents_have_a_command_of_every_kind() -> None:
    found = [command for path in _SAYING for command in _own_commands(path)]
    programs = {program for program, _ in found}
    assert programs >= {f"jobs.{name}" for name in JOBS} | {
        f"benchmarks.{p.stem}" for p in _BENCHMARKS
    }
    assert {words[0] for program, words in found if program == "lasaft" and words} >= set(VERBS)
