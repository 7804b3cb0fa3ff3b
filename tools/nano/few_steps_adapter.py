"""A training adapter for the few-step pair, made as AI-Toolkit's are.

A LoRA that learns, by the plain loss, clips that the few-step pair itself made: it takes the distillation away and nothing
else. It is merged into the model while a LoRA is taught, and left out afterwards.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ...core.data.encode import cache_latents, cache_text
from ...core.data.pairs import data_spec
from ...core.data.scan import scan_folder
from ...core.data.store import Store
from ...core.serial import digest
from ...core.settings.dataset import DatasetOptions
from ...core.settings.job import Job
from ...core.train.build import build_job
from ...core.wan.checkpoint import inspect
from . import world
from .concepts import other_scenes
from .dataset import write_lossless
from .distil import FEW_STEPS
from .evaluate import Family
from .family import STAGES
from .lessons import Train, train_in_worker
from .settings import Settings
from .workshop import NanoTextEncoder, NanoVideoEncoder, Workshop

CLIPS, STEPS = 96, 500


def make_adapters(
    few: Workshop, steps: int = STEPS, clips: int = CLIPS, train: Train = train_in_worker
) -> dict[str, Path]:
    """Of each expert; what is there already is used again."""
    jobs = self_jobs(few, steps, clips)
    folders = [few.run_folder(job) for job in jobs.values()]
    with ThreadPoolExecutor(len(folders)) as pool:
        return dict(zip(jobs, pool.map(train, folders), strict=True))


def self_jobs(few: Workshop, steps: int, clips: int) -> dict[str, Job]:
    """Jobs over clips that the few-step pair made of captions of what it knows."""
    folder = few.folder / "data" / f"few-step-clips-{clips}-{digest(few.identities())[:8]}"
    if not (folder / f"clip_{clips - 1:03d}.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        captions = [text for _, text in other_scenes(clips, 1)]
        made = Family.load(few.files, few.device).generate(captions, range(clips), FEW_STEPS)
        for number, (frames, text) in enumerate(zip(made, captions, strict=True)):
            path = folder / f"clip_{number:03d}.mp4"
            write_lossless(path, list(frames), world.FPS)
            path.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")
    options = DatasetOptions(width=world.SIZE, height=world.SIZE, num_frames=world.NUM_FRAMES, fps=world.FPS)
    dataset = scan_folder(folder, options)
    store = Store(few.folder.absolute() / "cache")
    latents, _ = cache_latents(dataset, NanoVideoEncoder(few.files.vae, few.device), store)
    text, _ = cache_text(dataset.captions, NanoTextEncoder(few.files.text_encoder, few.device), store)
    data = data_spec(latents, text)
    usual = Settings()
    settings = replace(usual, device=few.device, loop=replace(usual.loop, steps=steps))
    return {
        stage: build_job(
            inspect(few.files.dit(stage).absolute()),
            data,
            settings,
            name="training_adapter",
            stage=stage,
            trigger_word="",
        )
        for stage in STAGES
    }
