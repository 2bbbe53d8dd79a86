"""The console script, which is `python -m ssfnas_cli`, too. Ctrl-C ends it in one line from its first imports on."""

import sys

try:
    from ssfnas_cli.main import run
except KeyboardInterrupt:
    print("ssfnas: interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    run()
