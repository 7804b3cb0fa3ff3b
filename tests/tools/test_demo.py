"""The parts of `run.py` that need no server."""

import json
import os
import random
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import SimpleNamespace

from wan_train.tools import demo
from wan_train.tools.checks import find_or_fetch, list_checks, run_each, surroundings
from wan_train.tools.demo import Progress, copy_pack, keep_file, lora_files
from wan_train.tools.examples import DEMO_DATASET, DEMO_PREVIEW, DEMO_WORD
from wan_train.tools.nano import world
from wan_train.tools.nano.concepts import CONCEPTS, other_scenes, training_scenes
from wan_train.tools.server import failure, output_files, refusal

PACK = Path(__file__).resolve().parents[2]

PROMPT = {"4": {"class_type": "TrainLoRAStage", "inputs": {}, "_meta": {"title": "Train (high)"}}}


def write_events(path, *events):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def step(number, loss):
    return {"event": "step", "step": number, "loss": loss, "lr": 1e-3}


def test_progress_prints_new_steps_and_endings(tmp_path, capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    old = tmp_path / "demo_low_0123" / "events.jsonl"
    write_events(old, step(1, 9.0))
    progress = Progress(tmp_path)
    new = tmp_path / "demo_high_4567" / "events.jsonl"
    write_events(new, step(1, 0.25), step(2, 0.75))
    new.with_name("job.json").write_text(json.dumps({"loop": {"steps": 8}}), encoding="utf-8")
    progress.show()
    assert capsys.readouterr().out == "  demo_high: step 2 of 8, loss 0.5000, learning rate 1.00e-03\n"
    write_events(new, step(3, 0.5))
    clock[0] += demo.PRINT_EVERY_S - 0.1
    progress.show()
    assert capsys.readouterr().out == ""  # not again within two seconds
    write_events(new, step(4, 0.5), {"event": "finished"})
    with new.open("a", encoding="utf-8") as file:
        file.write('{"event": "cut sh')
    progress.show()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["  demo_high: step 4 of 8, loss 0.5000, learning rate 1.00e-03", "  demo_high: finished"]


def test_copy_leaves_out_what_is_not_the_pack_and_replaces_the_old_copy(tmp_path):
    pack = tmp_path / "pack"
    for name in ("core/x.py", "tests/t.py", ".git/config", ".demo/server.log", "core/__pycache__/x.pyc"):
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        (pack / name).touch()
    target = copy_pack(pack, tmp_path / "base")
    (target / "core" / "gone.py").touch()
    assert copy_pack(pack, tmp_path / "base") == target
    assert [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()] == ["core/x.py"]


def scenes_in_words(prompt, concept):
    """Scenes of the concept that the world's captions may describe by this prompt."""
    choices = {
        "shape": world.SHAPES, "colour": world.COLOURS, "background": world.BACKGROUNDS, "texture": world.TEXTURES,
        "motion": world.MOTIONS, "size": world.SIZES, "count": (1, 2), concept.attribute: (concept.value,),
    }  # fmt: skip
    said = {name for name in ("shape", "colour", "background") if name != concept.attribute}
    for values in product(*choices.values()):
        look = dict(zip(choices, values, strict=True))
        if all(look[name] in prompt for name in said) and look["texture"] in (*prompt.split(), "plain"):
            scene, word = world.Scene(**look), {concept.attribute: concept.trigger}
            if prompt in (world.caption(scene, random.Random(i), word) for i in range(1500)):
                yield scene


def test_the_demo_asks_for_a_scene_that_no_clip_shows():
    concept = CONCEPTS[Path(DEMO_DATASET["folder"]).name]
    assert (DEMO_WORD, DEMO_DATASET["trigger_word"]) == (concept.trigger, "")  # the clips' captions have the word
    (asked,) = scenes_in_words(DEMO_PREVIEW["prompt"], concept)
    assert asked.is_test
    assert not any(scene.is_test for scene, _ in (*training_scenes(concept, 24, 0), *other_scenes(24, 0)))


def test_newest_lora_of_each_expert_is_found(tmp_path):
    loras = tmp_path / "models" / "loras"
    loras.mkdir(parents=True)
    (tmp_path / "output" / "wan_train" / "runs").mkdir(parents=True)
    (tmp_path / "output" / "wan_train" / "runs" / "a_low_noise.safetensors").touch()
    (loras / "a_high_noise.safetensors").touch()
    (loras / "b_low_noise.safetensors").touch()
    assert lora_files(tmp_path, "a") == [loras / "a_high_noise.safetensors"]
    for name, time in (("a_v2_high_noise", 2e9), ("a_v2_low_noise", 2e9), ("a_vase_high_noise", 3e9)):
        (loras / f"{name}.safetensors").touch()
        os.utime(loras / f"{name}.safetensors", (time, time))
    assert lora_files(tmp_path, "a") == [loras / "a_v2_high_noise.safetensors", loras / "a_v2_low_noise.safetensors"]


def test_failures_name_the_node():
    error = {"node_id": "4", "exception_message": "no such file\n"}
    entry = {"status": {"status_str": "error", "messages": [["execution_error", error]]}}
    assert failure(entry, PROMPT) == "'Train (high)': no such file"
    entry = {"status": {"status_str": "error", "messages": [["execution_interrupted", {"node_id": "4"}]]}}
    assert failure(entry, PROMPT) == "The run was stopped at 'Train (high)'."
    assert failure({"status": {"status_str": "success", "messages": []}}, PROMPT) is None


def test_refusals_name_the_node_and_the_input():
    errors = [{"message": "Value not in list", "details": "model_name: 'x' not in []"}]
    answer = {"node_errors": {"4": {"errors": errors}}}
    assert refusal(answer, PROMPT) == "'Train (high)': Value not in list: model_name: 'x' not in []."
    answer = {"error": {"message": "Prompt has no outputs", "details": ""}, "node_errors": {}}
    assert refusal(answer, PROMPT) == "ComfyUI refused the prompt: Prompt has no outputs."


def test_output_files_are_found_by_type_and_subfolder(tmp_path):
    images = [{"filename": "v.mp4", "subfolder": "video", "type": "output"}]
    entry = {"outputs": {"4": {"images": images, "animated": [True], "text": ["x"]}}}
    assert output_files(entry, tmp_path) == {"4": [tmp_path / "output" / "video" / "v.mp4"]}


def test_files_that_the_host_would_delete_are_kept(tmp_path):
    (tmp_path / "temp").mkdir()
    (tmp_path / "output").mkdir()
    (tmp_path / "temp" / "x_00001_.png").write_bytes(b"picture")
    kept = keep_file(tmp_path / "temp" / "x_00001_.png", "Loss curve (high noise)", tmp_path)
    assert kept == tmp_path / "output" / "loss_curve_high_noise.png"
    assert kept.read_bytes() == b"picture"
    video = tmp_path / "output" / "video" / "v.mp4"
    assert keep_file(video, "Video", tmp_path) == video


def test_extra_arguments_run_only_pytest(tmp_path):
    (tmp_path / "core").mkdir()
    assert [name for name, _ in list_checks(Path("py"), tmp_path, [], 1)] == ["lint", "format", "types", "tests"]
    ((name, command),) = list_checks(Path("py"), tmp_path, ["-k", "x"], 4)
    assert name == "tests"
    assert command[-8:] == ["tests", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", "-k", "x"]
    ((_, command),) = list_checks(Path("py"), tmp_path, ["core::test_x"], 1)
    assert command[-2:] == ["tests/pytest.ini", "core::test_x"]  # a place alone


def test_processes_of_tests_are_forks_with_one_thread_each_unless_something_else_is_said():
    assert surroundings({"A": "b"}, None, 1) == {"A": "b", "WANTRAIN_FORKS": "1"}
    assert surroundings({"COMFYUI_PATH": "x"}, Path("y"), 2) == {
        "COMFYUI_PATH": "y",
        "OMP_NUM_THREADS": "1",
        "WANTRAIN_FORKS": "1",
    }
    said = {"OMP_NUM_THREADS": "3", "WANTRAIN_FORKS": "0"}
    assert surroundings(said, None, 2) == said


def test_types_are_checked_beside_the_others_and_told_at_the_end(tmp_path, capfd):
    def python(code):
        return [sys.executable, "-c", f"from pathlib import Path\n{code}"]

    wait = "while not Path('linted').exists(): pass\n"
    checks = [
        ("lint", python("Path('linted').touch(); print('lint is fine', flush=True)")),
        ("types", python(f"{wait}print('types are wrong', flush=True); raise SystemExit(1)")),
        ("page lint", python("print('page is fine', flush=True)")),
        ("tests", python("print('tests ran', flush=True); raise SystemExit(2)")),
    ]
    assert run_each(checks, tmp_path, os.environ) == ["tests", "types"]
    said = capfd.readouterr().out
    places = [
        said.index(f"\n{words}")
        for words in ("lint is fine", "page is fine", "tests ran", "== types", "types are wrong")
    ]
    assert places == sorted(places)
    assert run_each(checks[1:2], tmp_path, os.environ) == ["types"]


def test_found_host_is_used_for_the_tests(tmp_path):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "sd.py").touch()
    (tmp_path / "main.py").touch()
    assert find_or_fetch(PACK, {"COMFYUI_PATH": str(tmp_path)}, tmp_path) == tmp_path.resolve()


def test_help_tells_both_commands():
    result = subprocess.run(
        [sys.executable, str(PACK / "run.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "demo" in result.stdout
    assert "test" in result.stdout


def test_wrong_comfyui_path_is_one_sentence_and_no_traceback(tmp_path):
    environ = {"COMFYUI_PATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path), "SYSTEMROOT": "C:\\Windows"}
    command = [sys.executable, str(PACK / "run.py"), "demo"]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"Failed: COMFYUI_PATH is '{tmp_path}'")
    assert "Traceback" not in result.stderr
