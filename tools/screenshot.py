"""Looks at the pack's page: opens a running ComfyUI in headless Chromium and takes pictures. A tool for developers.

    python -m tools.screenshot http://127.0.0.1:8188 picture.png --workflow example_workflows/demo.json --fit

Needs Chromium and aiohttp (ComfyUI's Python has it). Speaks the Chrome DevTools Protocol,
https://chromedevtools.github.io/devtools-protocol/, so that no browser driver is needed.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
APP = "window.comfyAPI?.app?.app"
READY = f"!!({APP})?.vueAppReady && !!({APP}).extensionManager?.workflow?.activeWorkflow"
FIT = f"""
const app = {APP};
const nodes = app.rootGraph.nodes, groups = app.rootGraph.groups ?? [];
const boxes = [...nodes.map(n => n.boundingRect ?? n.getBounding()), ...groups.map(g => g.boundingRect ?? g._bounding)];
const left = Math.min(...boxes.map(b => b[0])), top = Math.min(...boxes.map(b => b[1]));
const right = Math.max(...boxes.map(b => b[0] + b[2])), bottom = Math.max(...boxes.map(b => b[1] + b[3]));
const ds = app.canvas.ds, view = app.canvas.canvas.getBoundingClientRect();
ds.scale = Math.min((view.width - 120) / (right - left), (view.height - 110) / (bottom - top), 1);
ds.offset[0] = 90 / ds.scale - left; ds.offset[1] = 75 / ds.scale - top;
app.canvas.setDirty(true, true);
"""


class BrowserError(Exception):
    """The browser did not do what was asked. The message is one sentence."""


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.log: list[str] = []  # what the page wrote to its console, and uncaught errors
        self._number = 0

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its answer. Console messages that come before it are kept in `log`."""
        self._number += 1
        await self.socket.send_json({"id": self._number, "method": method, "params": params})
        async for message in self.socket:
            data = json.loads(message.data)
            if data.get("id") == self._number:
                if "error" in data:
                    raise BrowserError(f"{method} failed: {data['error']['message']}.")
                return data["result"]
            self._note(data)
        raise BrowserError(f"The browser closed the connection during {method}.")

    def _note(self, data: dict[str, Any]) -> None:
        params = data.get("params", {})
        if data.get("method") == "Runtime.consoleAPICalled":
            texts = [str(item.get("value", item.get("description", ""))) for item in params["args"]]
            self.log.append(f"{params['type']}: {' '.join(texts)}")
        elif data.get("method") == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.log.append(f"uncaught: {details.get('exception', {}).get('description', details['text'])}")

    async def run(self, script: str) -> Any:
        """The value that the JavaScript `script`, the body of an async function, returns."""
        answer = await self.send(
            "Runtime.evaluate", expression=f"(async () => {{{script}}})()", awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise BrowserError(f"Script failed: {details.get('exception', {}).get('description', details['text'])}")
        return answer["result"].get("value")

    async def wait_for(self, condition: str, timeout: float = 120.0) -> None:
        """Poll until the JavaScript expression `condition` is true."""
        end = asyncio.get_running_loop().time() + timeout
        while asyncio.get_running_loop().time() < end:
            with contextlib.suppress(BrowserError):  # the page may be between two documents
                if await self.run(f"return {condition}"):
                    return
            await asyncio.sleep(0.3)
        raise BrowserError(f"The page did not get ready within {timeout:.0f} s: {condition}.")

    async def open(self, url: str) -> None:
        """Open a ComfyUI and wait until its graph is there."""
        await self.send("Page.navigate", url=url)
        await self.wait_for("document.readyState === 'complete'")
        await self.wait_for(READY)
        await self.run(f"await ({APP}).extensionManager.setting.set('Comfy.TutorialCompleted', true)")
        await asyncio.sleep(2)
        for kind in ("rawKeyDown", "keyUp"):  # a fresh ComfyUI greets with its templates, in a dialog
            await self.send("Input.dispatchKeyEvent", type=kind, key="Escape", code="Escape", windowsVirtualKeyCode=27)

    async def load(self, workflow: dict[str, Any], name: str) -> None:
        """Load a workflow file's content, as dropping the file onto the canvas does."""
        await self.run(f"await ({APP}).loadGraphData({json.dumps(workflow)}, true, true, {json.dumps(name)})")
        await self.wait_for(f"({APP}).rootGraph.nodes.length >= {len(workflow['nodes'])}")
        await asyncio.sleep(1)

    async def fit(self) -> None:
        """Show the whole graph."""
        await self.run(FIT)
        await asyncio.sleep(1)

    async def move_to(self, x: float, y: float) -> None:
        """Move the mouse, in pixels of the page."""
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def picture(
        self, path: Path, scale: float = 1.0, clip: tuple[float, float, float, float] | None = None
    ) -> None:
        """Write what the tab shows, or the part (x, y, width, height) of it, as png or jpg."""
        options: dict[str, Any] = {"format": "jpeg", "quality": 82} if path.suffix == ".jpg" else {"format": "png"}
        if clip:
            names = ("x", "y", "width", "height")
            options["clip"] = {**dict(zip(names, clip, strict=True)), "scale": scale}
        path.write_bytes(base64.b64decode((await self.send("Page.captureScreenshot", **options))["data"]))


@contextlib.asynccontextmanager
async def open_browser(width: int = 1600, height: int = 1000) -> AsyncIterator[Page]:
    """A tab of a fresh browser, which is closed at the end."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        raise BrowserError("No Chromium was found: install it, or put it on the PATH.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program, *FLAGS, f"--window-size={width},{height}", f"--user-data-dir={profile}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = await _port(Path(profile))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    tabs = await answer.json()
                url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.send("Page.enable")
                    await page.send("Runtime.enable")
                    await page.send(
                        "Emulation.setDeviceMetricsOverride",
                        width=width, height=height, deviceScaleFactor=1, mobile=False,
                    )  # fmt: skip
                    yield page
                    with contextlib.suppress(BrowserError):
                        await page.send("Browser.close")
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _port(profile: Path, timeout: float = 120.0) -> int:
    """The port that the browser chose, which it writes into its profile."""
    file = profile / "DevToolsActivePort"
    for _ in range(int(timeout / 0.1)):
        if file.is_file() and len(lines := file.read_text().splitlines()) == 2:  # all of it: the port, and an address
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise BrowserError(f"The browser did not start within {timeout:.0f} s.")


async def take(options: argparse.Namespace) -> None:
    """Do what the command line says."""
    width, height = map(int, options.size.split("x"))
    async with open_browser(width, height) as page:
        await page.open(options.url)
        for setting in options.set:
            name, _, value = setting.partition("=")
            await page.run(f"await ({APP}).extensionManager.setting.set({json.dumps(name)}, {value})")
        if options.workflow:
            content = json.loads(options.workflow.read_text(encoding="utf-8"))
            await page.load(content, options.workflow.stem)
        if options.fit:
            await page.fit()
        if options.script:
            print(await page.run(options.script))
        await asyncio.sleep(options.wait)
        await page.picture(options.picture)
        for line in page.log if options.log else []:
            print(line)


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of a running ComfyUI")
    parser.add_argument("picture", type=Path, help="png or jpg file to write")
    parser.add_argument("--workflow", type=Path, help="workflow file to load first")
    parser.add_argument("--fit", action="store_true", help="show the whole graph")
    parser.add_argument("--set", action="append", default=[], metavar="ID=JSON", help="a setting of the page")
    parser.add_argument("--script", help="body of an async JavaScript function to run; what it returns is printed")
    parser.add_argument("--size", default="1600x1000", help="of the window in pixels")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds before the picture is taken")
    parser.add_argument("--log", action="store_true", help="print the page's console")
    try:
        asyncio.run(take(parser.parse_args(arguments)))
    except BrowserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
