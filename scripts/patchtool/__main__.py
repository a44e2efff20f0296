"""python -m echo_sglang.patchtool, where the tool is installed with the package."""

import sys

from .cli import main

sys.exit(main())
