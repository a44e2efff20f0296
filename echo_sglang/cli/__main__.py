"""python -m echo_sglang.cli: the echo-sglang command where it is not on the PATH."""

from echo_sglang.cli.main import app

app(prog_name="echo-sglang")
