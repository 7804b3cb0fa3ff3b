"""What help pages, documents and findings say of the bench are the figures of nano/curves.

In a phrase {METHOD} is its mean at the end in percent, {METHOD|column} that column's; a name of NUMBERS is that number.
"""

import csv
import re
import statistics
from functools import cache
from pathlib import Path

import pytest
from wan_train.core.adapters.kind import ADAPTER_KINDS
from wan_train.core.flow.losses import LOSSES
from wan_train.core.flow.timesteps import SAMPLINGS
from wan_train.core.flow.weightings import WEIGHTINGS
from wan_train.core.optimizers import OPTIMIZERS
from wan_train.core.recipe.recipe import Recipe
from wan_train.core.schedules import SCHEDULES
from wan_train.core.settings.ema import EmaOptions
from wan_train.core.settings.option import all_options
from wan_train.tools.nano.method_plot import draw
from wan_train.tools.nano.method_rows import read_rows
from wan_train.tools.nano.method_table import CHOICES, MEAN, beyond_chance, found_in, value_of
from wan_train.tools.nano.methods import BASELINE, METHODS

PACK = Path(__file__).parents[3]
CURVES = PACK / "nano" / "curves"
PAGE, GUIDES, README = "web/docs/TrainLoRAStage.md", "docs/guides.md", "nano/README.md"
FEW_STEP = ("base", "1"), ("base", "1.5"), ("few-step", "1"), ("training adapter", "1"), ("contrastive", "1")

