"""A headless Chromium that a test clicks in, over the DevTools protocol on two pipes: no driver, no port."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
DEADLINE_S = 30.0
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")


class Chromium:
    """One browser with one tab. `complaints` are errors of its console: of scripts, and of what a policy blocked."""

    def __init__(self, directory: Path) -> None:
        found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
        if found is None:
            pytest.skip("no Chromium is installed")
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        start = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
        options = (*_OPTIONS, f"--user-data-dir={directory / 'profile'}", "about:blank")
        self._process = subprocess.Popen(
            ["bash", "-c", start, found, *options], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._unread, self._session = itertools.count(1), b"", ""
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        self._call("Emulation.setScrollbarsHidden", hidden=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit: object) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE_S)
        os.close(self._out)
        os.close(self._in)

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """Of an expression, promises awaited."""
        done = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, (script, done["exceptionDetails"])
        return done["result"].get("value")

    def wait(self, script: str, why: str = "") -> Any:
        """Until an expression is true."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not (found := self.value(script)):
            assert time.monotonic() < deadline_s, why or f"never came: {script}; the page has: {self.text('body')}"
            time.sleep(0.05)
        return found

    def text(self, selector: str) -> str:
        """What can be read there."""
        return str(self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def reads(self, selector: str, expected: str) -> None:
        """Wait until that text is to be read there."""
        element = f"document.querySelector({json.dumps(selector)})?.innerText"
        self.wait(f"({element} ?? '').includes({json.dumps(expected)})", f"{selector} never read {expected!r}")

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of what is there; it must be there to be hit."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait(
            f"{element} && !{element}.disabled && {element}.getClientRects().length > 0", f"no {selector} to click"
        )
        x, y = self.value(
            f"(() => {{ const at = {element}; at.scrollIntoView({{block: 'center', behavior: 'instant'}});"
            "const box = at.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        hit = self.value(f"{element}.contains(document.elementFromPoint({x}, {y}))")
        assert hit, f"{selector} lies under something else"
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, text: str) -> None:
        """Into what has the focus."""
        self._call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """One key, such as `Tab` or `ArrowRight`."""
        codes = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def look(self, path: Path, *, width: int = 1400, height: int = 1000, is_dark: bool = False) -> None:
        """A picture of the whole page."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[feature])
        self.size(width, height)
        picture = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def size(self, width: int, height: int = 1000) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self._in, 2**16)
            assert part, "the browser has ended"
            self._unread += part
        message, self._unread = self._unread.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, message: dict[str, Any]) -> None:
        found = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(found["exceptionDetails"]))
        elif message["method"] == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.complaints.append(found["entry"]["text"])
