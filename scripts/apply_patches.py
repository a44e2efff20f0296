#!/usr/bin/env python3
"""Echo's patches to SGLang: apply | status | revert | check | refresh.

Needs only Python 3.11; run it with the Python that has sglang, or give --target. See --help for
the exit codes and patches/README.md for what a patch is.
"""

import sys

from patchtool.cli import main

if __name__ == "__main__":
    sys.exit(main())
