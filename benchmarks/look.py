"""How the Look page does with many clips: seconds to make it, and how evenly it scrolls in Chromium.

    python -m benchmarks.look --clips 1000 --out benchmarks/results/look.json

Clips of 256x256 with 33 frames are drawn once and put under many names with other bytes at their ends, so that each is a
file of its own. Frame times are those between two repaints of the page while it is scrolled from its top to its end.
"""

import argparse
import asyncio
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tools.screenshot import open_browser
from tools.shapes import draw_dataset

PACK = Path(__file__).resolve().parent.parent
DRAWN = 20
SCROLL = """
const step = %d, times = [];
const height = document.documentElement.scrollHeight;
let last = await new Promise(requestAnimationFrame);
for (let y = 0; y < height; y += step) {
  scrollTo(0, y);
  const now = await new Promise(requestAnimationFrame);
  times.push(now - last);
  last = now;
}
const filled = document.querySelectorAll('.card > *').length;
return { times, height, filled, cards: document.querySelectorAll('.card').length };
"""


def make_clips(folder: Path, count: int) -> None:
    """Clips with captions; a box of free bytes at the end makes each file another one (ISO/IEC 14496-12, 8.1.2)."""
    drawn = folder.with_name("drawn")
    draw_dataset(drawn, clips=DRAWN, images=0, size=256, frames=33)
    folder.mkdir()
    originals = sorted(drawn.glob("*.mp4"))
    for number in range(count):
        original = originals[number % DRAWN]
        mark = number.to_bytes(4, "big")
        data = original.read_bytes() + (8 + len(mark)).to_bytes(4, "big") + b"free" + mark
        (folder / f"clip_{number:05d}.mp4").write_bytes(data)
        caption = original.with_suffix(".txt").read_text(encoding="utf-8").strip()
        (folder / f"clip_{number:05d}.txt").write_text(f"{caption}, take {number}\n", encoding="utf-8")


def write_page(folder: Path, out: Path, size: str) -> float:
    """Seconds that `wantrain look` takes."""
    width, height = size.split("x")
    settings = [f"width={width}", f"height={height}", "num_frames=33", "trigger_word=ohwx"]
    command = [sys.executable, str(PACK / "wantrain.py"), "look", str(folder), "--out", str(out)]
    command += [part for setting in settings for part in ("--set", setting)]
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - start


async def scroll(url: str, step: int) -> dict[str, Any]:
    """Seconds until the page is there, and its frame times while it is scrolled by so many pixels a frame."""
    async with open_browser(1400, 1000) as page:
        start = time.monotonic()
        await page.send("Page.navigate", url=url)
        await page.wait_for("document.querySelectorAll('.card > *').length > 0")
        opened = time.monotonic() - start
        await asyncio.sleep(2)
        found = await page.run(SCROLL % step)
        await page.send("HeapProfiler.collectGarbage")
        heap = (await page.send("Runtime.getHeapUsage"))["usedSize"]
    times = np.array(found["times"])
    return {
        "open_s": round(opened, 2),
        "pixels_per_frame": step,
        "frames": len(times),
        "frame_ms": {
            "median": round(float(np.median(times)), 1),
            "p99": round(float(np.percentile(times, 99)), 1),
            "worst": round(float(times.max()), 1),
        },
        "cards": found["cards"],
        "cards_filled_at_the_end": found["filled"] // 6,
        "heap_mb": round(heap / 1e6, 1),
    }


def main(arguments: list[str]) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument(
        "--size", default="832x480", help="that samples are scaled to, in pixels (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="where to write the results (default: print them)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder, page = Path(place) / "clips", Path(place) / "look.html"
        make_clips(folder, options.clips)
        first, second = write_page(folder, page, options.size), write_page(folder, page, options.size)
        pictures = [path.stat().st_size for path in Path(place, "look_files").glob("*.webp")]
        result = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
            "command": f"python -m benchmarks.look --clips {options.clips} --size {options.size}",
            "clips": options.clips,
            "first_s": round(first, 1),
            "second_s": round(second, 1),
            "strips_mb": round(sum(pictures) / 1e6, 1),
            "scroll": [asyncio.run(scroll(page.as_uri(), step)) for step in (60, 400)],
        }
    text = json.dumps(result, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
