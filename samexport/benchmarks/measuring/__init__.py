"""One row of a benchmark: the process, what it runs, where."""
