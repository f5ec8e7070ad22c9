"""The report of a run: one page, and the leaderboard as CSV, JSON, Markdown and LaTeX."""

from pipeline.report.build import ReportResult, build_report, write_report

__all__ = ["ReportResult", "build_report", "write_report"]

# Raised by whoever changes the report of the same scores.
VERSION = 1
