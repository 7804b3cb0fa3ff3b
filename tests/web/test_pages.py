"""What the page is made of: help pages, scripts, and example workflows with their thumbnails."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from wan_train.core.recipe.presets import PRESETS

PACK = Path(__file__).resolve().parents[2]
WEB = PACK / "web"
WORKFLOWS = sorted((PACK / "example_workflows").glob("*.json"))
NODE_IDS = sorted(
    node_id
    for path in (PACK / "nodes").glob("*.py")
    for node_id in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
)
LOADERS = {"UNETLoader": "diffusion_models", "CLIPLoader": "text_encoders", "VAELoader": "vae"}
TITLE = 30  # height of a title bar, which lies above a node's position
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
each_script = pytest.mark.parametrize("path", sorted(WEB.glob("*.js")), ids=lambda path: path.name)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_nodes_are_found():
    assert {"DatasetFromFolder", "TrainLoRAStage", "WanLoRAFromFile"} <= set(NODE_IDS)
    assert len(NODE_IDS) == len(set(NODE_IDS))


@pytest.mark.parametrize("node_id", NODE_IDS)
def test_every_node_has_a_help_page(node_id: str):
    text = (WEB / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "## Input" in text
    assert "## Output" in text


def test_every_help_page_has_a_node():
    assert sorted(path.stem for path in (WEB / "docs").glob("*.md")) == NODE_IDS


INPUTS = re.compile(r'\bio\.\w+\.Input\(\s*"(\w+)"|\b(?:Wan|Lora|Loss)\w*\.Input\(\s*"(\w+)"')


@pytest.mark.parametrize("file", sorted((PACK / "nodes").glob("*_nodes.py")), ids=lambda path: path.stem)
def test_help_pages_name_every_input(file: Path):
    source = file.read_text(encoding="utf-8")
    pages = [WEB / "docs" / f"{node_id}.md" for node_id in re.findall(r'node_id="(\w+)"', source)]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    names = {one or other for one, other in INPUTS.findall(source)}
    assert names or "inputs=[]," in source
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", text)) == []


@each_script
def test_script_imports_only_what_the_host_offers(path: Path):
    imports = set(re.findall(r'(?:from|import) "([^"]+)"', path.read_text(encoding="utf-8")))
    own = {f"./{script.name}" for script in WEB.glob("*.js")}
    assert imports <= {"../../scripts/app.js", "../../scripts/api.js", *own}


@each_script
def test_script_patches_no_prototype(path: Path):
    assert ".prototype" not in path.read_text(encoding="utf-8")


def test_templates_are_there():
    names = {path.stem for path in WORKFLOWS}
    models = ("wan2.1_t2v_1.3b", "wan2.2_t2v_a14b", "wan2.2_i2v_a14b", "wan2.2_ti2v_5b")
    kinds = {
        "images": "wan2.2_t2v_a14b_images",
        "character": "wan2.2_t2v_a14b_character",
        "style": "wan2.2_t2v_a14b_style",
        "motion": "wan2.2_t2v_a14b_motion",
        "effect": "wan2.2_i2v_a14b_effect",
        "quickstart": "wan2.1_t2v_1.3b_quickstart",
    }
    assert kinds.keys() == {preset.kind for preset in PRESETS.values()}, "each kind of recipe is a template"
    assert names == {"demo", *(f"{model}_lora" for model in models), *kinds.values()}


@each_workflow
def test_templates_make_previews_and_hold_a_sample_out(path: Path):
    seen = []
    for node in read(path)["nodes"]:
        names = [item["widget"]["name"] for item in node.get("inputs", []) if "widget" in item]
        values = dict(zip(names, node.get("widgets_values", ()), strict=False))
        if node["type"] == "TrainLoRAStage":
            wires = {item["name"]: item.get("link") for item in node["inputs"]}
            seen.append((values["preview_every"] > 0, wires["vae"] is not None, values["validate_every"] > 0))
        elif node["type"] == "DatasetFromFolder":
            assert values["held_out"] > 0
    assert set(seen) == {(True, True, True)}


@each_workflow
def test_a_training_of_one_expert_has_the_other_for_its_previews(path: Path):
    ui = read(path)
    source = {link: (node, slot) for link, node, slot, *_ in ui["links"]}
    wires = {
        node["id"]: {item["name"]: source.get(item.get("link")) for item in node["inputs"]}
        for node in ui["nodes"]
        if node["type"] == "TrainLoRAStage"
    }
    models = {own["dit"] for own in wires.values()}
    assert len(models) == len(wires) == (2 if "a14b" in path.stem or path.stem == "demo" else 1)
    for own in wires.values():
        assert {own["dit"], own["other_dit"] or own["dit"]} == models


@each_workflow
def test_thumbnail_is_a_small_jpeg(path: Path):
    picture = path.with_suffix(".jpg").read_bytes()
    assert picture.startswith(b"\xff\xd8\xff")
    assert len(picture) <= 60_000


def test_each_template_has_a_thumbnail_of_its_own():
    pictures = [path.with_suffix(".jpg").read_bytes() for path in WORKFLOWS]
    assert len(set(pictures)) == len(pictures)


@each_workflow
def test_workflow_is_version_04(path: Path):
    ui = read(path)
    ids = [node["id"] for node in ui["nodes"]]
    assert ui["version"] == 0.4
    assert len(ids) == len(set(ids))
    assert ui["last_node_id"] >= max(ids)
    assert ui["last_link_id"] >= max(link[0] for link in ui["links"])
    for node in ui["nodes"]:
        assert {"id", "type", "pos", "size", "flags", "order", "mode", "properties"} <= set(node)


@each_workflow
def test_links_agree_at_both_ends(path: Path):
    ui = read(path)
    nodes = {node["id"]: node for node in ui["nodes"]}
    from_links, from_inputs, from_outputs = set(), set(), set()
    for link, source, slot, target, entry, kind in ui["links"]:
        from_links.add((link, source, slot, target, entry))
        assert nodes[source]["outputs"][slot]["type"] == nodes[target]["inputs"][entry]["type"] == kind
    by_id = {link[0]: link for link in ui["links"]}
    for node in ui["nodes"]:
        for entry, item in enumerate(node.get("inputs", [])):
            if item.get("link") is not None:
                from_inputs.add((*by_id[item["link"]][:3], node["id"], entry))
        for slot, item in enumerate(node.get("outputs", [])):
            for link in item.get("links") or []:
                from_outputs.add((link, node["id"], slot, *by_id[link][3:5]))
    assert from_links == from_inputs == from_outputs


@each_workflow
def test_nodes_do_not_overlap(path: Path):
    for one, two in itertools.combinations(read(path)["nodes"], 2):
        apart_x = one["pos"][0] + one["size"][0] <= two["pos"][0] or two["pos"][0] + two["size"][0] <= one["pos"][0]
        upper, lower = sorted((one, two), key=lambda node: node["pos"][1])
        apart_y = upper["pos"][1] + upper["size"][1] <= lower["pos"][1] - TITLE
        assert apart_x or apart_y, f"{one['type']} {one['id']} and {two['type']} {two['id']}"


@each_workflow
def test_own_nodes_say_where_they_come_from(path: Path):
    own = [node for node in read(path)["nodes"] if node["type"] in NODE_IDS]
    assert {"DatasetFromFolder", "TrainLoRAStage", "MergeStages", "PreviewLoRA"} <= {node["type"] for node in own}
    for node in own:
        assert node["properties"]["cnr_id"] == "wan-train"
        assert node["properties"]["ver"] == "0.1.0"


@pytest.mark.parametrize("path", [path for path in WORKFLOWS if path.stem != "demo"], ids=lambda path: path.stem)
def test_loaders_know_where_to_download(path: Path):
    loaders = [node for node in read(path)["nodes"] if node["type"] in {*LOADERS, "LoadWanDiT"}]
    assert len(loaders) >= 4
    for node in loaders:
        (model,) = node["properties"]["models"]
        assert model["name"] == node["widgets_values"][0]
        assert model["directory"] == LOADERS.get(node["type"], "diffusion_models")
        assert model["url"].startswith("https://huggingface.co/Comfy-Org/Wan_2.")
        assert model["url"].endswith(f"/{model['directory']}/{model['name']}")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings: lower case, words joined by hyphens, other signs left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


PAGES = [
    PACK / "README.md",
    *(page for name in ("docs", "nano", "benchmarks", "tests") for page in (PACK / name).rglob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PACK)))
def test_pages_name_only_files_and_headings_that_exist(page: Path):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_has_links():
    assert "](docs/" in (PACK / "README.md").read_text(encoding="utf-8")


def notes(path: Path) -> list[str]:
    """The Markdown of a template's notes."""
    return [node["widgets_values"][0] for node in read(path)["nodes"] if node["type"] == "MarkdownNote"]


