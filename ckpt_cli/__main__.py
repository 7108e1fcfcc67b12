"""python -m ckpt_cli, and the console script."""

import gc
import sys


def run() -> None:
    """Runs the app without collecting cycles: a command makes hardly any and ends soon, and to look for them among the
    names of a large file takes a tenth of its time."""
    gc.disable()
    try:
        from ckpt_cli.app import main

        sys.exit(main())
    except KeyboardInterrupt:  # before the app could see to it
        sys.exit(130)


if __name__ == "__main__":
    run()
