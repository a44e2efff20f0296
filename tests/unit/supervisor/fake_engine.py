"""An engine as the supervisor sees one: takes the port, beats, and fails as its plan says.

Arguments: a file that counts starts, and one behaviour a start (the last one repeats):
    crash      prints a line and ends with exit code 3
    hang       is ready, beats once, then never again
    serve      answers every request with 200; ends with 0 on SIGTERM
    stubborn   as serve, but ignores SIGTERM
    orphaned   is ready, says that a process of its own was killed, and ends as SGLang does
    failed     is ready, says that a process of its own reported an error, and ends likewise
"""

from __future__ import annotations

import http.server
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from echo_sglang.supervisor.channel import ACCEPTING, BEAT, LOST, inherited_from, message


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    counter, *plan = sys.argv[1:]
    starts = Path(counter)
    number = int(starts.read_text()) if starts.exists() else 0
    starts.write_text(str(number + 1))
    behaviour = plan[min(number, len(plan) - 1)]
    if behaviour == "crash":
        print("the model is on fire")
        sys.exit(3)
    inherited = inherited_from(os.environ)
    assert inherited is not None
    print(f"engine {number} blames requests: {inherited.blame_requests}")
    channel = socket.socket(fileno=inherited.channel_fd)
    channel.sendall(message(ACCEPTING))
    channel.makefile("rb").readline()
    if behaviour == "hang":
        channel.sendall(message(BEAT, ready=True))
        time.sleep(600)
    if behaviour in ("orphaned", "failed"):
        channel.sendall(message(BEAT, ready=True))
        time.sleep(0.2)  # so that the supervisor sees it ready
        codes = [-signal.SIGKILL] if behaviour == "orphaned" else []
        channel.sendall(message(LOST, codes=codes))
        os.kill(os.getpid(), signal.SIGKILL)
    act = signal.SIG_IGN if behaviour == "stubborn" else lambda *_: os._exit(0)
    signal.signal(signal.SIGTERM, act)
    server = http.server.ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
    server.socket = socket.socket(fileno=inherited.listen_fd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    while True:
        channel.sendall(message(BEAT, ready=True))
        time.sleep(0.05)


if __name__ == "__main__":
    main()
