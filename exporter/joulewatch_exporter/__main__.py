"""``python -m joulewatch_exporter``."""

import sys

from joulewatch_exporter.cli import main

if __name__ == "__main__":
    sys.exit(main())
