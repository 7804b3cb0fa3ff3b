"""One LoRA for both experts through the graph: one file, which the host's loader puts on both models."""

import json

from wan_train.core.adapters.other_files import read_adapter
from wan_train.core.train.run_folder import RunFolder
from wan_train.tests.host.graphs import changed, dit, node, one_stage

MERGE = {
    "precision": "bf16",
    "key_style": "comfyui",
    "rank": 0,
    "author": "",
    "description": "",
    "second_strength": 1.0,
}


def graph(**train):
    """`dit` is the low noise expert here, and other_dit the high one: which is which follows from the stage."""
    prompt = one_stage("low", lora_name="one", steps=6, seed=31, shared_lora=True, alternate_every=2, **train)
    prompt["high_dit"] = dit("wan_mini_high_noise.safetensors")
    prompt["low_train"]["inputs"]["other_dit"] = ["high_dit", 0]
    prompt["pair"] = node("MergeStages", high=["low_train", 0], low=["low_train", 0], name="one", **MERGE)
    for stage in ("high", "low"):
        file = f"wan_mini_{stage}_noise.safetensors"
        prompt[f"{stage}_model"] = node("UNETLoader", unet_name=file, weight_dtype="default")
    prompt["preview"] = node(
        "PreviewLoRA", pair=["pair", 0], high=["high_model", 0], low=["low_model", 0], clip=["clip", 0], vae=["vae", 0],
        prompt="shp a red circle", negative_prompt="", width=64, height=64, num_frames=9, steps=4, cfg=1.0, seed=3,
        shift=0.0, boundary=0.875, sampler="euler", scheduler="simple", strength=1.0, compare=True, fps=16.0,
    )  # fmt: skip
    prompt["on"] = node("SaveImage", images=["preview", 0], filename_prefix="one_on")
    return prompt


def test_one_file_is_trained_merged_and_put_on_both_models(host):
    entry = host.run(graph())
    assert entry["status"]["status_str"] == "success", entry["status"]
    (folder,) = (host.base / "output" / "wan_train" / "runs").glob("one_both_*")
    job = RunFolder(folder).read_job()
    assert (job.stage, job.turns.every) == ("both", 2)
    assert "high_noise" in job.model.path
    assert "low_noise" in job.other_expert.path
    file = host.base / "models" / "loras" / "one.safetensors"
    assert read_adapter(file).metadata["wantrain.experts"] == "high,low"
    assert "one LoRA" not in json.dumps(entry["outputs"])  # nothing is complained of
    assert "finished: 6 steps" in "\n".join(entry["outputs"]["low_train"]["text"])
    assert "of both experts together" in host.log_text()
    again = host.run(changed(graph(), "pair", author="again"))
    assert again["status"]["status_str"] == "success", again["status"]


def test_without_the_other_expert_it_is_refused_on_the_node(host):
    prompt = graph()
    del prompt["low_train"]["inputs"]["other_dit"]
    entry = host.run(prompt)
    assert entry["status"]["status_str"] == "error"
    told = json.dumps(entry["status"]["messages"])
    assert "other_dit has no wire" in told
