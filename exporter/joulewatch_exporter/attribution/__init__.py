"""Shares of each device's active energy for workloads: cgroups, containers, jobs, virtual machines."""
