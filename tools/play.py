"""Shows the demos of lessons/play as pages without code, to this machine alone: what `make play` runs.

python tools/play.py [--port 8866] [--no-browser]
"""

import argparse
import os
import socket
import sys
import threading
import time
import webbrowser
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "lessons" / "play"
# Voila's pages ask another server for icons, which these have not; without a network the browser need not try.
LOCAL = "style-src 'self' 'unsafe-inline'; font-src 'self' data:"
SETTINGS = {
    "Voila": {
        "ip": "127.0.0.1",
        "open_browser": False,
        "log_level": "ERROR",
        "tornado_settings": {"headers": {"Content-Security-Policy": LOCAL}},
    },
    # A page that is left leaves its kernel behind, with PyTorch in it.
    "AsyncMappingKernelManager": {"cull_idle_timeout": 60, "cull_interval": 20},
}


def main() -> int:
    """Serve the pages until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(description="Click to segment, and the thresholds of panoptic fusion.")
    parser.add_argument("--port", type=int, default=8866)
    parser.add_argument("--no-browser", action="store_true", help="open no browser")
    given = parser.parse_args()
    try:
        from traitlets.config import Config
        from voila.app import Voila
    except ImportError:
        print("play: Voila is missing; `make play` installs it.", file=sys.stderr)
        return 1
    with socket.socket() as trial:
        if trial.connect_ex(("127.0.0.1", given.port)) == 0:
            print(f'play: port {given.port} is taken: make play ARGS="--port {given.port + 1}"', file=sys.stderr)
            return 1
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    address = f"http://localhost:{given.port}/voila/render/condinst.ipynb"
    print(f"{address}\nCtrl-C ends it. A page takes some seconds, since PyTorch is loaded for it.", flush=True)
    if not given.no_browser:
        threading.Thread(target=open_when_ready, args=(address, given.port), daemon=True).start()
    Voila.launch_instance(argv=[str(FOLDER), f"--port={given.port}"], config=Config(SETTINGS))
    return 0


def open_when_ready(address: str, port: int) -> None:
    """Open a browser once the server answers."""
    for _ in range(300):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                webbrowser.open(address)
                return
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
