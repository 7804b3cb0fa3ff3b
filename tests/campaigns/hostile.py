"""What an enemy puts into prompts and requests: values, graphs, and the bytes of HTTP."""

import copy
import random
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

KINDS: list[Any] = [
    {},
    {"a": 1},
    {"__value__": [1, 2]},
    {"__value__": {"a": 1}},
    [],
    [1, 2, 3],
    [[]],
    None,
    True,
    False,
    {"__type__": "x"},
]
# In range of no input: a value that is would be honest, and some honest ones take hours or all memory.
NUMBERS: list[Any] = [
    -1,
    -(10**9),
    10**9,
    2**63,
    2**64,
    10**30,
    10**400,
    -(10**400),
    float("nan"),
    float("inf"),
    float("-inf"),
    1e308,
    -1e308,
    "7px",
    "-1",
    "1e999",
    "nan",
    "9" * 400,
    "0x10",
    "১২",
    1.5,
    "",
]
NAMES = [
    "../../outside/x",
    "..\\..\\outside\\x",
    "/etc/passwd",
    "C:\\Windows\\x",
    "\\\\server\\share\\x",
    "input/../../outside",
    "~/x",
    "input/shapes/../../../outside",
    "a\0b",
    "\0",
    "CON",
    "nul.safetensors",
    "COM1.x",
    "LPT¹",
    "aux ",
    "name.",
    "name ",
    ".",
    "..",
    "...",
    "x" * 300,
    "x" * 5000,
    "猫" * 90,
    "a/b",
    "a\nb",
    "\x1b[2J",
    "\u202egpj.exe",
    "\ud800",
    "💩" * 64,
    "%2e%2e/x",
    "a:stream",
    "-rf",
    "*",
    "{prompt}",
    "%s%n",
    "${HOME}",
    "<script>alert(1)</script>",
    "input/",
    "/",
    "",
    " ",
    "datasets/x",
    "nano/../x",
    "input//shapes/./.",
]
NODE_IDS = ["../../x", "", "__proto__", "x" * 3000, "a\0b", "\ud800", "1:2:3", " ", "'; DROP TABLE runs; --"]


def hostile_value(rng: random.Random, prompt: Json) -> Any:
    """A wrong kind, an absurd number, a name that escapes, or a link to anywhere."""
    kind = rng.randrange(5)
    if kind == 0:
        return copy.deepcopy(rng.choice(KINDS))
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind in (2, 3):
        return rng.choice(NAMES)
    slots: list[Any] = [0, 0, 0, 1, 3, 99, -1, "0", None, 0.5, {}]
    return [rng.choice([*prompt, *prompt, "absent", 5, None]), rng.choice(slots)]


def mutate(prompt: Json, known: dict[str, list[str]], own: Sequence[str], rng: random.Random) -> tuple[Json, list[str]]:
    """A copy with one to three faults, and what they are. `known`: the inputs of each class; `own`: our classes."""
    prompt = copy.deepcopy(prompt)
    told = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        ours = [name for name, item in prompt.items() if _class_of(item) in own]
        name = rng.choice(ours if ours and rng.random() < 0.9 else list(prompt))
        if rng.random() < 0.8 and isinstance(prompt[name], dict) and isinstance(prompt[name].get("inputs"), dict):
            field = rng.choice(known.get(_class_of(prompt[name]), []) or ["absent"])
            value = hostile_value(rng, prompt)
            prompt[name]["inputs"][field] = value
            told.append(f"{name}.{field} = {ascii(value)[:60]}")
        else:
            told.append(_break_structure(prompt, name, rng))
    return prompt, told


def _class_of(item: Any) -> str:
    found = item.get("class_type") if isinstance(item, dict) else None
    return found if isinstance(found, str) else ""


def _break_structure(prompt: Json, name: str, rng: random.Random) -> str:
    item = prompt[name]
    kind = rng.randrange(7)
    if (kind == 0 and len(prompt) > 1) or not isinstance(item, dict):
        del prompt[name]
        return f"{name} is gone"
    inputs: Any = item.get("inputs")
    if kind == 1 and isinstance(inputs, dict) and inputs:
        field = rng.choice(list(inputs))
        del inputs[field]
        return f"{name}.{field} is gone"
    if kind == 2:
        links = (
            [field for field, value in inputs.items() if isinstance(value, list)] if isinstance(inputs, dict) else []
        )
        for field in links:
            inputs[field] = [name, 0]
        return f"{name} is linked to itself"
    if kind == 3:
        item["class_type"] = rng.choice([None, {}, [], 5, "NoSuchNode", "", "__class__", "TrainLoRAStage", "CacheT5"])
        return f"{name} is a {item['class_type']}"
    if kind == 4:
        new = rng.choice(NODE_IDS)
        prompt[new] = prompt.pop(name)
        return f"{name} is called {ascii(new)[:40]}"
    if kind == 5:
        item["inputs"] = rng.choice([None, [], "x", {}, 5, {"a\0b": 1}, {"x" * 3000: {}}])
        return f"{name} has the inputs {ascii(item['inputs'])[:40]}"
    item["_meta"] = rng.choice([None, [], {"title": {}}, {"title": "x" * 100_000}])
    return f"{name} has an odd title"


