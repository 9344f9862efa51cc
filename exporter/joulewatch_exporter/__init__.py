"""joulewatch exporter: power and energy of this machine's sensors for Prometheus."""

from typing import Final

__version__: Final = "0.2.0"
