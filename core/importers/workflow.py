"""From an import to a workflow of ComfyUI: the pack's example for the model, with the setup's values in its nodes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..recipe.recipe import Recipe, widgets_of
from ..settings.files import DatasetSource
from ..settings.option import DATASET, MODEL, TEXT, TRAIN, Option, Options, Widget, all_options, groups_of, options_of
from ..settings.stage import Stage, StageSettings
from .answers import FURTHER, PREVIEW
from .families import CLIP_VISION
from .graph import MUTED, DrawnWorkflow, Json, add_widgets, below, set_widget, widget_names
from .setup import Imported

EXAMPLES = Path(__file__).resolve().parents[2] / "example_workflows"
_STAGES: dict[str, Stage] = {"high noise": "high", "low noise": "low", "single model": "single"}
_FURTHER = FURTHER.removeprefix(PREVIEW)
_LOADERS = {"VAELoader": ("vae_name", "vae", "vae"), "CLIPLoader": ("clip_name", "text_encoders", "text_encoder")}


def workflow(imported: Imported, names: Mapping[str, Sequence[str]] | None = None) -> tuple[Json, list[str]]:
    """(the workflow, what it can't hold or what has to be done in it).

    `names`: files that ComfyUI has, by kind (diffusion_models, vae, text_encoders, clip_vision, datasets); a file of the
    setup is chosen where it is there. Without them every file is named as the setup names it.
    """
    maker = _Maker(imported, names or {})
    maker.make()
    return maker.graph.ui, list(dict.fromkeys(maker.notes))


class _Maker:
    """One workflow in the making."""

    def __init__(self, imported: Imported, names: Mapping[str, Sequence[str]]) -> None:
        self.imported, self.recipe, self.family = imported, imported.recipe, imported.family
        self.names = names
        self.graph = DrawnWorkflow(_example(self.family.workflow))
        self.notes: list[str] = []

    def make(self) -> None:
        """All of it."""
        self._datasets()
        self._models()
        self._stages()
        self._prompts()
        self._conditioning()
        self._results()
        self._without_widget()
        self._note()

    def _datasets(self) -> None:
        (first,) = self.graph.of_type("DatasetFromFolder")
        targets = list(self.graph.targets(first))
        nodes = [first]
        for _ in self.recipe.datasets[1:]:
            x, y = below(nodes[-1])
            nodes.append(self.graph.add(first, x=x, y=y))
        for node, source in zip(nodes, self.recipe.datasets, strict=True):
            add_widgets(node, widgets_of(DATASET))
            set_widget(node, "folder", self._folder(source))
            self._fill(node, DATASET, {"dataset": source})
        if len(nodes) > 1:
            x, y = below(nodes[-1])
            join = self.graph.add(_join_node(first, len(nodes)), x=x, y=y)
            for index, node in enumerate(nodes):
                self.graph.link(node, 0, join, f"datasets.dataset_{index}")
            for target, socket in targets:
                self.graph.link(join, 0, target, socket)
            self.graph.make_room([*nodes, join])

    def _folder(self, source: DatasetSource) -> str:
        """A folder of ComfyUI with the name that the setup's has; one below `input` where there is none yet."""
        name = PurePosixPath(source.folder.replace("\\", "/")).name or "dataset"
        found = [known for known in self.names.get("datasets", ()) if PurePosixPath(known).name.lower() == name.lower()]
        if found:
            return found[0]
        self.notes.append(
            f"Put the files of {source.folder} into the folder {name} in ComfyUI's input folder, refresh the page's"
            " lists, and choose it in Dataset from Folder."
        )
        return f"input/{name}"

    def _models(self) -> None:
        files = self.recipe.models
        for loader, (widget, kind, option) in _LOADERS.items():
            for node in self.graph.of_type(loader):
                given = node["widgets_values"][widget_names(node).index(widget)]
                set_widget(node, widget, self._file(kind, getattr(files, option), given))
        for kind, widget in (("LoadWanDiT", "model_name"), ("UNETLoader", "unet_name")):
            for node, stage in zip(self.graph.of_type(kind), self.family.files, strict=True):
                wanted = getattr(files, stage) or self.family.files[stage]
                set_widget(node, widget, self._file("diffusion_models", wanted, self.family.files[stage]))

    def _file(self, kind: str, path: str, otherwise: str) -> str:
        """A file as ComfyUI lists it: that of the setup where it is there, else the usual one."""
        name = PurePosixPath(path.replace("\\", "/")).name
        known = self.names.get(kind)
        if known is None:
            return name if name.endswith((".safetensors", ".gguf")) else otherwise
        by_name = {PurePosixPath(one.replace("\\", "/")).name.lower(): one for one in reversed(known)}
        for wanted in (name, otherwise):
            if wanted.lower() in by_name:
                return by_name[wanted.lower()]
        self.notes.append(f"Put {otherwise} into ComfyUI's models/{kind}, or choose the file that you have.")
        return otherwise

    def _stages(self) -> None:
        loaders, runs = self.graph.of_type("LoadWanDiT"), self.graph.of_type("TrainLoRAStage")
        for loader, run in zip(loaders, runs, strict=True):
            stage = _STAGES[run["widgets_values"][widget_names(run).index("stage")]]
            if stage not in self.recipe.models.stages:
                for node in (loader, run):
                    node["mode"] = MUTED
                self.notes.append(f"Your setup does not train the {stage} noise expert: its nodes are muted.")
                continue
            settings = self.recipe.settings(stage)
            groups = {name: getattr(settings, name) for name in groups_of(StageSettings)} | {"": settings}
            for node, kind in ((loader, MODEL), (run, TRAIN)):
                add_widgets(node, widgets_of(kind))
                self._fill(node, kind, groups)
            set_widget(run, "lora_name", self.recipe.name)
            if settings.previews.every:
                self.graph.link(self.graph.of_type("VAELoader")[0], 0, run, "vae")
                others = [other for other in loaders if other is not loader]
                if others and {"high", "low"} <= self.recipe.models.stages.keys():
                    self._link_other(others[0], run)
            if settings.precision == "ara":
                self.notes.append("Choose the accuracy recovery adapter (recovery_adapter) for each model.")

    def _link_other(self, loader: Json, run: Json) -> None:
        """Previews go through both experts."""
        if not any(item["name"] == "other_dit" for item in run["inputs"]):  # an example from before there was one
            run["inputs"].append({"name": "other_dit", "type": "WAN_DIT", "link": None, "shape": 7})
        self.graph.link(loader, 0, run, "other_dit")

    def _prompts(self) -> None:
        """Those of previews, which are encoded with the captions."""
        if self.recipe.samples.prompts:
            (node,) = self.graph.of_type("CacheT5")
            add_widgets(node, widgets_of(TEXT))
            self._fill(node, TEXT, {"samples": self.recipe.samples})

    def _fill(self, node: Json, kind: str, groups: Mapping[str, Options]) -> None:
        """The values of options in the widgets of a node."""
        for item, widget in widgets_of(kind):
            if item.group in groups:
                shown = self._shown(item, widget, getattr(groups[item.group], item.name))
                if shown is not None:
                    set_widget(node, widget.name, shown)

    def _shown(self, item: Option, widget: Widget, value: Any) -> Any:
        """What the widget shows for a value; None where it has nothing for it."""
        shown = widget.shows(tuple(value) if item.is_list else value)
        if isinstance(shown, tuple):
            self.notes.append(f"{widget.name} has no choice for {', '.join(shown)}: use the recipe for that.")
            return None
        if item.is_number and isinstance(shown, (int, float)):
            low = item.range[0] if widget.least is None else widget.least
            high = item.range[1] if widget.most is None else widget.most
            if not low <= shown <= high:
                kept = item.kinds[0](min(max(shown, low), high))
                self.notes.append(f"{widget.name} is {kept:g} in the workflow, since its field has no {shown:g}.")
                return kept
        return shown

    def _conditioning(self) -> None:
        (cache,) = self.graph.of_type("CacheLatents")
        set_widget(cache, "condition_on", self.recipe.conditioning)
        if not self.family.clip_vision:
            return
        (preview,) = self.graph.of_type("PreviewLoRA")
        x, y = below(cache)
        vision = self.graph.add(_vision_node(cache), x=x, y=y)
        set_widget(vision, "clip_name", self._file("clip_vision", self.recipe.models.clip_vision, CLIP_VISION))
        self.graph.link(vision, 0, cache, "clip_vision")
        self.graph.link(vision, 0, preview, "clip_vision")
        picture = next(n for n in _example("wan2.2_i2v_a14b_lora")["nodes"] if n["type"] == "LoadImage")
        x, y = below(preview)
        self.graph.link(self.graph.add(picture, x=x, y=y + 40), 0, preview, "start_image")
        self.graph.make_room([cache, vision])

    def _results(self) -> None:
        recipe = self.recipe
        (merge,) = self.graph.of_type("MergeStages")
        for widget, value in (("name", recipe.name), ("precision", recipe.lora.precision), ("author", recipe.author)):
            set_widget(merge, widget, value)
        for stage in ("high", "low", "single"):
            if own := getattr(recipe.lora, stage):
                ending = "" if stage == "single" else f"_{stage}_noise"
                self.notes.append(f"The file will be {recipe.name}{ending}, where your setup has {own}.")
        (preview,) = self.graph.of_type("PreviewLoRA")
        for name, value in self.imported.preview.items():
            if name in widget_names(preview):
                kind = type(preview["widgets_values"][widget_names(preview).index(name)])
                set_widget(preview, name, kind(value))
        if not self.imported.preview.get("prompt"):
            words = [source.trigger_word for source in recipe.datasets if source.trigger_word]
            told = "what your clips show, in a new place"
            set_widget(preview, "prompt", f"{words[0]}, {told}" if words else told)

    def _without_widget(self) -> None:
        """Settings that no field of a node has."""
        told = [f"{item.place} = {value}" for item, value in _differing(self.recipe) if item.widget is None]
        if told:
            self.notes.append(f"Nodes have no field for {', '.join(dict.fromkeys(told))}: use the recipe for that.")

    def _note(self) -> None:
        (first,) = self.graph.of_type("MarkdownNote")
        lines = [f"## From your {self.imported.trainer} setup", ""]
        todo = [*self.notes, *self.imported.notes]
        lines += [f"- {line}" for line in dict.fromkeys(todo)] or ["All of it is here."]
        prompts = {
            name.removeprefix(_FURTHER): text
            for name, text in self.imported.preview.items()
            if name.startswith(_FURTHER)
        }
        if prompts:
            lines += ["", "### Further prompts, for Preview LoRA", ""]
            lines += [f"- {name}: {text}" for name, text in prompts.items()]
        self.graph.note("\n".join(lines), like=first)


def _differing(recipe: Recipe) -> Iterator[tuple[Option, Any]]:
    """The settings of all stages and datasets that are not their defaults, but for what other nodes take."""
    for source in recipe.datasets:
        for item in options_of(type(source)):
            if item.name not in ("folder", "enabled") and getattr(source, item.name) != item.default:
                yield item, getattr(source, item.name)
    for stage in recipe.models.stages:
        settings = recipe.settings(stage)
        for item in all_options(StageSettings):
            value = getattr(getattr(settings, item.group) if item.group else settings, item.name)
            if value != item.default:
                yield item, value


def _example(name: str) -> Json:
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def _join_node(dataset: Json, count: int) -> Json:
    """Join Datasets, with an input more than there are datasets."""
    sockets = [
        {"name": f"datasets.dataset_{i}", "label": f"dataset_{i}", "type": "WAN_DATASET", "link": None, "shape": 7}
        for i in range(count + 1)
    ]
    return {
        **dataset,
        "type": "JoinDatasets",
        "size": [dataset["size"][0], 60 + 22 * (count + 1)],
        "inputs": sockets,
        "outputs": [{"name": "dataset", "type": "WAN_DATASET", "links": None}],
        "properties": {**dataset["properties"], "Node name for S&R": "JoinDatasets"},
        "widgets_values": [],
    }


def _vision_node(like: Json) -> Json:
    """ComfyUI's loader of CLIP vision."""
    return {
        "type": "CLIPVisionLoader",
        "size": [like["size"][0], 60],
        "flags": {},
        "mode": 0,
        "inputs": [{"name": "clip_name", "type": "COMBO", "widget": {"name": "clip_name"}, "link": None}],
        "outputs": [{"name": "CLIP_VISION", "type": "CLIP_VISION", "links": None}],
        "properties": {"Node name for S&R": "CLIPVisionLoader", "cnr_id": "comfy-core"},
        "widgets_values": [CLIP_VISION],
    }
