"""``python -m joulewatch_harness`` is the command ``joulewatch``."""

import sys

from joulewatch_harness.cli import main

sys.exit(main())
