"""What is measured: runtimes, their variants, baselines."""