TOLD = {
    PAGE: [
        "half the rate came to {learning rate / 2} %, the rate to {baseline}, twice the rate to {learning rate x 2} %",
        "rank 4 came to {rank 4} %, 16 to {baseline}, 32 to {rank 32} and 64 to {rank 64} %",
        "mse came to {baseline} %, mae to {mae}, huber with 0.1, pseudo_huber and soft_l1 to {huber .1}. smooth_l1 came to"
        " {smooth_l1}, which is within what seeds do, but it showed the movement less: {smooth_l1|move} %, mse"
        " {baseline|move}.",
        "{huber .1}={pseudo_huber}={soft_l1}",
        "sigma_sqrt came to {sigma_sqrt} %, none to {baseline} %",
        "with 3 the nano bench (160 steps, 3 seeds) gives {contrastive guidance 3} %, without it {baseline} %",
        "self attention alone came to {self attention} %, the feed-forward alone to {feed-forward}, attention to {attention}"
        " and all to {baseline} %; a model that has learnt nothing has 25 %",
        "adamw at learning_rate 1.5e-3 came to {baseline} %, lion at 3e-4 to {lion 3e-4}, schedulefree at 1.5e-3 to"
        " {schedulefree 1.5e-3}, muon at 1.5e-3 to {muon 1.5e-3}. One rate of each was tried; adafactor, adamw8bit, ademamix"
        " and prodigy differed from adamw by no more than seeds do.",
        "constant came to {baseline} %, cosine to {cosine}, linear to {linear}, and polynomial with lr_power 8 to"
        " {polynomial 8}, which is nothing learnt; rex and warmup_stable_decay differed from constant by no more than seeds do",
        "lora came to {baseline} %, oft to {OFT}, lokr to {LoKr}, which is nothing learnt, and with lokr_full to {LoKr whole}",
        "with loha {LoHa|kept} % of videos without the trigger word stayed as asked, with oft {OFT|kept}, with lora all",
        "{DOP 1, no known clips|kept} % of videos without the trigger word stayed as asked with it, and"
        " {no known clips|kept} % without it. Where clips of known things were trained too, all stayed so either way, and what"
        " else was asked beside the trigger word fell from {baseline|aligned} to {DOP 1|aligned} %.",
        "{blank 1|kept} % of videos without the trigger word stayed as asked with it, and all without it",
        "a target of 0.01 came to {DOP adaptive .01} %; with the weight left at 1 it was {DOP 1} %",
        "it came to {prior preservation} %, plain clips of known things to {baseline}: no more than seeds differ",
        "`1 to -2: 0.5` came to {TREAD 1 to -2: 0.5} %, and {baseline} % without it",
        "5 steps with probability 0.25 came to {rollout 5} %, as without it",
        "with 0.5 as `motion_strength` the movement was seen in {motion (LTD) 0.5|move} % of videos, and in {baseline|move} %"
        " without",
        "it came to {T-LoRA} %, a LoRA to {baseline}: no more than seeds differ",
        "{METHODS} ways beside the baseline, each with three seeds",
        "the baseline {baseline} % (its seeds {LEAST} to {MOST} %)",
        "in {RUNS} runs on the nano bench (miniature models, 160 steps, 2 held-out clips of each concept) the last came to"
        " {the last} %, that of the lowest held-out loss to {lowest held-out loss}, the best that there was to"
        " {the best of all, as the exam says} %",
        "In {RUNS} runs on the nano bench, 160 steps with a checkpoint every 40, the last checkpoint came to {the last} % in"
        " the mean, that of the lowest held-out loss to {lowest held-out loss}, that whose preview moved most like the sample"
        " to {motion nearest to the sample's}, and the best that there was to {the best of all, as the exam says} %. In"
        " {LONG} runs of 480 steps it was {LONG the last}, {LONG lowest held-out loss}, {LONG motion nearest to the sample's}"
        " and {LONG the best of all, as the exam says} %",
        "| the plain model | 1 | {base 1} % | {base 1|kept} % |",
        "| the plain model | 1.5 | {base 1.5} % ▲ | {base 1.5|kept} % ▼ |",
        "| the pair, as it is | 1 | {few-step 1} % ▼ | {few-step 1|kept} % ▼ |",
        "| the pair, with a training adapter | 1 | {training adapter 1} % | {training adapter 1|kept} % ▼ |",
        "| the pair, with `contrastive_guidance` 2.5 | 1 | {contrastive 1} % | {contrastive 1|kept} % ▼ |",
        "({contrastive 1|motion} % of what drawn clips have; {base 1|motion} % with a LoRA of the plain model)",
        "LoRAs taught with it showed their concept in {training adapter 1} % of videos there, and {training adapter 1|kept} %"
        " had the rest as asked; taught there without it {few-step 1} and {few-step 1|kept} %, taught on the plain model"
        " {base 1} and {base 1|kept} %",
        "a LoRA so taught showed its concept in {contrastive 1} % of videos, and {contrastive 1|kept} % had the rest as asked;"
        " one of the plain model, used there, {base 1} and {base 1|kept} %.",
        "({contrastive 1|motion} % of what drawn clips have, {base 1|motion} with the other)",
    ],
    "web/docs/WanCompareCheckpoints.md": [
        "in {RUNS} short runs of miniature models that checkpoint showed what was taught far less than the last one:"
        " [{lowest held-out loss} % beside {the last}]",
    ],
    "web/docs/DatasetFromFolder.md": ["so it was in {LEARNT} of {RUNS} short runs of miniature models"],
    GUIDES: [
        "the baseline comes to {baseline} %, a model that has learnt nothing to 25",
        "On the bench twice the rate came to {learning rate x 2} %, within what seeds do.",
        "On the bench polynomial with 8 came to {polynomial 8} %",
        "On the bench the high noise expert alone, advised for motion, came to {high noise expert alone} %",
        "On the bench half the rate came to {learning rate / 2} %",
        "On the bench mae came to {mae} %",
        "On the bench it kept {DOP 1, no known clips|kept} % of the rest without clips of known things,"
        " {no known clips|kept} % without it",
        "On the bench LoKr came to {LoKr} %, with `lokr_full` to {LoKr whole}",
        "On the bench lion, at a fifth of adamw's rate, came to {lion 3e-4} %",
        "On the bench cosine came to {cosine} %",
        "On the bench `1 to -2: 0.5`, of 6 blocks, came to {TREAD 1 to -2: 0.5} %",
    ],
    "docs/measurements.md": [
        "There {METHODS} ways were compared with the baseline, each with three seeds, 160 steps each, {RUNS} runs on H200s",
        "{WORSE} are worse, among them cosine ({cosine} %, the baseline {baseline}), lion ({lion 3e-4}), muon"
        " ({muon 1.5e-3}), LoKr and the high noise expert alone (25, nothing learnt)",
        "25={LoKr}={high noise expert alone}",
        "The last checkpoint was nearly always the best ({the last} %, the best of all"
        " {the best of all, as the exam says})",
        "showed their concept in {base 1} % of videos (2 to 83, nine trainings), and {base 1|kept} % had the rest as asked."
        " Strength 1.5 raised the one to {base 1.5} and cost the other, {base 1.5|kept}. Taught on the pair itself it was"
        " {few-step 1} and {few-step 1|kept}, with a training adapter {training adapter 1} and {training adapter 1|kept}, with"
        " contrastive guidance {contrastive 1} and {contrastive 1|kept}",
    ],
    README: [
        "made {RUNS} runs of 160 steps of each expert",
        "That is {METHODS} methods beside the baseline, each with three seeds.",
        "Worse by more than that are {WORSE}. Of what guides advise: half the learning rate ({learning rate / 2} %, the"
        " baseline {baseline}), lion ({lion 3e-4}), cosine ({cosine}), TREAD ({TREAD 1 to -2: 0.5}), LoKr, polynomial 8 and"
        " the high noise expert alone (25 each: nothing learnt).",
        "25={LoKr}={polynomial 8}={high noise expert alone}",
        "The clips of known things keep the rest ({baseline|kept} %, without them {no known clips|kept}); output preservation"
        " keeps nearly as much without such clips ({DOP 1, no known clips|kept}). LoHa and OFT keep less ({LoHa|kept} and"
        " {OFT|kept}), blank preservation {blank 1|kept}.",
        "teach less ({6 clips of each} %) in as many steps",
        "mae, huber, pseudo_huber and soft_l1 come to {mae} and {huber .1} %",
        "{the last} of {the best of all, as the exam says} % after 160 steps, {LONG the last} of"
        " {LONG the best of all, as the exam says} after 480",
        "{lowest held-out loss} %, and {LONG lowest held-out loss}. In {RISEN} of the {RUNS} runs the loss had risen at the"
        " end, and in {LEARNT} of these look and movement were seen more often all the same",
        "Motion does not choose better: {motion nearest to the sample's} %, and {LONG motion nearest to the sample's}. Both"
        " together come to {loss and motion, each as near as may be}, and {LONG loss and motion, each as near as may be}.",
        "the look went from {HALF look} to {baseline|look} %, and the movement from {HALF move} to {baseline|move}",
        "Then it chooses the last in all {ALL} runs",
        "Strength 1.5 shows more of the concept ({base 1.5} % in place of {base 1})",
    ],
    "core/train/scores.py": ["the {ALL} runs measured there"],
    "core/lora_check/findings.py": [
        "1.5 showed what was learnt in {base 1.5} % of videos in place of {base 1}, and {base 1.5|kept} % in place of"
        " {base 1|kept} had the rest as asked",
    ],
}  # fmt: skip
# Where a text says that a way is no better or worse than what it is compared with by more than seeds differ.
WITHIN = (
    "sigmoid", "shift 1", "shift 3", "shifted_uniform 5", "favor_high_noise", "favor_low_noise", "auto_shift", "bell", "beta",
    "mode", "logsnr", "flux_shift", "qwen_shift", "qinglong_flux", "sigmoid squeezed", "strata 8", "learning rate x 2",
    "rank 32", "rank 64", "smooth_l1", "weighted", "motion (LTD) 0.5", "motion (LTD) 2", "frame_motion .5", "half_bell",
    "cosmap", "adafactor 1.5e-3", "adamw8bit 1.5e-3", "ademamix 1.5e-3", "prodigy 1", "rex", "warmup_stable_decay", "DoRA",
    "LoHa", "T-LoRA", "prior preservation", "rollout 5",
)  # fmt: skip
# "Worse by more than that" on the page of the training node, in its words and the bench's.
WORSE = {
    "`sigma_sqrt`": ["sigma_sqrt"], "`mae`": ["mae"], "`huber` with 0.1": ["huber .1"], "`pseudo_huber`": ["pseudo_huber"],
    "`soft_l1`": ["soft_l1"], "`contrastive_guidance` 3": ["contrastive guidance 3"],
    "`preservation_target` 0.01": ["DOP adaptive .01"], "6 clips in place of 12": ["6 clips of each"], "rank 4": ["rank 4"],
    "`lokr`": ["LoKr", "LoKr whole"], "`oft`": ["OFT"], "half the learning rate": ["learning rate / 2"],
    "`lion`": ["lion 3e-4"],
    "`schedulefree`": ["schedulefree 1.5e-3"], "`muon`": ["muon 1.5e-3"], "`polynomial` with 8": ["polynomial 8"],
    "`cosine`": ["cosine"], "`linear`": ["linear"], "TREAD": ["TREAD 1 to -2: 0.5"],
    "one expert alone": ["high noise expert alone", "low noise expert alone"],
    "self attention or the feed-forward alone": ["self attention", "feed-forward"],
}  # fmt: skip


