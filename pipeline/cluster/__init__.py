"""Where and how work runs: Ray, and what a command does around it."""
