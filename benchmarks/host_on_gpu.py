"""Does in the real ComfyUI, on a GPU, what a person does with the pack, and tells of each part what came out.

python benchmarks/host_on_gpu.py --host ~/comfy/ComfyUI --seconds 190 --out host.json

Models are small, random, and of the true form. Parts, in this order; one that fails or hangs does not end the others:

e  a training that does not fit, with new clips, on a device that was never measured: refused before anything is encoded
a  the shipped template: both trainings, merged files, a preview
b  queued again, with and without ComfyUI's cache: nothing is done again
c  with more steps: it goes on
d  stopped on the way, queued again: it goes on from a checkpoint
f  a training in a graph whose sampler has just filled the GPU: memory is free for it
g  a picture with the new LoRAs by ComfyUI's own loader and sampler
h  `wantrain train` at the same time: whoever comes second waits
i  as e, but another program has filled the GPU

With --cpu the same on a CPU, where nothing is refused for memory: there e is of another expert's file, and i is left out.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

PACK = Path(__file__).resolve().parents[1]
if "wan_train" not in sys.modules:
    sys.path.insert(0, str(PACK))
    import wantrain

    wantrain.load_pack()
from wan_train.benchmarks.host_material import (  # noqa: E402
    HOG,
    ON_CPU,
    ON_GPU,
    Json,
    draw_large_clip,
    draw_media,
    high_alone,
    node_of,
    sampling,
    usual,
    write_models,
)
from wan_train.benchmarks.host_report import began, diaries, said, story, unexpected  # noqa: E402
from wan_train.core.launch.exits import EXIT_STOPPED  # noqa: E402
from wan_train.core.train.events import EventReader  # noqa: E402
from wan_train.core.train.run_folder import RunFolder  # noqa: E402
from wan_train.tests.host.graphs import changed  # noqa: E402
from wan_train.tests.host.runs import run_folders, starts_of, until  # noqa: E402
from wan_train.tests.host_server import Host, start_host  # noqa: E402
from wan_train.tools.server import failure  # noqa: E402

LIMIT_S, LIMIT_ON_CPU_S = 80.0, 400.0  # of one wait


class Parts:
    """The parts, each a method of its letter that returns what is to be told; `expect` notes what went wrong."""

    def __init__(self, host: Host, options: argparse.Namespace) -> None:
        self.host, self.on_cpu = host, options.cpu
        self.scale = ON_CPU if options.cpu else ON_GPU
        self.info = host.object_info()
        self.wrong: list[str] = []
        self.limit = LIMIT_ON_CPU_S
        self.tracebacks = 0  # that this part should bring into the log
        self.cache, self.runs = (host.base / "output" / "wan_train" / name for name in ("cache", "runs"))

    def expect(self, is_so: object, what: str) -> bool:
        """Note `what` where it is not so."""
        if not is_so:
            self.wrong.append(what)
        return bool(is_so)

    def run(self, prompt: Json, what: str) -> Json | None:
        """Queue and wait; None, and a note, where it does not succeed."""
        entry = self.host.run(prompt, self.limit)
        why = failure(entry, prompt)
        return entry if self.expect(why is None, f"{what}: {why}") else None

    def prompt(self, name: str, steps: int, seed: int) -> Json:
        """The template. A seed of each part's own: a run goes on from another that is equal but for its name."""
        return usual(self.info, self.scale, name, steps, seed=seed)

    def part_e(self) -> str:
        """Refused before anything is encoded."""
        prompt = high_alone(usual(self.info, self.scale, "too_large", 20, folder="input/large"))
        clip = self.scale.too_large
        prompt = changed(prompt, "data", width=clip.width, height=clip.height, num_frames=clip.frames, held_out=0)
        if self.on_cpu:
            prompt = changed(prompt, "high_dit", model_name="small_low_noise.safetensors")
        else:
            prompt = changed(prompt, "high_dit", model_name="large_high_noise.safetensors", budget_gb=1.0)
        told = []
        for when in ("never measured", "known"):
            known = bool(list(self.cache.glob("card-*.json")))
            if not self.on_cpu:
                self.expect(known == (when == "known"), f"{when}: a measured device is {'' if known else 'not '}there")
            told.append(f"{when}: {self._refused(prompt, when)}")
        return "\n".join(told)

    def _refused(self, prompt: Json, when: str) -> str:
        kept, start = set(self.cache.rglob("*.safetensors")), time.monotonic()
        seen = len(self.host.events)
        entry = self.host.run(prompt, self.limit)
        seconds = time.monotonic() - start
        why = failure(entry, prompt) or "it was not refused"
        self.tracebacks += 1
        self.expect("nothing is encoded, since the training that follows can't be run" in why, f"{when}: {why}")
        self.expect(self.on_cpu or "does not fit" in why, f"{when}: it is refused for another reason")
        refused = [event.data for event in self.host.events[seen:] if event.type == "wan_train.refused"]
        self.expect([event["node_id"] for event in refused] == ["high_train"], f"{when}: refused: {refused}")
        self.expect(set(self.cache.rglob("*.safetensors")) == kept, f"{when}: something was encoded")
        return f"{seconds:.1f} s: {why}"

    def part_a(self) -> str:
        """The whole graph."""
        before = run_folders(self.host)
        entry = self.run(self.prompt("person", self.scale.steps, 1), "template")
        folders = sorted(run_folders(self.host) - before)
        self.expect(len(folders) == 2, f"{len(folders)} run folders")
        told = [story(folder) for folder in folders]
        for expert in ("high", "low"):
            files = list((self.host.base / "models" / "loras").glob(f"*{expert}_noise.safetensors"))
            self.expect(len(files) == 1, f"LoRAs of {expert}: {files}")
        if entry:
            told += said(entry)
            videos = [item["filename"] for item in entry["outputs"].get("video", {}).get("images", [])]
            self.expect(videos, "no video of the preview")
            told.append(f"preview: {videos}")
        return "\n".join(told)

    def part_b(self) -> str:
        """Nothing is done again."""
        written, told = diaries(self.runs), []
        for how in ("from ComfyUI's cache", "nodes run again"):
            start = time.monotonic()
            self.run(self.prompt("person", self.scale.steps, 1), how)
            told.append(f"{how}: {time.monotonic() - start:.1f} s")
            self.expect(diaries(self.runs) == written, f"{how}: a run was begun")
            self.host.server.request("/free", {"unload_models": True, "free_memory": True})
        names = {path.name for path in (self.host.base / "models" / "loras").iterdir()}
        self.expect(len(names) == 2, f"LoRAs: {names}")
        return ", ".join(told)

    def part_c(self) -> str:
        """It goes on."""
        steps = self.scale.steps
        self.run(self.prompt("person", steps + 10, 1), "ten steps more")
        folders = [folder for folder in run_folders(self.host) if folder.name.startswith("person")]
        self.expect(len(folders) == 2, f"run folders: {folders}")
        for folder in folders:
            self.expect(starts_of(folder) == [0, steps], f"{folder.name} starts at {starts_of(folder)}")
        return "\n".join(story(folder) for folder in folders)

    def part_d(self) -> str:
        """Stopped, and goes on."""
        prompt = high_alone(self.prompt("stopped", self.scale.long_steps, 2))
        prompt_id, folder = self._begin(prompt, "stopped")
        self.host.interrupt(prompt_id)
        start = time.monotonic()
        entry = self.host.wait(prompt_id, self.limit)
        told = f"stopped within {time.monotonic() - start:.1f} s"
        last = entry["status"]["messages"][-1][0]
        self.expect(last == "execution_interrupted", f"the stopped prompt ended with {last}")
        kept = max((step for step, _ in RunFolder(folder).checkpoints()), default=0)
        self.expect(0 < kept < self.scale.long_steps, f"checkpoint at {kept}")
        self.run(prompt, "queued again")
        self.expect(starts_of(folder) == [0, kept], f"starts at {starts_of(folder)} with a checkpoint at {kept}")
        return f"{told}\n{story(folder)}"

    def part_f(self) -> str:
        """ComfyUI's models are on the GPU when the training begins."""
        prompt = high_alone(self.prompt("after_sampling", 1, 3)) | sampling(self.scale, 64, None)
        prompt["size"] = node_of("GetImageSize", image=["s_image", 0])
        prompt = changed(prompt, "high_train", steps=["size", 0])  # 64, which is known when the picture is there
        self.host.server.request("/free", {"unload_models": True, "free_memory": True})
        before = run_folders(self.host)
        with self._watched_memory() as seen:
            until(lambda: len(seen) > 5, "what is in use", self.limit)  # by then the models are gone
            start = time.time()
            self.run(prompt, "training after sampling")
        (folder,) = run_folders(self.host) - before
        steps = [event for event in EventReader(folder / "events.jsonl").read() if event["event"] == "step"]
        first, last = steps[0]["time"], steps[-1]["time"]
        base = min(used for at, used in seen if at < start)
        sampled = max(used for at, used in seen if start < at < first)
        trained = min((used for at, used in seen if first < at <= last + 0.3), default=sampled)
        if not self.on_cpu:
            own = steps[-1].get("reserved_gib", 0.0) + 1.7  # with the context of CUDA, of which ComfyUI's may grow
            self.expect(sampled > base + 2.5, "ComfyUI's models were not on the GPU before the training")
            self.expect(trained < base + own, "ComfyUI's models were on the GPU while it trained")
        return (
            f"GiB of the device in use: {base:.2f} at first, {sampled:.2f} at most before the training, {trained:.2f} at "
            f"least in it\n{story(folder)}"
        )

    def part_g(self) -> str:
        """ComfyUI's own loader and sampler."""
        found = self.host.object_info()["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
        names = found[1]["options"] if isinstance(found[0], str) else found[0]
        loras = tuple(
            next(name for name in sorted(names, reverse=True) if f"{expert}_noise" in name)
            for expert in ("high", "low")
        )
        pictures = []
        for strength in (0.0, 1.0):
            start = time.monotonic()
            entry = self.run(sampling(self.scale, self.scale.side, loras, strength), f"strength {strength}")
            if entry:
                (file,) = entry["outputs"]["s_saved"]["images"]
                pictures.append((self.host.base / "output" / file["filename"]).read_bytes())
        self.expect(len(set(pictures)) == 2, "the picture is the same with and without the LoRAs")
        return f"{loras}: {time.monotonic() - start:.1f} s for one picture"

    def part_h(self) -> str:
        """The command line at the same time: the second waits, whoever it is."""
        prompt = high_alone(self.prompt("meets", 100_000, 4))
        prompt_id, folder = self._begin(prompt, "meets")
        with self._command_line(folder) as (process, log):
            until(lambda: "waiting for" in log.read_text() or process.poll() is not None, "the command", self.limit)
            waits = [line for line in log.read_text().splitlines() if "waiting for" in line]
            self.expect(waits, f"the command did not wait: {log.read_text()[-600:]}")
            self.host.interrupt(prompt_id)
            self.host.wait(prompt_id, self.limit)
            until(lambda: began(log.parent), "a step of the command's run", self.limit)
            second = high_alone(self.prompt("second", 5, 5))
            seen = len(self.host.events)
            prompt_id = self.host.queue(second)
            line = until(lambda: self._waits(seen), "ComfyUI to wait for the command", self.limit)
            process.send_signal(signal.SIGINT)
            why = failure(self.host.wait(prompt_id, self.limit), second)
            self.expect(why is None, f"ComfyUI after the command: {why}")
            code = process.wait(self.limit)
            self.expect(code == EXIT_STOPPED, f"the command ended with {code}: {log.read_text()[-600:]}")
        return f"the command: {waits[:1]}\nComfyUI: {line}"

    def _waits(self, seen: int) -> str | None:
        """What a node says that waits for its device."""
        lines = (e.data.get("line") or "" for e in self.host.events[seen:] if e.type == "wan_train.update")
        return next((line for line in lines if line.startswith("waiting for")), None)

    def part_i(self) -> str:
        """Another program has filled the GPU."""
        if self.on_cpu:
            return "left out on a CPU"
        prompt = high_alone(usual(self.info, self.scale, "no_room", 20, folder="input/large_2"))
        clip = self.scale.too_large
        prompt = changed(prompt, "data", width=clip.width, height=clip.height, num_frames=clip.frames, held_out=0)
        prompt = changed(prompt, "high_dit", model_name="large_high_noise.safetensors")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, "-c", HOG, "2.0"], **pipes) as hog:
            try:
                self.expect(hog.stdout.readline() == "full\n", "the GPU could not be filled")
                return self._refused(prompt, "filled")
            finally:
                hog.kill()

    def _begin(self, prompt: Json, name: str) -> tuple[str, Path]:
        """Queue a training and wait for its first steps; its prompt and its folder."""
        prompt_id = self.host.queue(prompt)
        return prompt_id, until(lambda: began(self.runs, name), f"a step of {name}", self.limit)

    @contextmanager
    def _command_line(self, like: Path) -> Iterator[tuple[subprocess.Popen, Path]]:
        """`wantrain train` of a job like that of a run, in a folder of its own; ended at the end."""
        base = self.host.base
        job = RunFolder(like).read_job()
        run = RunFolder(base / "command" / "run")
        run.path.mkdir(parents=True)
        run.write_job(replace(job, name="command", loop=replace(job.loop, seed=99)))
        log = base / "command" / "log.txt"
        command = [sys.executable, str(PACK / "wantrain.py"), "train", str(run.path)]
        temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(base / "tmp"))  # where locks are, as for ComfyUI
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | temporary | ({"CUDA_VISIBLE_DEVICES": ""} if self.on_cpu else {}),
            )
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)

    @contextmanager
    def _watched_memory(self) -> Iterator[list[tuple[float, float]]]:
        """When how many GiB of the device were in use, by all programs."""
        seen: list[tuple[float, float]] = []
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.2):
                with suppress(OSError):
                    device = self.host.server.request("/system_stats", timeout=5)["devices"][0]
                    seen.append((time.time(), (device["vram_total"] - device["vram_free"]) / 2**30))

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield seen
        finally:
            over.set()
            watcher.join()


