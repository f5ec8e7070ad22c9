"""``python -m lasaft.cli`` is the ``lasaft`` command."""

import sys

from lasaft.cli import main

if __name__ == "__main__":
    sys.exit(main())
