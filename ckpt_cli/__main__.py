"""python -m ckpt_cli, and the console script."""

import gc
import sys


def run() -> None:
    """Imports the app without collecting garbage, of which imports make none: a tenth of a short command's time."""
    gc.disable()
    try:
        from ckpt_cli.app import run as run_app

        gc.enable()
        run_app()
    except KeyboardInterrupt:  # before the app could see to it
        sys.exit(130)


if __name__ == "__main__":
    run()
