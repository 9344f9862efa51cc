"""Results for people and programs: text, CSV, JSON, figures."""
