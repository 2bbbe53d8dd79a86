"""`python -m ssfnas_cli` is the console script."""

from ssfnas_cli.main import run

run()