@each_workflow
def test_all_of_a_note_is_heading(path: Path):
    """Plain text has 8 pixels at the zoom that a template opens with. A line of hyphens makes a heading of those above it."""
    parts = [part for text in notes(path) for part in text.split("\n\n")]
    assert [part for part in parts if not re.fullmatch(r"##? .+|(.+\\\n)*.+\n---", part)] == []


@each_workflow
def test_a_note_says_which_template_comes_first(path: Path):
    begins = notes(path)[0].startswith("## New here? Begin with the template *demo*")
    assert begins == (path.stem != "demo")


def test_the_demo_is_the_first_from_a_to_z():
    """As ComfyUI's window of templates can sort them: letters first, whatever their case."""
    assert min((path.stem for path in WORKFLOWS), key=lambda name: (name[0].isdigit(), name.lower())) == "demo"


@each_workflow
def test_where_pictures_are_left_out_a_note_asks_for_none(path: Path):
    (given,) = {node["widgets_values"][0] for node in read(path)["nodes"] if node["type"] == "CacheLatents"}
    first = next(line for line in notes(path)[0].splitlines() if line.startswith("**1.** "))
    assert path.stem == "demo" or re.search("clips" if given == "first frame" else "clips|pictures", first)
    assert given != "first frame" or "picture" not in first


def test_the_readme_keeps_one_table_of_measurements_and_the_page_has_its_numbers():
    readme, page = ((PACK / name).read_text(encoding="utf-8") for name in ("README.md", "docs/measurements.md"))
    rows = re.findall(r"^\| .+ \| (\d+ s) \| (\d+ s) \|$", readme, re.MULTILINE)
    assert len(rows) == 2
    for lora, first in rows:
        assert re.search(rf"\| {lora}\b.* \| {first} \|", page)
    assert readme.index(rows[0][0]) < readme.index("## Install")
    assert len(re.findall(r"\d(?: s|\.\d seconds)\b", readme)) == 4, "more was measured: docs/measurements.md"
