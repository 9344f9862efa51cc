"""HPE Cray power counters (``pm_counters``)."""
