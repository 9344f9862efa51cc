"""joulewatch harness: drives a network under test, marks its windows, and turns joules into results."""

from typing import Final

__version__: Final = "0.2.0"
