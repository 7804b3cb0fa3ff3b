"""The umT5 text encoder by transformers. Shapes: S tokens, D width."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelFileError
from ..facts import TEXT_TOKENS
from ..shortage import free_caches
from ..wan.identify import identify
from ..wan.quantized import SCALE, convert, scale_name
from .batches import encode_in_batches
from .identity import as_stored, text_identity
from .light_import import for_encoders
from .tokenizer import find_tokenizer
from .weights import EncoderWeights, check_weights, headless_packages, open_weights

PAD, END = 0, 1
COMPUTE_DTYPES = (torch.float32, torch.bfloat16)  # umT5 overflows in fp16

_SHARED = "shared.weight"
_FINAL_NORM = "encoder.final_layer_norm.weight"
_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
_QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
_GATE = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"

# official (wan/modules/t5.py) -> transformers
_ENDS = {
    "token_embedding.weight": _SHARED,
    "norm.weight": _FINAL_NORM,
    "encoder.embed_tokens.weight": _SHARED,  # transformers' other name of the same tensor
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.weight")
_PARTS = {
    "norm1": "0.layer_norm",
    "norm2": "1.layer_norm",
    **{f"attn.{letter}": f"0.SelfAttention.{letter}" for letter in "qkvo"},
    "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "1.DenseReluDense.wi_0",
    "ffn.fc1": "1.DenseReluDense.wi_1",
    "ffn.fc2": "1.DenseReluDense.wo",
}


class EncoderLinear(nn.Module):
    """A linear layer that keeps its weight as the file has it and computes in the dtype of its input."""

    weight = None  # transformers would cast activations to the dtype of a weight that it finds
    stored: Tensor  # [out, in]
    scale: Tensor | None  # one number, or [out, 1]

    def __init__(self, stored: Tensor, scale: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, convert(self.stored, self.scale, x.dtype, x.device))


class StoredEmbedding(nn.Module):
    """An embedding that keeps its table as the file has it and gives rows in `dtype`."""

    stored: Tensor  # [vocabulary, D]
    scale: Tensor | None  # one number, or [vocabulary, 1]

    def __init__(self, stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("stored", stored)
        self.register_buffer("scale", scale)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """[...] ids to [..., D]."""
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[self.stored.dtype.itemsize]
        rows = self.stored.view(integers)[ids].view(self.stored.dtype)  # 8-bit floats cannot be gathered everywhere
        scale = self.scale[ids] if self.scale is not None and self.scale.numel() > 1 else self.scale
        return convert(rows, scale, self.dtype, rows.device)


class Umt5TextEncoder:
    """A umT5 encoder as `core.data.types.TextEncoder`."""

    def __init__(self, model: Any, tokenizer: Any, dim: int, identity: str) -> None:
        self.dim = dim
        self.identity = identity
        self._model = model
        self._tokenizer = tokenizer

    def tokenize(self, caption: str) -> tuple[list[int], bool]:
        """Ids with the end token, at most 512, and whether the caption was cut. ComfyUI's rules: no prompt weights."""
        # As in ComfyUI's prompts: a backslash before a bracket is not part of the text, embeddings are not looked up.
        text = caption.replace("embedding:", "embedding :").replace("\\)", ")").replace("\\(", "(")
        ids = [token for token in self._tokenizer.encode(text) if token != PAD]
        was_cut = len(ids) + 1 > TEXT_TOKENS
        return [*ids[: TEXT_TOKENS - 1], END], was_cut

    def encode(self, caption: str) -> tuple[Tensor, bool]:
        """Caption to ([S <= 512, D] float32 on the CPU, was_cut)."""
        return self.encode_batch([caption])[0]

    def encode_batch(self, captions: Sequence[str]) -> list[tuple[Tensor, bool]]:
        """As `encode` for each: several at once, which in float32 changes values by 1e-6 of the largest."""
        rows = [self.tokenize(caption) for caption in captions]
        contexts = encode_in_batches([ids for ids, _ in rows], self._encode, free_caches)
        return [(context, was_cut) for context, (_, was_cut) in zip(contexts, rows, strict=True)]

    @torch.no_grad()
    def _encode(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        longest = max(map(len, rows))
        padded = torch.tensor([[*ids, *[PAD] * (longest - len(ids))] for ids in rows], device=self._model.device)
        # Masked tokens have no part in the others' rows.
        lengths = torch.tensor([[len(ids)] for ids in rows], device=padded.device)
        mask = (torch.arange(longest, device=padded.device) < lengths).long()  # [B, S]
        hidden = self._model(input_ids=padded, attention_mask=mask).last_hidden_state.float().cpu()  # [B, S, D]
        return [states[: len(ids)].clone() for states, ids in zip(hidden, rows, strict=True)]


def load_text_encoder(
    path: Path, device: torch.device | str, dtype: torch.dtype | None = None, tokenizer: Path | None = None
) -> Umt5TextEncoder:
    """The umT5 encoder at `path`: ComfyUI's single file, the official file, or transformers' folder.

    Weights are kept as they are stored, and computed with in `dtype`, by default float32 as in ComfyUI: the peak of
    memory is about one tensor above the size of the file. `tokenizer` is a sentencepiece model or its folder; by default
    `find_tokenizer` looks for it in the file and beside it. Raises ModelFileError if the file is anything but a whole umT5
    encoder or if there is no tokenizer, ConfigError if a package is missing.
    """
    path, device, dtype = Path(path), torch.device(device), dtype or torch.float32
    if dtype not in COMPUTE_DTYPES:
        raise ConfigError(f"The text encoder cannot compute in {dtype}; use float32 or bfloat16.")
    path = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    weights = open_weights(path)
    _check_kind(weights)
    stored = _transformers_names(weights)
    processor = _load_tokenizer(weights, tokenizer)
    model = _build_on_meta(weights, stored)
    shapes = {transformers_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_weights(weights, stored, shapes)
    dim, vocab_size = model.config.d_model, model.config.vocab_size
    if processor.vocab_size() > vocab_size:
        raise ModelFileError(
            f"The tokenizer does not belong to '{path}': it has {processor.vocab_size()} tokens, and the encoder "
            f"{vocab_size}; name the umT5 tokenizer (google/umt5-xxl)."
        )
    # Under inference mode the weights could not be moved or used outside of it.
    with torch.inference_mode(False), torch.no_grad():
        state = _read_state(weights, stored, shapes, device)
        identity = text_identity(state, processor.serialized_model_proto(), dtype)
        _fill(model, state, dtype)
    return Umt5TextEncoder(model.requires_grad_(False).eval(), processor, dim, identity)


def read_tokenizer(path: Path) -> Any:
    """The sentencepiece processor in the text encoder's file or beside it. ModelFileError, ConfigError as the encoder."""
    path = path / "text_encoder" if (path / "text_encoder").is_dir() else path
    return _load_tokenizer(open_weights(path), None)


def transformers_name(name: str) -> str:
    """The name that transformers gives a weight of the official file; one of transformers' comes back unchanged."""
    block = _BLOCK.fullmatch(name)
    if block is not None:
        part = _PARTS.get(block[2])
        return name if part is None else f"encoder.block.{block[1]}.layer.{part}.weight"
    return _ENDS.get(name, name)


def _check_kind(weights: EncoderWeights) -> None:
    kind = identify(weights.shapes)
    if kind.name != "umt5":
        raise ModelFileError(
            f"'{weights.path}' is {kind.label}; a umT5 text encoder is needed: umt5_xxl_fp16.safetensors, "
            "umt5_xxl_fp8_e4m3fn_scaled.safetensors or models_t5_umt5-xxl-enc-bf16.pth."
        )


def _transformers_names(weights: EncoderWeights) -> dict[str, str]:
    """transformers' names to those in the file. ComfyUI's marker of no size is left out."""
    return {transformers_name(name): name for name, shape in weights.shapes.items() if 0 not in shape}


def _build_on_meta(weights: EncoderWeights, stored: Mapping[str, str]) -> Any:
    """transformers' encoder in the sizes of the file, without memory for its weights."""
    with headless_packages(), for_encoders():
        from transformers import UMT5Config, UMT5EncoderModel
    for name in (_SHARED, _FINAL_NORM, _BIAS, _QUERY, _GATE):
        if len(weights.shapes.get(stored.get(name, ""), ())) != (1 if name == _FINAL_NORM else 2):
            raise ModelFileError(
                f"The model file '{weights.path}' is incomplete: it has no '{name}'; download it again."
            )
    shapes = {name: weights.shapes[stored[name]] for name in (_SHARED, _BIAS, _QUERY, _GATE)}
    config = cast(Any, UMT5Config)(  # its signature leaves out what every configuration takes
        vocab_size=shapes[_SHARED][0],
        d_model=shapes[_SHARED][1],
        d_kv=shapes[_QUERY][0] // shapes[_BIAS][1],
        d_ff=shapes[_GATE][0],
        num_layers=sum(name.startswith("encoder.") and name.endswith("SelfAttention.q.weight") for name in stored),
        num_heads=shapes[_BIAS][1],
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        attn_implementation="eager",
    )
    with torch.device("meta"):
        return UMT5EncoderModel(config)


def _read_state(
    weights: EncoderWeights, stored: Mapping[str, str], wanted: Iterable[str], device: torch.device
) -> dict:
    """Weights by transformers' names on `device`, as they are stored, with the scales of ComfyUI's fp8 layers."""
    norm_dtype = weights.dtypes[stored[_FINAL_NORM]]
    assert norm_dtype is not None
    scales = {scale: name for name in wanted if (scale := scale_name(stored[name], weights.shapes))}
    names = {stored[name]: name for name in wanted}
    state = {}
    for name, tensor in weights.read([*scales, *names]):
        if name in scales:
            weight = scales[name]
            _check_scale(weights, name, tensor, weights.shapes[stored[weight]])
            state[weight.removesuffix(".weight") + SCALE] = tensor.to(device)
        else:
            is_scaled = scale_name(name, weights.shapes) is not None
            state[names[name]] = (tensor if is_scaled else as_stored(tensor, norm_dtype)).to(device)
        del tensor
    return state


def _check_scale(weights: EncoderWeights, name: str, scale: Tensor, shape: tuple[int, ...]) -> None:
    """One number for the tensor, or one for each row; everything else is another format."""
    if not scale.dtype.is_floating_point or (scale.numel() != 1 and tuple(scale.shape) != (shape[0], 1)):
        raise ModelFileError(
            f"The model file '{weights.path}' is quantized in a way that cannot be read here ('{name}' has the shape "
            f"{list(scale.shape)}); use umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors."
        )


def _load_tokenizer(weights: EncoderWeights, given: Path | None) -> Any:
    """A sentencepiece processor: of the path that was given, of the file, or of what lies beside it."""
    with headless_packages():
        import sentencepiece
    source, data = find_tokenizer(weights, given)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise ModelFileError(f"The tokenizer in '{source}' is not a sentencepiece model; download it again.") from error


def _fill(model: Any, state: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Put the weights into the model: linears and the table as stored, the small rest in `dtype`. Empties `state`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            stored, scale = state.pop(f"{name}.weight"), state.pop(name + SCALE, None)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, EncoderLinear(stored, scale))
    table, scale = state.pop(_SHARED), state.pop("shared" + SCALE, None)
    model.set_input_embeddings(StoredEmbedding(table, scale, dtype))
    model.load_state_dict({name: state.pop(name).to(dtype) for name in list(state)}, strict=False, assign=True)
