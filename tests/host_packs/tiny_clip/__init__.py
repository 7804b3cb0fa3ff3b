"""Test only: lets the host's ordinary CLIPLoader (type wan) load a umT5 of any size, by reading the sizes off the file.

The shipped workflows use CLIPLoader; on the host itself it takes the full-size umT5-xxl alone.
"""

import comfy.sd

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
NODE_CLASS_MAPPINGS: dict = {}
