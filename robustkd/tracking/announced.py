"""Prints the address of a server once it answers: ``python announced.py HEALTH PAGE``, as the child of the server's process.

It is a program of its own, which imports nothing of robustkd's: the command that starts the server becomes the server.
"""

from __future__ import annotations

import os
import sys
import time
from http.client import HTTPException
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

PAUSE = 0.2


def main(health: str, page: str) -> None:
    """Ask until the server answers, or is gone."""
    server, ask = os.getppid(), build_opener(ProxyHandler({}))
    while os.getppid() == server:
        try:
            ask.open(health, timeout=5).close()
        except (URLError, OSError, HTTPException):
            time.sleep(PAUSE)
        else:
            sys.stdout.write(f"{page}   (Ctrl-C ends it)\n")
            sys.stdout.flush()
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
