"""What holds for every test."""

from __future__ import annotations

import signal

# A shell starts background commands deaf to Ctrl-C; commands that the tests start must hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
