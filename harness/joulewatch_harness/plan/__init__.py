"""What to run: the plan, how it is parsed, its steps and scenarios."""
