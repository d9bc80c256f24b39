"""``python -m dynzoo``: the same command as ``dynzoo``."""

import sys

from dynzoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
