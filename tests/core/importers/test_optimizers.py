"""Optimizers, losses and schedules of other trainers: by every name that they have for them, and with what they take."""

import json
import math

import pytest
import torch
from wan_train.core.flow.sigmas import sigma_at
from wan_train.tests.core.importers.given import (
    AITOOLKIT,
    DIFFUSION_PIPE,
    DIFFUSION_PIPE_DATASET,
    MUSUBI_DATASET,
    SIMPLETUNER,
    SIMPLETUNER_DATASETS,
    import_files,
    outcome,
)


def musubi(flags):
    start = "python wan_train_network.py --task t2v-14B --dit /m/wan2.1_t2v_14B_fp16.safetensors"
    return import_files(
        {"train.sh": f"{start} --network_module networks.lora_wan {flags}", "dataset.toml": MUSUBI_DATASET}
    )


def aitoolkit(old, new):
    assert old in AITOOLKIT
    return import_files({"job.yaml": AITOOLKIT.replace(old, new)})


def simpletuner(**options):
    made = json.dumps({**json.loads(SIMPLETUNER), **options})
    return import_files({"config.json": made, "multidatabackend.json": SIMPLETUNER_DATASETS})


def pipe(old, new):
    assert old in DIFFUSION_PIPE
    return import_files({"config.toml": DIFFUSION_PIPE.replace(old, new), "dataset.toml": DIFFUSION_PIPE_DATASET})


def taken(imported):
    made = imported.recipe.optimizer
    return made.name, made.beta2, made.eps, made.weight_decay


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("AdamW8bit", ("adamw8bit", 0.999, 1e-8, 0.01)),
        ("bitsandbytes.optim.PagedAdamW8bit", ("paged_adamw8bit", 0.999, 1e-8, 0.01)),
        ("bitsandbytes.optim.PagedLion8bit", ("paged_lion8bit", 0.99, 1e-8, 0.0)),
        ("lion_pytorch.Lion", ("lion", 0.99, 1e-8, 0.0)),
        ("prodigyopt.Prodigy", ("prodigy", 0.999, 1e-8, 0.0)),
        ("schedulefree.AdamWScheduleFree", ("schedulefree", 0.999, 1e-8, 0.0)),
    ],
)
def test_musubis_class_paths(word, expected):
    assert taken(musubi(f"--optimizer_type {word}")) == expected


def test_what_the_file_says_goes_first():
    assert taken(musubi("--optimizer_type lion_pytorch.Lion --optimizer_args weight_decay=0.2 betas=0.9,0.95")) == (
        "lion", 0.95, 1e-8, 0.2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("word", "path"),
    [("SGD", "torch.optim.SGD"), ("torch.optim.RAdam", "torch.optim.RAdam"), ("came.CAME", "came.CAME")],
)
def test_other_classes_are_used_by_their_path(word, path):
    imported = musubi(f"--optimizer_type {word} --optimizer_args momentum=0.9 nesterov=True")
    made = imported.recipe.optimizer
    assert (made.name, made.path, made.args) == ("custom", path, "momentum=0.9, nesterov=True")
    assert outcome(imported, "optimizer_type")[0] == "changed"


def test_arguments_that_an_optimizer_takes_are_kept_and_others_told():
    imported = musubi("--optimizer_type prodigyopt.Prodigy --optimizer_args d_coef=2 foreach=True")
    assert imported.recipe.optimizer.args == "d_coef=2"
    assert outcome(imported, "optimizer_args.foreach") == ("not supported", {})


def test_lora_plus():
    assert musubi("--network_args loraplus_lr_ratio=4").recipe.optimizer.lora_plus == 4.0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--lr_scheduler rex", ("rex", 0.01, 1, 0.2)),
        ("--lr_scheduler rex --lr_scheduler_min_lr_ratio 0.1", ("rex", 0.1, 1, 0.2)),
        ("--lr_scheduler cosine_with_restarts --lr_scheduler_num_cycles 3", ("cosine_restarts", 0, 3, 0.2)),
        ("--lr_scheduler warmup_stable_decay --lr_decay_steps 200 --max_train_steps 1000",
         ("warmup_stable_decay", 0, 1, 0.2)),
        ("--lr_scheduler warmup_stable_decay --lr_decay_steps 300 --lr_warmup_steps 400 --max_train_steps 1000",
         ("warmup_stable_decay", 0, 1, 0.5)),
        ("--lr_scheduler warmup_stable_decay --lr_decay_steps 0.1 --max_train_epochs 5",
         ("warmup_stable_decay", 0, 1, 0.1)),
    ],
)  # fmt: skip
def test_musubis_schedules(flags, expected):
    made = musubi(flags).recipe.schedule
    assert (made.kind, made.floor, made.cycles, made.decay_share) == expected


