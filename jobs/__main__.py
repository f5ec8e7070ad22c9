"""Lists the jobs: ``python -m jobs``."""

from jobs.cli.job_table import JOBS

if __name__ == "__main__":
    for name, job in JOBS.items():
        print(f"python -m jobs.{name:<12}{job.summary}")