def run_parts(parts: Parts, letters: str, ends: float, begun: float) -> dict[str, Any]:
    """Each part's seconds, what it told, and what was wrong."""
    results: dict[str, Any] = {}
    read = len(parts.host.log_text())
    for letter in letters:
        left = ends - time.monotonic()
        if left < 10:
            print(f"{letter}: no time left", flush=True)
            continue
        parts.limit, parts.wrong, parts.tracebacks = min(LIMIT_ON_CPU_S if parts.on_cpu else LIMIT_S, left), [], 0
        start = time.monotonic()
        try:
            told = getattr(parts, f"part_{letter}")()
        except Exception:
            told = traceback.format_exc(limit=-3)
            parts.wrong.append("it broke off")
            calm(parts.host)
        log = parts.host.log_text()
        parts.wrong += [f"log: {line}" for line in unexpected(log[read:], parts.tracebacks)]
        read = len(log)
        seconds = round(time.monotonic() - start, 1)
        results[letter] = {"seconds": seconds, "wrong": parts.wrong, "told": told}
        verdict = "FAILED" if parts.wrong else "ok"
        print(f"\n[{time.monotonic() - begun:5.1f} s] {letter} {verdict}, {seconds} s\n{told}", flush=True)
        for sentence in parts.wrong:
            print(f"  WRONG: {sentence}", flush=True)
    return results


