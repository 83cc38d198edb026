"""GPT-2's weights as a state dict: into our names, and into a model.

`load_fitting(model, to_our_names(tensors))` fills a GPTModel from the tensors of the
published file, or of a GPT-2 in transformers. Not here: reading and downloading files
(`ch05/gpt_download.py`), and the book's nested params (`ch05/gpt_generate.py`).
"""

import re

from ch02.cli import InputError

# Each layer of GPT-2, and what it is in a GPTModel
OURS = {
    "wte": ["tok_emb"],
    "wpe": ["pos_emb"],
    "ln_1": ["norm1"],
    "attn.c_attn": ["att.W_query", "att.W_key", "att.W_value"],
    "attn.c_proj": ["att.out_proj"],
    "ln_2": ["norm2"],
    "mlp.c_fc": ["ff.layers.0"],
    "mlp.c_proj": ["ff.layers.2"],
    "ln_f": ["final_norm"],
    "lm_head": ["out_head"],
}


def load_fitting(model, state):
    """Copy a state dict into the model, or raise InputError and change nothing.

    state: a tensor of the right shape for every parameter, by its name in the model,
    and no others. The buffers (GPTModel: the causal masks) may be there, and are not
    copied: the model keeps its own. Another precision becomes the model's.
    """
    buffers = dict(model.named_buffers())
    weights = {name: t for name, t in state.items() if name not in buffers}
    expected = dict(model.named_parameters(remove_duplicate=False))
    for name in sorted(expected.keys() | weights.keys()):
        ours, theirs = (
            tuple(getattr(side[name], "shape", ())) if name in side else "nothing"
            for side in (expected, weights)
        )
        if ours != theirs:
            raise InputError(
                f"for {name} the model has {ours}, the weights have {theirs}: "
                "build the model with the config the weights were saved with"
            )
    model.load_state_dict(weights | buffers)


def to_our_names(published):
    """The tensors of a GPT-2 by their names and in their shapes in a GPTModel.

    published: dict of tensors with the names of OpenAI's file on the hub, or of
    transformers, where they begin with "transformer.". Masks are left out. The result
    shares memory with it. Raises InputError for what GPT-2 does not have.
    """
    ours = {}
    for name, tensor in published.items():
        path, _, kind = name.removeprefix("transformer.").rpartition(".")
        block, layer = re.fullmatch(r"(h\.\d+\.)?(.*)", path).groups("")
        if layer == "attn":  # a mask: our model has its own
            continue
        if layer not in OURS or kind not in ("weight", "bias"):
            raise InputError(f"{name} is not a weight of GPT-2: choose another model")
        if layer.startswith("ln_"):
            kind = {"weight": "scale", "bias": "shift"}[kind]
        elif layer.startswith(("attn.", "mlp.")) and kind == "weight":
            tensor = tensor.T  # (inputs, outputs) -> (outputs, inputs)
        block = block.replace("h.", "trf_blocks.")
        parts = tensor.chunk(len(OURS[layer]))
        for target, part in zip(OURS[layer], parts, strict=True):
            ours[f"{block}{target}.{kind}"] = part
    # GPT-2's output layer is the token embedding, unless there is another
    if "tok_emb.weight" in ours:
        ours.setdefault("out_head.weight", ours["tok_emb.weight"])
    return ours
