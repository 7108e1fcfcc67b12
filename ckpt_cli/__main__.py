"""python -m ckpt_cli"""

from ckpt_cli.app import run

run()
