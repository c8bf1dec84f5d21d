"""A page in a headless Chromium, by the DevTools protocol over two pipes: no package is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"]
START = """import fcntl, os, sys
ends = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])"""  # Chromium reads 3 and writes 4
EVENTS = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}


class Browser:
    """`with Browser() as b: b.open(path, width=390)`; `requests` and `complaints` are those of the page that is open."""

    def __enter__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.held, self.number, self.requests, self.complaints = b"", 0, [], []
        there, self.write = os.pipe()
        self.read, back = os.pipe()
        argv = [sys.executable, "-c", START, str(there), str(back), CHROMIUM, *FLAGS, f"--user-data-dir={self.profile.name}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(argv, pass_fds=(there, back), **quiet)
        os.close(there)
        os.close(back)
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.write)
        os.close(self.read)
        self.profile.cleanup()

    session = None

    def __call__(self, method, **params):
        """The result of one command."""
        self.number += 1
        asked = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(asked).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == self.number:
                assert "error" not in said, said["error"]
                return said["result"]

    def _next(self):
        while b"\0" not in self.held:
            more = os.read(self.read, 1 << 20)
            assert more, "Chromium closed its pipe"
            self.held += more
        line, _, self.held = self.held.partition(b"\0")
        said = json.loads(line)
        if said.get("method") == "Network.requestWillBeSent":
            self.requests.append(said["params"]["request"]["url"])
        if said.get("method") in EVENTS:
            self.complaints.append(said["params"])
        return said

    def open(self, path: Path, width: int, dark: bool = False):
        """The page at so many pixels of width, loaded."""
        self.requests, self.complaints = [], []
        self("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self("Page.navigate", url=path.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass
        self("Runtime.evaluate", expression="0")

    def value(self, expression: str):
        """What a line of JavaScript gives."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def shot(self, path: Path):
        """The whole page as a PNG."""
        found = self("Page.captureScreenshot", captureBeyondViewport=True)
        Path(path).write_bytes(base64.b64decode(found["data"]))
