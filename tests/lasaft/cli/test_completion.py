"""Tab completion: the scripts are read by the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT


def _script(program: str, shell: str) -> str:
    command = [sys.executable, "-m", program, "--completion", shell]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "script.bash"
    path.write_text(_script("jobs", "bash"))
    return path


def _complete(script: Path, line: str) -> list[str]:
    code = (
        f"source '{script}'; COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '_lasaft; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-uc", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lasaft s", ["score", "separate"]),
        ("./run /here/lasaft se", ["separate"]),
        ("lasaft separate --other", ["--other_method"]),
        ("lasaft separate song.wav --clip-m", ["--clip_mode"]),
        ("lasaft separate --clip-mode r", ["rescale"]),
        ("lasaft separate --checkpoint r", []),
        ("lasaft separate so", []),
        ("python -m jobs.t", ["jobs.train", "jobs.tune"]),
        ("./run python -m jobs.train --prec", ["--precision"]),
        ("python -m jobs.train --precision b", ["bf16"]),
        ("python -m jobs.run --preset de", ["demo"]),
        ("python -m jobs.run --rerun ev", ["evaluate"]),
        ("python -m jobs.train --repair", []),
        ("python -m jobs.preprocess --rep", ["--repair"]),
        ("python scr", []),
    ],
)
def test_bash_completes(script: Path, line: str, words: list[str]) -> None:
    assert _complete(script, line) == words


def test_the_library_completes_its_own_command_alone() -> None:
    text = _script("lasaft.cli", "bash")
    assert "jobs." not in text
    assert text.endswith("complete -o default -F _lasaft lasaft\n")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_the_script(tmp_path: Path) -> None:
    (tmp_path / "script.zsh").write_text(_script("jobs", "zsh"))
    code = (
        f"source {tmp_path}/script.zsh; _lasaft_words 'separate --clip_mode'; print $_comps[lasaft]"
    )
    done = subprocess.run(["zsh", "-fc", code], capture_output=True, text=True, check=True)
    assert done.stdout == "rescale clamp none\n_bash_complete -o default -F _lasaft\n"


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from lasaft.cli import main

    assert main(["--completion", "fish"]) == 2
    assert "completion: got 'fish', allowed: bash, zsh" in capsys.readouterr().err
