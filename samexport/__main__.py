"""``python -m samexport``."""

import sys


def main() -> None:
    """The command line; Ctrl-C during its own imports ends like any other."""
    try:
        from samexport.cli.main import main as run
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
