"""Test only: lets the host's ordinary CLIPLoader (type wan) load a umT5 of any size, by reading the sizes off the file.

The shipped workflows use CLIPLoader; on the host itself it takes the full-size umT5-xxl alone. And a node that gives the host's
own Qwen3-VL at toy width, with random weights, since its loader takes that model at its full sizes alone.
"""

from types import SimpleNamespace

import comfy.sd
import comfy.text_encoders.qwen3vl as qwen3vl
import torch
from comfy.text_encoders.llama import Qwen3VL_4BConfig

_load = comfy.sd.load_text_encoder_state_dicts


def _load_any_size(state_dicts, *args, clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION, model_options=None, **kwargs):
    options = dict(model_options or {})
    state = state_dicts[0] if state_dicts else {}
    if clip_type == comfy.sd.CLIPType.WAN and "shared.weight" in state:
        block = "encoder.block.0.layer."
        heads = state[f"{block}0.SelfAttention.relative_attention_bias.weight"].shape[1]
        options["umt5xxl_model_config"] = {
            "vocab_size": state["shared.weight"].shape[0],
            "d_model": state["shared.weight"].shape[1],
            "d_ff": state[f"{block}1.DenseReluDense.wi_0.weight"].shape[0],
            "d_kv": state[f"{block}0.SelfAttention.q.weight"].shape[0] // heads,
            "num_heads": heads,
            "num_layers": sum(key.endswith("SelfAttention.q.weight") for key in state),
        }
    return _load(state_dicts, *args, clip_type=clip_type, model_options=options, **kwargs)


comfy.sd.load_text_encoder_state_dicts = _load_any_size


class TinyVisionLanguage:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "load", "testing"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the host's name
        return {"required": {}}

    def load(self):
        target = SimpleNamespace(
            clip=qwen3vl.te(model_type="tiny"), tokenizer=qwen3vl.tokenizer(model_type="tiny"), params={}
        )
        qwen3vl.QWEN3VL_CONFIGS["tiny"] = _tiny_config
        qwen3vl.QWEN3VL_VISION["tiny"] = {
            "hidden_size": 32, "intermediate_size": 48, "depth": 2, "deepstack_visual_indexes": [0], "num_heads": 2,
        }  # fmt: skip
        clip = comfy.sd.CLIP(target)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in clip.cond_stage_model.parameters():
                parameter.copy_(
                    torch.randn(parameter.shape) * (0.5 if parameter.ndim > 1 else 0.1) + (parameter.ndim < 2)
                )
        return (clip,)


def _tiny_config(**_):
    return Qwen3VL_4BConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
    )


NODE_CLASS_MAPPINGS = {"TinyVisionLanguage": TinyVisionLanguage}
