"""Rows as tables, plots and pages; two runs compared."""
