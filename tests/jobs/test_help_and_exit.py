"""What a job prints: help that fits a screen, results, one message for an error."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from jobs.cli import Command, parse
from jobs.cli.help import help_page
from jobs.cli.job_table import JOBS, STEPS
from jobs.cli.presets import PRESETS
from jobs.cli.run import Result, run_job
from lasaft.errors import ConfigError, DataError, StageError
from lasaft.interrupts import held
from lasaft.options import options_of
from lasaft.output import coloured, say
from pipeline.config.roles import all_options
from tests.helpers import ROOT
from tests.helpers.commands import problems_of

OPTIONS = all_options()
# pyproject.toml bans the imports of all but numpy at the top of the files that are loaded here.
HEAVY = {
    "torch", "ray", "mlflow", "scipy", "matplotlib", "museval", "musdb", "pyarrow", "numpy",
}  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_help_fits_a_screen_and_shows_every_option_of_the_job(job: str) -> None:
    from jobs.cli.readme import ReadmeTree

    options = options_of(ReadmeTree)
    mine = [option for option in options.values() if JOBS[job].reads(option)]
    groups = sorted({option.section for option in mine} - {""})
    for topic in ("", "presets", "networks", *groups):
        page = help_page(job, topic, options)
        lines = page.splitlines()
        assert len(lines) <= 50, f"{topic}: {len(lines)} lines"
        assert max(map(len, lines)) <= 100, topic
        for option in mine:
            assert option.section != topic or not topic or f"--{option.name} " in page
    assert all(f"--{name} " in help_page(job, "", options) for name in JOBS[job].usual)


@pytest.mark.parametrize("option", OPTIONS.values(), ids=lambda option: option.path)
def test_every_option_has_a_page_of_its_own(option: Any) -> None:
    page = help_page("run", option.name, OPTIONS)
    assert f"--{option.path}" in page
    assert "allowed: " in page
    assert "default: " in page
    assert all(choice in page for choice in option.choices)


@pytest.mark.parametrize(
    "words",
    [["--help"], ["-h"], ["--help", "train"], ["--help=train"], ["--lr", "x", "--help", "--lr"]],
)
def test_help_wins_over_everything(words: list[str]) -> None:
    assert parse(words, "train").help


def test_presets_can_be_listed() -> None:
    page = parse(["--preset", "list"], "run").help
    assert page is not None
    assert page == parse(["--help", "presets"], "run").help
    assert all(re.search(rf"^  {name} ", page, re.MULTILINE) for name in PRESETS.names())


def test_an_unknown_help_topic_is_told() -> None:
    assert "did you mean optimizer?" in problems_of("--help", "optimiser")[0]


def _command(words: Sequence[str]) -> Command:
    return parse(["--preset", "demo", *words], "run")


def _raising(error: BaseException) -> Callable[[Command], Result]:
    def work(command: Command) -> Result:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("a/vocals.wav: is mono"), 1, "run: error: a/vocals.wav: is mono\n"),
        (StageError("2 tracks failed:\n  a\n  b"), 1, "run: error: 2 tracks failed:\n  a\n  b\n"),
        (ConfigError("lr: wrong"), 2, "run: error: lr: wrong\n"),
        (ConfigError(["lr: wrong", "seed: too"]), 2, "run: 2 errors:\n  lr: wrong\n  seed: too\n"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/o/x"), 1,
         "run: error: No space left on device: /o/x\n"),
        (OSError(errno.ESTALE, "Stale file handle", "/o/x"), 1, "run: error: Stale file handle: "
         "/o/x; its file system does not answer as it should\n"),
    ],
    ids=["data", "stage", "config", "configs", "interrupt", "disk", "network"],
)  # fmt: skip
def test_an_error_is_one_message_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    assert run_job("run", ["--quiet"], _command, _raising(error)) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", message)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("error", [StageError("2 tracks failed"), ValueError("a worker is gone")])
def test_a_failure_after_ctrl_c_is_an_interruption(
    capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int, error: Exception
) -> None:
    def work(command: Command) -> Result:
        with contextlib.suppress(KeyboardInterrupt):  # as in a destructor, where it is lost
            signal.raise_signal(number)
        raise error

    assert run_job("run", ["--quiet"], _command, work) == code
    assert capsys.readouterr().err == (
        "stopping ...\ninterrupted; the same command goes on from here\n"
    )


def test_the_first_line_says_what_is_begun_and_quiet_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(command: Command) -> Result:
        say("a note")
        command.show("ok    ffmpeg\x1b", "red")
        return Result("all well", {"faults": 0})

    folder = _command([]).config.output_dir
    assert run_job("doctor", [], _command, work) == 0
    told = f"doctor: in {folder} ...\na note\n"
    assert capsys.readouterr() == ("ok    ffmpeg\\x1b\nall well\n", told)
    assert run_job("doctor", ["--quiet", "--json"], _command, work) == 0
    assert capsys.readouterr() == ('{"faults": 0}\n', "")


def test_colours_are_for_terminals_whose_owner_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("FAULT", "red", Terminal()) == "\x1b[31mFAULT\x1b[0m"
    assert coloured("", "red", Terminal()) == ""
    assert coloured("FAULT", "red", io.StringIO()) == "FAULT"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("FAULT", "red", Terminal()) == "FAULT"


def test_standard_output_holds_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def work(command: Command) -> Result:
        print("(raylet) a node is gone")
        return Result("done", {})

    assert run_job("run", ["--quiet"], _command, work) == 0
    assert capsys.readouterr() == ("done\n", "(raylet) a node is gone\n")


def test_a_held_interruption_is_acknowledged_and_comes_when_it_is_let_go(
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = []

    def work(command: Command) -> Result:
        with held():
            signal.raise_signal(signal.SIGINT)
            end = time.monotonic() + 0.5
            while "stopping" not in (told := capsys.readouterr().err) and time.monotonic() < end:
                time.sleep(0.01)
            done.append(told)
        done.append("after")
        return Result("", {})

    assert run_job("run", ["--quiet"], _command, work) == 130
    assert done == ["stopping ...\n"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_from_a_ray_task_is_told_without_its_trace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    error = DataError("\x1b[36mray::task()\x1b[39m Traceback ...")
    error.cause = DataError("b/drums.wav: is empty")  # type: ignore[attr-defined]
    assert run_job("run", ["--quiet"], _command, _raising(error)) == 1
    assert capsys.readouterr().err == "run: error: b/drums.wav: is empty\n"


def test_bugs_of_our_own_are_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        run_job("run", [], _command, _raising(ZeroDivisionError()))


def test_results_are_for_people_or_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result("sdr  5.2", {"sdr": 5.2})
    assert run_job("run", [], _command, lambda command: result) == 0
    assert capsys.readouterr().out == "sdr  5.2\n"
    assert run_job("run", ["--json"], _command, lambda command: result) == 0
    assert json.loads(capsys.readouterr().out) == {"sdr": 5.2}


def test_usage_errors_end_with_2_and_help_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    def never(command: Command) -> Result:
        raise AssertionError

    assert run_job("run", ["--n_fft", "x"], _command, never) == 2
    assert capsys.readouterr().err.startswith("run: error: n_fft: got 'x', allowed: ")
    assert run_job("run", ["--help"], _command, never) == 0
    assert capsys.readouterr().out.startswith("python -m jobs.run: ")


@pytest.mark.parametrize("job", JOBS)
def test_a_job_starts_without_the_heavy_imports(job: str) -> None:
    code = (
        "import sys, time\n"
        f"from jobs import {job}\n"
        f"assert {job}.main(['--help', 'train' if {job!r} == 'run' else '']) == 0\n"
        f"print(sorted({HEAVY} & sys.modules.keys()), time.process_time())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy, _, seconds = done.stdout.splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert float(seconds) < 1, "processor seconds from the start of Python to the help page"


def test_a_run_with_nothing_to_do_waits_for_no_heavy_import() -> None:
    code = "import sys, jobs.cli.show, pipeline.workflow.run, pipeline.evaluation.score_table\n"
    code += "print({'torch', 'ray', 'mlflow', 'scipy.signal'} & sys.modules.keys())\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"set()\n"


@pytest.mark.parametrize("command", ["", "separate", "score", "import-checkpoint", "export"])
def test_the_library_and_its_command_start_without_the_heavy_imports(command: str) -> None:
    code = (
        "import sys, lasaft\n"
        "from lasaft.cli import main\n"
        f"assert main([*{command.split()}, '--help']) == 0\n"
        f"print(sorted({HEAVY} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "\nusage: lasaft" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_jobs_are_listed_in_the_order_of_the_workflow() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = re.findall(r"^python -m jobs\.(\w+)", done.stdout, re.MULTILINE)
    assert listed == list(JOBS)
    steps = ["tune" if step == "search" else step for step in STEPS if step != "songs"]
    assert [job for job in listed if job in steps] == steps
