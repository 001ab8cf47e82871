"""``python -m lit_gfs``, and the command ``lit-gfs``."""

import sys


def run() -> None:
    """Run the command line; a Ctrl-C while everything is being imported is told like a later one.

    Raises:
        SystemExit: With the status of `lit_gfs.main.main`.
    """
    try:
        from lit_gfs.main import main

        main()
    except KeyboardInterrupt:
        print("lit_gfs: stopped by SIGINT", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    run()
