# ruff: noqa
# pyright: basic, reportArgumentType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false, reportMissingImports=false
"""Other trainers' own sampling and bucketing on drawn clips and sizes, run from their source, as JSON: made peers.json.

Arguments: checkouts of musubi-tuner, AI-Toolkit and SimpleTuner. Needs av, opencv-python-headless, numpy, torch, pillow and tqdm.
musubi-tuner's classes are used as they are; of the others the functions alone, with stand-ins for what they do not use.
"""

import ast, importlib.abc, importlib.machinery, importlib.util, json, logging, math, os, random, sys, tempfile, types
from pathlib import Path
import av, numpy as np

MUSUBI, TOOLKIT, TUNER = map(Path, sys.argv[1:4])
from unittest.mock import MagicMock


class Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, only):
        self.only = only

    def find_spec(self, name, path=None, target=None):
        if name.startswith(self.only):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        m = MagicMock()
        m.__path__ = []
        m.__spec__ = spec
        m.__name__ = spec.name
        return m

    def exec_module(self, m):
        pass


SIZES = [(1920, 1080), (1080, 1920), (800, 600), (512, 512), (640, 360), (400, 300), (1000, 300)]
CLIPS = {"long": 50, "middle": 33, "short": 20}
FAST = {"fast": 60}  # at 30 fps, the others at 16
root = Path(tempfile.mkdtemp())
fast_root = Path(tempfile.mkdtemp())
for name, count in {**CLIPS, **FAST}.items():
    folder, rate = (fast_root, 30) if name in FAST else (root, 16)
    with av.open(str(folder / f"{name}.mp4"), "w") as c:
        s = c.add_stream("libx264", rate=rate)
        s.width, s.height, s.pix_fmt = 128, 128, "yuv420p"
        s.options = {"crf": "1"}
        for i in range(count):
            f = av.VideoFrame.from_ndarray(np.full((128, 128, 3), 4 * i + 8, np.uint8), format="rgb24")
            for p in s.encode(f):
                c.mux(p)
        for p in s.encode():
            c.mux(p)
    (folder / f"{name}.txt").write_text(name)
level = lambda a: int(round((float(np.asarray(a, float).mean()) - 8) / 4))
out = {}
# --- musubi-tuner: its VideoDataset and BucketSelector themselves
sys.path.insert(0, str(MUSUBI / "src"))
logging.disable(logging.CRITICAL)
from musubi_tuner.dataset.image_video_dataset import VideoDataset
from musubi_tuner.dataset.bucket import BucketSelector


def musubi(root=root, **o):
    d = VideoDataset(
        resolution=(128, 128),
        caption_extension=".txt",
        batch_size=1,
        num_repeats=1,
        enable_bucket=True,
        bucket_no_upscale=False,
        video_directory=str(root),
        cache_directory=str(root / "c"),
        architecture="wan",
        **o,
    )
    found = {}
    for key, batch in d.retrieve_latent_cache_batches(1):
        for item in batch:
            name = Path(item.item_key).name.split("_")[0]
            found.setdefault(name, []).append([level(f) for f in item.content])
    return {k: sorted(v) for k, v in sorted(found.items())}


out["musubi"] = {
    "frames": {
        "head 17": musubi(frame_extraction="head", target_frames=[17]),
        "head 25": musubi(frame_extraction="head", target_frames=[25]),
        "chunk 17": musubi(frame_extraction="chunk", target_frames=[17]),
        "slide 17 by 8": musubi(frame_extraction="slide", target_frames=[17], frame_stride=8),
        "uniform 17 x 3": musubi(frame_extraction="uniform", target_frames=[17], frame_sample=3),
        "full": musubi(frame_extraction="full", target_frames=[17], max_frames=129),
    },
    "rates": {
        "head 17": musubi(fast_root, frame_extraction="head", target_frames=[17]),
        "head 17 source_fps 30": musubi(fast_root, frame_extraction="head", target_frames=[17], source_fps=30.0),
    },
    "sizes": {
        f"512 upscale {up}": [
            [list(s), [int(v) for v in BucketSelector((512, 512), True, not up, "wan").get_bucket_resolution(s)]]
            for s in SIZES
        ]
        for up in (True, False)
    },
}
# --- AI-Toolkit: load_and_process_video and setup_buckets, with stand-ins for what they do not use
sys.path.insert(0, str(TOOLKIT))
buckets = importlib.util.spec_from_file_location("tk_buckets", TOOLKIT / "toolkit/buckets.py")
B = importlib.util.module_from_spec(buckets)
buckets.loader.exec_module(B)
src = ast.parse((TOOLKIT / "toolkit/dataloader_mixins.py").read_text())


def pick(tree, cls, name):
    c = next(
        n
        for n in tree.body
        if isinstance(n, ast.ClassDef)
        and (cls is None or n.name == cls)
        and any(isinstance(f, ast.FunctionDef) and f.name == name for f in n.body)
    )
    f = next(n for n in c.body if isinstance(n, ast.FunctionDef) and n.name == name)
    f.decorator_list = []
    f.returns = None
    for a in f.args.args:
        a.annotation = None
    return f


import cv2, torch, traceback
from PIL import Image

