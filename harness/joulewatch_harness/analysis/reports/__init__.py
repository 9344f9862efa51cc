"""Results for people and programs: table, CSV, JSON, figures."""
