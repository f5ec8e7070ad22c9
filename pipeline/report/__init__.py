"""The report of a run: one page, and the leaderboard as CSV, JSON, Markdown and LaTeX."""

# Raised by whoever changes what the report shows of the same scores, excerpts and journal.
VERSION = 3