ns = dict(
    cv2=cv2,
    random=random,
    Image=Image,
    torch=torch,
    math=math,
    os=os,
    np=np,
    print_acc=lambda *a: print(*a, file=sys.stderr),
    traceback=traceback,
    get_bucket_for_image_size=B.get_bucket_for_image_size,
    Bucket=lambda w, h: types.SimpleNamespace(width=w, height=h, file_list_idx=[]),
    copy=__import__("copy"),
)
for name in ("load_and_process_video", "setup_buckets"):
    exec(compile(ast.Module([pick(src, None, name)], []), name, "exec"), ns)


def toolkit(count, shrink, root=root, clips=CLIPS):
    found = {}
    for name in clips:
        random.seed(0)
        cfg = types.SimpleNamespace(
            buckets=True,
            do_audio=False,
            debug=False,
            auto_frame_count=False,
            trim_auto_frame_count_tail=False,
            shrink_video_to_frames=shrink,
            fps=16,
            num_frames=count,
        )
        it = MagicMock()
        it.augments = []
        it.has_augmentations = False
        it.dataset_config = cfg
        it.path = str(root / f"{name}.mp4")
        it.num_frames = count
        it.flip_x = it.flip_y = False
        it.scale_to_width = it.scale_to_height = it.crop_width = it.crop_height = 128
        it.crop_x = it.crop_y = 0
        ns["load_and_process_video"](it, lambda im: torch.tensor(np.asarray(im, float)))
        found[name] = [[level(f) for f in it.tensor]]
    return dict(sorted(found.items()))


def tk_sizes(div=16):
    rows = []
    for w, h in SIZES:
        it = types.SimpleNamespace(
            width=w, height=h, is_video=False, has_point=False, num_frames=1, has_point_of_interest=False, path="x"
        )
        ds = MagicMock()
        ds.file_list = [it]
        ds.epoch_num = 0
        ds.is_video = False
        ds.is_audio_model = False
        it.dataset_config = types.SimpleNamespace(scale=1.0)
        ds.dataset_config = types.SimpleNamespace(
            resolution=512,
            bucket_tolerance=div,
            random_crop=False,
            poi=None,
            scale=1.0,
            square_crop=False,
            num_frames=1,
            shrink_video_to_frames=True,
        )
        ns["setup_buckets"](ds, quiet=True)
        rows.append([[w, h], [it.crop_width, it.crop_height]])
    return rows


out["aitoolkit"] = {
    "frames": {"even 17": toolkit(17, True), "even 25": toolkit(25, True), "random 17": toolkit(17, False)},
    "rates": {
        "even 17": toolkit(17, True, fast_root, FAST),
        "random 17 at 16 fps": toolkit(17, False, fast_root, FAST),
    },
    "sizes": {"512": tk_sizes()},
}
# --- SimpleTuner: adjust_video_frames, load_video (cut to that number as helpers/caching/vae.py does), the size by pixel_area
from math import sqrt

w = ast.parse((TUNER / "simpletuner/helpers/models/wan/model.py").read_text())
adj = {}
exec(compile(ast.Module([pick(w, None, "adjust_video_frames")], []), "adj", "exec"), adj)
sys.path.insert(0, str(TUNER))
sys.meta_path.insert(
    0, Stub(("simpletuner.helpers.training", "simpletuner.helpers.webhooks", "simpletuner.helpers.image_manipulation"))
)
spec = importlib.util.spec_from_file_location("st_image", TUNER / "simpletuner/helpers/multiaspect/image.py")
M = importlib.util.module_from_spec(spec)
spec.loader.exec_module(M)
M.StateTracker.get_resolution_by_aspect.return_value = None
M.StateTracker.get_args.return_value = types.SimpleNamespace(aspect_bucket_alignment=16, aspect_bucket_rounding=2)
rows = []
for s in SIZES:
    got = M.MultiaspectImage.calculate_new_size_by_pixel_area(
        float(M.MultiaspectImage.calculate_image_aspect_ratio(s)), 512 * 512 / 1e6, s
    )
    rows.append([list(s), [int(v) for v in got[0]]])
loads = next(
    n
    for n in ast.parse((TUNER / "simpletuner/helpers/image_manipulation/load.py").read_text()).body
    if isinstance(n, ast.FunctionDef) and n.name == "load_video"
)
loads.args.args[0].annotation = loads.returns = None


class Capture:
    def __init__(self, path):
        self.capture = cv2.VideoCapture(path)
        self.is_opened, self.read, self.release = self.capture.isOpened, self.capture.read, self.capture.release


reads = dict(
    np=np,
    os=os,
    tempfile=tempfile,
    tsr=types.SimpleNamespace(PyVideoCapture=Capture, cvt_color_py=lambda f, _: cv2.cvtColor(f, cv2.COLOR_BGR2RGB)),
)
exec(compile(ast.Module([loads], []), "load_video", "exec"), reads)
taken = int(adj["adjust_video_frames"](None, 17))
out["simpletuner"] = {
    "rates": {"17": {"fast": [[level(f) for f in reads["load_video"](str(fast_root / "fast.mp4"))][:taken]]}},
    "frames": {str(n): int(adj["adjust_video_frames"](None, n)) for n in (1, 17, 49, 75, 81, 125)},
    "sizes": {"512": rows},
}
print(json.dumps(out))