def calm(host: Host) -> None:
    """Stop what runs and what waits."""
    with suppress(Exception):
        host.server.request("/queue", {"clear": True})
        host.interrupt()
        until(lambda: not host.server.request("/queue")["queue_running"], "the end of what runs", 20)


def main() -> int:
    """The exit code: 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("COMFYUI_PATH"), help="ComfyUI's folder")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--seconds", type=float, default=190.0, help="after which no part begins or goes on")
    parser.add_argument("--parts", default="eabcdfghi")
    parser.add_argument("--page", type=Path, help="in the place of ComfyUI's page, where its package is not installed")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; ComfyUI's log is written beside it")
    options = parser.parse_args()
    begun = time.monotonic()
    scale = ON_CPU if options.cpu else ON_GPU
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        write_models(base / "models", scale)
        draw_media(base / "input" / "shapes", scale.side, scale.frames)
        for seed, name in enumerate(("large", "large_2")):
            draw_large_clip(base / "input" / name, scale.too_large, seed)
        print(f"[{time.monotonic() - begun:5.1f} s] models and clips are made", flush=True)
        more = () if options.page is None else ("--front-end-root", str(options.page.resolve()))
        try:
            with start_host(options.host, base, packs=[PACK], extra_args=more, on_cpu=options.cpu) as host:
                stats = host.server.request("/system_stats")
                print(
                    f"[{time.monotonic() - begun:5.1f} s] ComfyUI answers: {stats['system']} {stats['devices']}",
                    flush=True,
                )
                results = run_parts(Parts(host, options), options.parts, begun + options.seconds, begun)
        finally:
            log = (base / "server.log").read_text(errors="replace") if (base / "server.log").exists() else ""
            options.out.with_suffix(".log").write_text(log)
            is_bad = not results or any(result["wrong"] for result in results.values())
            print("\n".join(["", "The end of ComfyUI's log:", *log.splitlines()[-60:]]) if is_bad else "", flush=True)
    about = {"platform": platform.platform(), "python": platform.python_version(), "parts": results}
    options.out.write_text(json.dumps(about, indent=1) + "\n")
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
