"""Makes files: one converter a format, the pipeline, the command line."""
