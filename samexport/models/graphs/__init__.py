"""Export forms: small modules built from the architectures, each proven equal to them by a test."""