def test_steps_of_a_fall_without_a_length_are_told():
    imported = musubi("--lr_scheduler warmup_stable_decay --lr_decay_steps 200 --max_train_epochs 5")
    assert outcome(imported, "lr_decay_steps") == ("not supported", {})


def test_a_floor_that_musubi_does_not_read_is_told():
    assert outcome(musubi("--lr_scheduler cosine --lr_scheduler_min_lr_ratio 0.1"), "lr_scheduler_min_lr_ratio") == (
        "changed", {"schedule.floor": 0.1},
    )  # fmt: skip


def test_a_bell_with_a_mean_is_a_shift():
    """training/trainer_base.py of 30c658c, in its own words: the draw is a place in a table that falls from 1000 to 1."""
    made = musubi("--timestep_sampling sigma --weighting_scheme logit_normal --logit_mean 0.6931471805599453").recipe
    assert made.timesteps.sampling == "shift"
    assert made.timesteps.shift == pytest.approx(0.5)
    u = torch.sigmoid(torch.normal(math.log(2), 1.0, (200_000,), generator=torch.Generator().manual_seed(0)))
    table = torch.linspace(1, 0, 1001)[:-1]
    theirs = table[(u * 1000).long()].quantile(torch.tensor([0.1, 0.5, 0.9]))
    ours = sigma_at(torch.tensor([0.1, 0.5, 0.9]), made.timesteps)
    assert ours.tolist() == pytest.approx(theirs.tolist(), abs=5e-3)
    assert outcome(musubi("--timestep_sampling shift --logit_mean 1"), "logit_mean")[0] == "not needed"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("adamw8bit", ("adamw8bit", 0.999, 1e-6, 0.0001)),
        ("lion8bit", ("lion8bit", 0.99, 1e-8, 0.0001)),
        ("adam", ("adamw", 0.999, 1e-6, 0.0001)),
        ("prodigy", ("prodigy", 0.999, 1e-6, 0.0001)),
    ],
)
def test_aitoolkits_names(word, expected):
    assert taken(aitoolkit('optimizer: "adamw8bit"', f'optimizer: "{word}"')) == expected


def test_aitoolkits_rate_of_prodigy_is_one():
    made = aitoolkit('optimizer: "adamw8bit"', 'optimizer: "prodigy"').recipe.optimizer
    assert made.learning_rate == 1.0
    assert import_files({"job.yaml": AITOOLKIT}).recipe.optimizer.learning_rate == 1e-4


def test_aitoolkits_pseudo_huber():
    imported = aitoolkit("loss_type: mse", "loss_type: pseudo_huber")
    assert outcome(imported, "train.loss_type") == ("changed", {"loss.kind": "soft_l1", "loss.huber_c": 0.01})
    assert outcome(aitoolkit("loss_type: mse", "loss_type: wavelet"), "train.loss_type")[0] == "not supported"


@pytest.mark.parametrize(
    ("word", "values"),
    [("shift", ("shifted_uniform", "none")), ("weighted", ("uniform", "weighted")), ("sigmoid", ("sigmoid", "none"))],
)
def test_aitoolkits_timestep_types(word, values):
    made = aitoolkit("timestep_type: 'linear'", f"timestep_type: '{word}'").recipe
    assert (made.timesteps.sampling, made.loss.weighting) == values