PATHS = [
    "{}",
    "..",
    "%2e%2e",
    "%2e%2e%2f%2e%2e%2fmodels",
    "..%5c..%5cmodels",
    "%00",
    "a%00b",
    "{}%00",
    "{}%2f..%2f{}",
    "%ff",
    "%ED%A0%80",
    "%",
    "%zz",
    "%252e%252e",
    "x" * 300,
    "x" * 5000,
    "%E7%8C%AB" * 90,
    "%F0%9F%92%A9",
    "%0d%0aX-Evil:1",
    "CON",
    "nul",
    "{}.",
    "{} ",
    "%20{}",
    "{}%3a%3a$DATA",
    "~",
    "*",
    "%2f",
    "%2fetc%2fpasswd",
    "C:",
    "file:%2f%2f",
    ";id",
    "{}?v=%00",
    "{}#x",
    "__proto__",
    "%E2%80%AE",
]
FILES = [
    "step-00000001.webp",
    "step-99999999.webp",
    "..%2fjob.json",
    "job.json",
    "%2e%2e%2fevents.jsonl",
    "step-00000001.webp%00.png",
    "step-%D9%A0%D9%A0%D9%A0%D9%A0%D9%A0%D9%A0%D9%A0%D9%A1.webp",
    ".decoder.lock",
    "step-00000001.safetensors",
    "x" * 5000,
]
HEADERS: list[tuple[str, str]] = [
    ("Host", "evil.example"),
    ("Host", "evil.example:8188"),
    ("Host", ""),
    ("Host", "localhost\t.evil.example"),
    ("Host", "x" * 4000),
    ("Host", "127.0.0.1.evil.example"),
    ("Origin", "http://evil.example"),
    ("Origin", "null"),
    ("Sec-Fetch-Site", "cross-site"),
    ("Range", "bytes=0-18446744073709551616"),
    ("Range", "bytes=-1"),
    ("Range", "bytes=9-1,5-,x"),
    ("If-None-Match", '"' + "x" * 4000),
    ("If-Modified-Since", "yesterday"),
    ("Accept-Encoding", "gzip;q=nan, br"),
    ("Content-Length", "99999999999999999999"),
    ("Content-Length", "-1"),
    ("Transfer-Encoding", "chunked"),
    ("Cookie", "a=" + "b" * 4000),
    ("X-Forwarded-Host", "evil.example"),
    ("Upgrade", "websocket"),
    ("Expect", "100-continue"),
    ("Content-Type", "\x01"),
    ("X" * 4000, "y"),
    ("Accept", "\x80\xff"),
]
METHODS = ["GET"] * 6 + ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", "X" * 300]


def hostile_request(run: str, rng: random.Random) -> bytes:
    """An HTTP request for one of our routes; `run` is a run that there is."""
    path = rng.choice(
        [
            *(
                "/wan_train/runs/{run}",
                "/wan_train/runs/{run}/previews/{file}",
                "/wan_train/presets",
                "/wan_train/{run}",
            ),
            *(f"/wan_train/runs/{{run}}/{what}" for what in ("about", "workflow", "picture", "delete", "ask/{file}")),
            *("/wan_train/runs", "/wan_train/compare?one={run}&other={file}", "/wan_train/watch"),
        ]
    )
    name = rng.choice(PATHS).replace("{}", run) if rng.random() < 0.7 else run
    path = path.replace("{run}", name).replace("{file}", rng.choice(FILES))
    headers = {"Host": "127.0.0.1"}
    for _ in range(rng.randrange(3)):
        header, value = rng.choice(HEADERS)
        headers[header] = value
    lines = [f"{rng.choice(METHODS)} {path} HTTP/{rng.choice(['1.1'] * 8 + ['1.0', '9.9'])}"]
    lines += [f"{header}: {value}" for header, value in headers.items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin1", "replace")
