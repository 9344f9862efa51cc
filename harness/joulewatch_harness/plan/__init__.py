"""What to run: the plan, its parsing, its steps and scenarios."""
