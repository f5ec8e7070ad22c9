"""Lists the jobs, in the order of the workflow: ``python -m jobs``."""

import sys
from collections.abc import Sequence

from jobs.cli.job_table import JOBS, STEPS
from jobs.cli.presets import PRESETS
from jobs.cli.readme import ReadmeTree
from lasaft.cli.commands import LASAFT, VERBS
from lasaft.cli.completion import SHELLS, completion
from lasaft.cli.console import complain, listed
from lasaft.cli.grammar import FLAGS
from lasaft.config import VARIANTS
from lasaft.errors import ConfigError
from lasaft.options import options_of
from lasaft.output import keep_output


def main(argv: Sequence[str]) -> int:
    """List the jobs, or print the completion of their command lines, and return the exit code."""
    keep_output()
    if argv and argv[0] == "--completion":
        try:
            print(_completion(argv[1] if argv[1:] else ""), end="")
        except ConfigError as error:
            complain(listed(error))
            return error.exit_code
        return 0
    for name, job in JOBS.items():
        print(f"python -m jobs.{name:<12}{job.summary}")
    print(f"python -m jobs --completion {'|'.join(SHELLS)}: source it, and Tab completes words")
    return 0


def _completion(shell: str) -> str:
    options, verbs = options_of(ReadmeTree), dict(LASAFT)
    for name, job in JOBS.items():
        mine = {key: option for key, option in options.items() if job.reads(option)}
        others = {"preset": PRESETS.names(), "model": VARIANTS, **dict.fromkeys(FLAGS, ())}
        others |= {"rerun": STEPS} if name == "run" else dict.fromkeys(job.flags, ())
        verbs[f"jobs.{name}"] = (mine, others)
    begins = {"lasaft": VERBS, "-m": [f"jobs.{name}" for name in JOBS]}
    return completion(shell, ("lasaft", "python", "python3", "run", "./run"), begins, verbs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
