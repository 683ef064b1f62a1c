"""A real browser for tests: Chromium without a screen, driven by its own protocol."""

import itertools
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_WAIT_S = 100


class Browser:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self._ask(f"{domain}.enable")

    def open(self, url: str, headers: dict[str, str] | None = None) -> None:
        """Go there, with these headers in the request, and wait until all of it is loaded."""
        self._ask("Network.setExtraHTTPHeaders", headers=headers or {})
        gone = self._ask("Page.navigate", url=url)
        assert "errorText" not in gone, gone
        self._until(lambda told: told.get("method") == "Page.loadEventFired")

    def see(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self._ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        told = {"id": number, "method": method, "params": parameters}
        session = {} if self._session is None else {"sessionId": self._session}
        self._connection.send(json.dumps({**told, **session}))
        found = self._until(lambda told: told.get("id") == number)
        assert "error" not in found, found
        return found["result"]

    def _until(self, is_it: Any) -> dict[str, Any]:
        while True:
            told = json.loads(self._connection.recv(_WAIT_S))
            if is_it(told):
                return told


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium, which has to be installed."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        command = [CHROMIUM, *options, "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                lines = iter(process.stderr.readline, "")
                found = next(filter(None, (re.search(r"DevTools listening on (ws://\S+)", line) for line in lines)))
                with connect(found[1], max_size=None, compression=None) as connection:
                    yield Browser(connection)
            finally:
                process.kill()
