"""What a run reports: energies with uncertainty, audit, comparison, layers."""