def plain(text: str) -> str:
    """One line, also of literals that stand one under another."""
    return re.sub(r"\s+", " ", re.sub(r'"\n\s*"', "", text))


@cache
def text_of(path: str) -> str:
    return plain((PACK / path).read_text(encoding="utf-8"))


def runs_of(name: str) -> list[list[dict[str, str]]]:
    runs: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(CURVES / name):
        runs.setdefault(row["key"], []).append(row)
    return list(runs.values())


@cache
def found():
    return found_in(read_rows(CURVES / "methods.csv"))


@cache
def worse() -> frozenset[str]:
    return frozenset(name for name, gap in beyond_chance(found(), lambda one: one.ends(MEAN)).items() if gap < 0)


def whole(share: float) -> str:
    return f"{100 * share:.0f}"


@cache
def numbers() -> dict[str, str]:
    short, long = runs_of("methods.csv"), runs_of("grid.csv")
    base = found()[BASELINE]
    known = {"RUNS": str(len(short)), "LONG": str(len(long)), "ALL": str(len(short) + len(long))}
    known |= {"METHODS": str(len(found()) - 1), "WORSE": str(len(worse()))}
    ends = base.ends(MEAN).values()
    known |= {"LEAST": whole(min(ends)), "MOST": whole(max(ends))}
    known |= {f"HALF {name}": whole(statistics.fmean(base.at(name, 0.5).values())) for name in ("look", "move")}
    for word, runs in (("", short), ("LONG ", long)):
        for name, choose in CHOICES.items():
            known[word + name] = f"{100 * statistics.fmean(value_of(choose(marks), MEAN) for marks in runs):.1f}"
    lowest = [(CHOICES["lowest held-out loss"](marks), marks[-1]) for marks in short]
    risen = [pair for pair in lowest if float(pair[1]["held_out"]) > float(pair[0]["held_out"])]
    seen = [[float(row["look"]) + float(row["move"]) for row in pair] for pair in risen]
    known |= {"RISEN": str(len(risen)), "LEARNT": str(sum(last > low for low, last in seen))}
    with (CURVES / "few_steps.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "few-step"]
    for way, strength in FEW_STEP:
        own = [row for row in rows if (row["way"], row["strength"]) == (way, strength)]
        for column, name in (("learnt", ""), ("kept", "|kept"), ("motion", "|motion")):
            known[f"{way} {strength}{name}"] = whole(statistics.fmean(float(row[column]) for row in own))
    return known


def filled(phrase: str) -> str:
    def number(match: re.Match[str]) -> str:
        name = match[1]
        method, _, column = name.partition("|")
        return numbers()[name] if name in numbers() else whole(found()[method].mean(column or MEAN))

    return re.sub(r"\{([^}]+)\}", number, phrase)


@pytest.mark.parametrize(("path", "phrase"), [(path, phrase) for path, phrases in TOLD.items() for phrase in phrases])
def test_a_figure_is_the_files(path, phrase):
    told = filled(phrase)
    if "=" in phrase:  # several that are told as one
        assert len(set(told.split("="))) == 1
    else:
        assert told in text_of(path)


def told_figures(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?= %)", text))


@pytest.mark.parametrize(
    "item",
    [item for item in all_options(Recipe) if "bench" in item.page and "%" in item.page],
    ids=lambda item: item.place,
)
def test_every_figure_of_an_option_is_one_of_those_above(item):
    page = plain(item.page).replace("steps that are 20 to 40 % faster", "")  # SimpleTuner's own
    phrases = [filled(phrase) for phrase in TOLD[PAGE]]
    held = set().union(*(told_figures(phrase) for phrase in phrases if phrase in page))
    assert told_figures(page) - {"25"} <= held


def test_every_figure_of_the_guides_is_one_of_those_above():
    lines = [line for line in (PACK / GUIDES).read_text(encoding="utf-8").splitlines() if "the bench" in line]
    phrases = [filled(phrase) for phrase in TOLD[GUIDES]]
    for line in lines:
        assert told_figures(line) <= set().union(*(told_figures(p) for p in phrases if p in line)), line


@pytest.mark.parametrize("method", WITHIN)
def test_no_more_than_seeds_do_is_what_the_bench_says(method):
    assert method in found()
    assert method not in beyond_chance(found(), lambda one: one.ends(MEAN))


def test_what_is_worse_is_listed_whole():
    listed = text_of(PAGE).partition("- Worse by more than that:")[2].partition("- It shows directions")[0]
    assert {name for words, names in WORSE.items() if words in listed for name in names} == worse()
    assert all(words in listed for words in WORSE)
    assert len(worse()) == int(numbers()["WORSE"])


def test_every_method_has_three_seeds():
    assert {name: len(one.runs) for name, one in found().items() if len(one.runs) != 3} == {}
    assert found().keys() == METHODS.keys()


CHOSEN = {
    "timesteps.sampling": SAMPLINGS, "loss.kind": LOSSES, "loss.weighting": WEIGHTINGS, "optimizer.name": OPTIMIZERS,
    "schedule.kind": SCHEDULES, "adapter.kind": ADAPTER_KINDS,
}  # fmt: skip


def test_what_is_not_compared_is_said():
    of_a_stage = [method.settings(stage) for method in METHODS.values() for stage in ("high", "low")]
    said = text_of(README).partition("these are not compared either:")[2].partition("which save memory.")[0]
    left_out = set[str]()
    for place, methods in CHOSEN.items():
        group, name = place.split(".")
        left_out |= set(methods.names) - {getattr(getattr(settings, group), name) for settings in of_a_stage}
    assert left_out == set(re.findall(r"`(\w+)`", said)) - {"cosine"}


def test_both_rows_of_ema_are_the_same_training():
    steps = METHODS[BASELINE].settings("high").loop.steps
    most = steps / (steps + 9)
    assert f"{most:.3f}" == "0.947"
    assert "no more than 0.947 in 160 steps" in text_of(README)
    decays = [METHODS[name].settings("high").ema.decay for name in ("EMA .98", "EMA .995")]
    assert all(most < decay and EmaOptions().warm_up for decay in decays)
    one, other = (found()[name] for name in ("EMA .98", "EMA .995"))
    assert all(one.ends(column) == other.ends(column) for column in ("look", "move", "kept", "moves"))


@pytest.mark.parametrize("name", ["methods", "grid"])
def test_the_drawing_is_the_files(name):
    drawn = (CURVES / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn == draw(read_rows(CURVES / f"{name}.csv"))
