"""A machine of known truth: sysfs and procfs trees that move as a scenario says, with the true energy beside them."""
