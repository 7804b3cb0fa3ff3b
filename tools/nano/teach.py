"""Teaches the nano models a concept by a LoRA and measures it, with the core's own data, training and sampling:

python -m tools.nano teach --concept star --steps 150 --out FOLDER

FOLDER then holds the clips, the caches, the runs with their LoRAs, and a contact sheet.
"""

import argparse
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .command import add_common_arguments, common_settings, run_command, trainer_of, workshop_of
from .concepts import CONCEPTS
from .evaluate import Family
from .exam import Answers, Exam, answer, grade
from .lessons import teach, with_lora

SHEET_PROMPTS, SHEET_FRAMES = 8, 5


def contact_sheet(path: Path, exam: Exam, *, off: Answers, on: Answers) -> None:
    """Write a picture with a row for each of the first prompts: frames without the LoRA, then with it."""
    count = min(SHEET_PROMPTS, len(exam.triggered))
    frames = np.linspace(0, off.clips.shape[1] - 1, SHEET_FRAMES).round().astype(int)
    side, gap, text = off.clips.shape[2], 8, 30
    half = SHEET_FRAMES * side
    sheet = Image.new("RGB", (2 * half + 3 * gap, count * (side + text) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    attribute = exam.concept.attribute
    for row in range(count):
        top = gap + row * (side + text)
        for column, answers in enumerate((off, on)):
            left = gap + column * (half + gap)
            strip = np.concatenate(list(answers.clips[row][frames]), axis=1)  # [H, frames * W, 3]
            sheet.paste(Image.fromarray(strip), (left, top + text - 2))
            seen = f"{('off', 'on')[column]}: {getattr(answers.triggered[row], attribute)}"
            draw.text((left, top + 12), seen, fill="black")
        draw.text((gap, top), textwrap.shorten(exam.triggered[row][1], 2 * half // 7), fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main(arguments: list[str]) -> None:
    """Teach, measure, print the score, draw the contact sheet."""
    parser = argparse.ArgumentParser(
        prog="tools.nano teach", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--concept", choices=CONCEPTS, required=True)
    parser.add_argument("--strength", type=float, default=1.0, help="of the LoRAs when measured")
    add_common_arguments(parser)
    options = parser.parse_args(arguments)
    run_command(lambda: _teach(options))


def _teach(options: argparse.Namespace) -> None:
    concept = CONCEPTS[options.concept]
    settings, workshop = common_settings(options), workshop_of(options)
    exam = Exam.of(concept, options.prompts)
    lessons = teach(concept, settings, workshop, trainer_of(options))
    for stage, lesson in lessons.items():
        for warning in lesson.warnings:
            print(f"{stage}: {warning}")
        print(f"{stage}: loss {lesson.loss:.4f}, {lesson.seconds:.0f} s of training, {lesson.lora}", flush=True)
    base = Family.load(workshop.files, options.device)
    loras = {stage: lesson.lora for stage, lesson in lessons.items()}
    trained = with_lora(base, loras.get("high"), loras.get("low"), options.strength)
    off, on = answer(base, exam), answer(trained, exam)
    sheet = options.out / f"{concept.name}.png"
    contact_sheet(sheet, exam, off=off, on=on)
    print(
        f"{concept.name} as '{concept.trigger}' after {settings.loop.steps} steps, {len(exam.plain)} prompts of a kind"
    )
    print(grade(exam, off=off, on=on))
    print(sheet)
