"""Experiments: each one starts real servers, plays a workload and leaves a table and a plot."""
