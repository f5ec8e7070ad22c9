"""Lists the jobs: ``python -m jobs``."""

from jobs.cli.job_table import JOBS
from lasaft.output import keep_output

if __name__ == "__main__":
    keep_output()
    for name, job in JOBS.items():
        print(f"python -m jobs.{name:<12}{job.summary}")
