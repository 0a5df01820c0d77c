"""Measures files: latency, memory, environment, tables and plots."""