@pytest.mark.parametrize(("word", "bias"), [("content", "favor_high_noise"), ("style", "favor_low_noise")])
def test_aitoolkits_bias(word, bias):
    made = aitoolkit("content_or_style: 'balanced'", f"content_or_style: '{word}'").recipe
    assert made.timesteps.bias == bias


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("lr_scheduler: linear", ("constant", 0.0, 0)),
        ("lr_scheduler: linear\n        lr_scheduler_params: {start_factor: 1.0}", ("constant", 0.0, 0)),
        ("lr_scheduler: linear\n        lr_scheduler_params: {start_factor: 1.0, end_factor: 0.1}", ("linear", 0.1, 0)),
        (
            "lr_scheduler: constant_with_warmup\n        lr_scheduler_params: {num_warmup_steps: 100}",
            ("constant", 0.0, 50),
        ),
    ],
)
def test_aitoolkits_schedules(lines, expected):
    """Steps count both experts."""
    made = aitoolkit("loss_type: mse", f"loss_type: mse\n        {lines}").recipe.schedule
    assert (made.kind, made.floor, made.warmup_steps) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("optimi-lion", ("lion", 0.99, 1e-8, 0.0)),
        ("bnb-lion8bit-paged", ("paged_lion8bit", 0.99, 1e-8, 0.0)),
        ("bnb-lion-paged", ("paged_lion", 0.99, 1e-8, 0.0)),
        ("bnb-adamw8bit-paged", ("paged_adamw8bit", 0.999, 1e-6, 0.01)),
        ("optimi-adamw", ("adamw", 0.99, 1e-6, 0.0)),
        ("adamw_schedulefree", ("schedulefree", 0.999, 1e-8, 0.01)),
        ("torch-sgd", ("custom", 0.999, 1e-8, 0.0)),
    ],
)
def test_simpletuners_names(word, expected):
    assert taken(simpletuner(optimizer=word)) == expected


def test_simpletuners_options_for_deepspeed_have_no_effect():
    imported = simpletuner(optimizer="optimi-adamw", adam_weight_decay=0.3, optimizer_config="eps=1e-7")
    assert taken(imported) == ("adamw", 0.99, 1e-7, 0.0)
    assert outcome(imported, "adam_weight_decay")[0] == "not needed"


def test_simpletuners_unknown_optimizers_are_told():
    assert outcome(simpletuner(optimizer="muonclip"), "optimizer") == ("not supported", {})


@pytest.mark.parametrize(
    ("word", "kind", "schedule"),
    [("huber", "pseudo_huber", "snr"), ("smooth_l1", "soft_l1", "snr"), ("l2", "mse", "constant")],
)
def test_simpletuners_losses(word, kind, schedule):
    made = simpletuner(loss_type=word).recipe.loss
    assert (made.kind, made.huber_schedule) == (kind, schedule)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("adamw_optimi", ("adamw", 0.99, 1e-6, 0.01)),
        ("AdamW8bitKahan", ("adamw8bit", 0.99, 1e-8, 0.01)),
        ("Prodigy", ("prodigy", 0.99, 1e-8, 0.01)),
    ],
)
def test_diffusion_pipes_names(word, expected):
    assert taken(pipe("type = 'adamw_optimi'", f"type = '{word}'")) == expected


def test_diffusion_pipes_other_classes_and_own_code():
    made = pipe("type = 'adamw_optimi'", "type = 'CAME'").recipe.optimizer
    assert (made.name, made.path) == ("custom", "pytorch_optimizer.CAME")
    assert outcome(pipe("type = 'adamw_optimi'", "type = 'automagic'"), "optimizer.type")[0] == "not supported"


@pytest.mark.parametrize(
    ("line", "expected"),
    [("smooth_l1_beta = 0.25", ("smooth_l1", 0.25)), ("huber_delta = 0.5\nsmooth_l1_beta = 0.25", ("huber", 0.5))],
)
def test_diffusion_pipes_losses(line, expected):
    made = pipe("epochs = 1000", f"epochs = 1000\n{line}").recipe.loss
    assert (made.kind, made.huber_delta) == expected


def test_diffusion_pipes_cosine_ends_at_a_rate():
    made = pipe("warmup_steps = 10", "warmup_steps = 10\nlr_scheduler = 'cosine'").recipe.schedule
    assert (made.kind, made.floor) == ("cosine", pytest.approx(0.05))


def test_diffusion_pipes_arguments():
    """What has a line of its own keeps it; the rest are arguments of the class."""
    imported = pipe("type = 'adamw_optimi'", "type = 'CAME'\nstabilize = false\nclip_threshold = 2.0")
    assert outcome(imported, "optimizer.stabilize")[0] == "not needed"
    assert imported.recipe.optimizer.args == "clip_threshold=2.0"
