"""What ``pip install`` brings: the library alone is small and works without Ray."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import jobs
import lasaft
from lasaft.checkpoint import save_checkpoint
from pipeline.tracking import registry
from tests.helpers import ROOT
from tests.helpers.audio import files_of, noise, tiny_model, write

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What torch brings where it is built for CUDA.
_OF_CUDA = re.compile(r"nvidia|cuda|triton")
# lasaft, its nine dependencies and what these need.
_PACKAGES = 24


def _names(requirements: list[str]) -> list[str]:
    return [re.split(r"[\[><=]", one)[0].lower() for one in requirements]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment in which nothing but the library is installed."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    command = [
        str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile",
        "--retries", "1", "-c", str(ROOT / "constraints.txt"), str(ROOT),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and re.search("connection|resolve", done.stderr, re.IGNORECASE):
        pytest.skip(f"no package index answers: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def _run(*command: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        list(map(str, command)),
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_library_brings_few_packages_and_nothing_of_the_workflow(empty: Path) -> None:
    listed = json.loads(_run(empty / "python", "-m", "pip", "list", "--format", "json").stdout)
    found = {one["name"].lower() for one in listed} - {"pip", "setuptools"}
    found = {name for name in found if not _OF_CUDA.search(name)}
    # torch needs these two itself.
    assert not found & (
        set(_names(PROJECT["optional-dependencies"]["pipeline"])) - {"fsspec", "jinja2"}
    )
    assert len(found) <= _PACKAGES, sorted(found)


def test_a_song_is_separated_where_nothing_else_is_installed(empty: Path, tmp_path: Path) -> None:
    assert _run(empty / "lasaft", "--version", folder=tmp_path).stdout == (
        f"lasaft {lasaft.__version__}\n"
    )
    model = tiny_model()
    save_checkpoint(tmp_path / "c", model.state_dict(), model.config, {})
    song = write(tmp_path / "song.wav", noise(2, 5000))
    done = _run(
        empty / "lasaft", "separate", song, "--checkpoint", "c", "--output_dir", "out",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(files_of(tmp_path / "out")) == 4


def test_the_installed_library_has_types(empty: Path) -> None:
    where = _run(empty / "python", "-c", "import lasaft; print(lasaft.__file__)", folder=empty)
    assert Path(where.stdout.strip()).with_name("py.typed").is_file()


def test_a_job_without_the_workflow_s_packages_says_what_to_install(empty: Path) -> None:
    done = _run(empty / "python", "-m", "jobs.train", "--help")
    assert done.returncode == 1
    assert done.stderr.startswith("jobs: PIL, grpc, matplotlib, mlflow, musdb, museval, ")
    assert done.stderr.endswith("pip install -c constraints.txt -e '.[pipeline]'\n")
    assert done.stderr.count("\n") == 1


def test_what_jobs_need_is_what_the_extra_brings() -> None:
    of = importlib.metadata.packages_distributions()
    brought = set(_names(PROJECT["optional-dependencies"]["pipeline"]))
    found = [brought & {one.lower() for one in of[name]} for name in jobs._NEEDED]
    assert set.union(*found) == brought
    assert all(found)


def test_a_registered_model_needs_what_the_library_needs() -> None:
    assert set(registry._PACKAGES) == set(_names(PROJECT["dependencies"]))


def test_the_public_names_are_shown() -> None:
    assert dir(lasaft) == sorted([*lasaft.__all__, "__version__"])
    assert all(getattr(lasaft, name) is not None for name in dir(lasaft))


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == lasaft.__version__
    assert f"## {lasaft.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_run_works_in_the_folder_of_its_caller(tmp_path: Path) -> None:
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    elsewhere.mkdir()
    python = checkout / ".venv" / "bin" / "python"
    python.symlink_to(sys.executable)
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    version = subprocess.run([python, "--version"], capture_output=True, check=True).stdout
    asked = b"".join(
        (checkout / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")
    )
    stamp = hashlib.sha256(asked + version).hexdigest()
    (checkout / ".venv" / "stamp").write_text(f"{stamp}\n")
    done = _run(checkout / "run", "bash", "-c", "pwd; command -v python", folder=elsewhere)
    assert (done.stdout, done.stderr) == (f"{elsewhere}\n{python}\n", "")
    shown = _run(checkout / "run", "help", folder=elsewhere).stdout.splitlines()
    assert shown[0].startswith("Makes .venv")
    assert shown[-1].strip() == "./run python -m jobs.train --help"
