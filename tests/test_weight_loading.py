"""State dicts (ch05/weight_loading): the same model as transformers', or a clear no.

The checks take the component as an argument: they get ours, which must pass, and ours
with a classic mistake in it, which must not.
"""

import ast
import pickle
import re

import pytest
import torch
from checks import GPT_CONFIG, gpt2_pairs, perturb, random_gpt2
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_gpt_download import (
    COUNTS,
    LAYOUTS,
    check_equal,
    published,
    transformers_gpt2,
)
from test_mutants import NOTICED, each_of, mutate
from test_notebooks import cells, definitions

from ch02.cli import InputError
from ch04.gpt import GPTModel
from ch05.gpt_download import SETTINGS, WEIGHTS, parameter_shapes, read_params
from ch05.gpt_generate import as_config, load_weights_into_gpt
from ch05.weight_loading.state_dict import load_fitting, to_our_names

FOLDER = ROOT / "ch05/weight_loading"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SMALL = {"n_vocab": 97, "n_ctx": 16, "n_embd": 24, "n_head": 3, "n_layer": 2}
CONFIG = as_config(SMALL)


def filled(model):
    """A transformers model with no 0 and no 1 left, and attention not uniform."""
    perturb(model)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 5
    return model.eval()


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Their names, our names


def check_to_our_names(to_our_names):
    """Equal logits from every layout; every parameter bit for bit; an untied head."""
    torch.manual_seed(0)
    theirs = filled(transformers_gpt2(SMALL))
    for layout in LAYOUTS.values():
        tensors = layout(theirs)
        model = GPTModel(CONFIG).eval()
        load_fitting(model, to_our_names(tensors))
        check_equal(model, theirs)
        for ours, other in gpt2_pairs(model, theirs):
            assert torch.equal(ours, other)
        backwards = dict(reversed(tensors.items()))
        for name, tensor in to_our_names(backwards).items():
            assert torch.equal(tensor, model.state_dict()[name])

    theirs = filled(random_gpt2())
    assert not torch.equal(theirs.lm_head.weight, theirs.transformer.wte.weight)
    for order in (list, reversed):
        tensors = dict(order(theirs.state_dict().items()))
        model = GPTModel(GPT_CONFIG).eval()
        load_fitting(model, to_our_names(tensors))
        check_equal(model, theirs)

    for name in (
        "h.0.crossattention.c_attn.weight",
        "h.0.attn.c_attn.qweight",
        "h.0.ln_1.gamma",
        "score.weight",
        "bert",
        "",
    ):
        tensors = {**published(theirs), name: torch.zeros(24)}
        with pytest.raises(InputError, match=f"^{name} is not a weight of GPT-2"):
            to_our_names(tensors)


def test_our_weights_in_their_model_and_home_again():
    ours = perturb(GPTModel(GPT_CONFIG)).eval()
    theirs = random_gpt2()
    with torch.no_grad():
        for tensor, other in gpt2_pairs(ours, theirs):
            other.copy_(tensor)
    check_equal(ours, theirs)
    home = to_our_names(theirs.state_dict())
    assert home.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert torch.equal(home[name], parameter), name


@settings(derandomize=True, database=None, deadline=None, max_examples=15)
@given(
    n_vocab=st.integers(3, 40),
    n_ctx=st.integers(1, 9),
    n_head=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    n_layer=st.sampled_from([1, 2, 11]),
)
def test_the_same_as_section_5_5(tmp_path_factory, head_dim, **sizes):
    sizes["n_embd"] = sizes["n_head"] * head_dim
    tensors = {name: torch.randn(s) for name, s in parameter_shapes(sizes).items()}
    path = tmp_path_factory.mktemp("file") / WEIGHTS
    save_file(tensors, path)
    model, expected = GPTModel(as_config(sizes)), GPTModel(as_config(sizes))
    load_fitting(model, to_our_names(tensors))
    load_weights_into_gpt(expected, read_params(path, sizes))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_the_file_on_the_hub_through_from_pretrained(tmp_path):
    """What `from_pretrained` makes of names without prefix and with masks."""
    from transformers import GPT2LMHeadModel

    theirs = filled(transformers_gpt2(SMALL))
    theirs.save_pretrained(tmp_path)
    save_file(published(theirs), tmp_path / WEIGHTS, {"format": "pt"})
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    model = GPTModel(CONFIG).eval()
    load_fitting(model, to_our_names(again.state_dict()))
    check_equal(model, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype):
    theirs = filled(transformers_gpt2(SMALL)).to(dtype)
    model = GPTModel(CONFIG)
    load_fitting(model, to_our_names(theirs.state_dict()))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.tok_emb.weight, theirs.transformer.wte.weight.float())


@pytest.mark.parametrize("size", COUNTS)
def test_every_weight_of_the_published_models_has_its_place(size):
    """Names, shapes and counts, on the meta device: nothing is allocated."""
    sizes = SETTINGS[size]
    n_ctx, n_layer = sizes["n_ctx"], sizes["n_layer"]
    with torch.device("meta"):
        model = GPTModel(as_config(sizes))
        theirs = transformers_gpt2(sizes).state_dict()
        file = {name: torch.empty(s) for name, s in parameter_shapes(sizes).items()}
        for i in range(n_layer):
            file[f"h.{i}.attn.bias"] = torch.empty(1, 1, n_ctx, n_ctx)
    assert sum(tensor.numel() for tensor in file.values()) == (
        COUNTS[size] + n_layer * n_ctx**2
    )
    assert len(file) == 4 + 13 * n_layer
    expected = {name: p.shape for name, p in model.named_parameters()}
    head = sizes["n_vocab"] * sizes["n_embd"]
    for tensors in (file, theirs):
        ours = to_our_names(tensors)
        assert all(tensor.is_meta for tensor in ours.values())
        assert {name: tensor.shape for name, tensor in ours.items()} == expected
        assert sum(tensor.numel() for tensor in ours.values()) == COUNTS[size] + head
        load_fitting(model, ours)


def test_a_published_pth_file_has_these_names():
    """Spelled out as in the book's own class, which writes such files."""
    linear = ["W_query", "W_key", "W_value", "out_proj"]
    linear = [f"att.{name}" for name in linear] + ["ff.layers.0", "ff.layers.2"]
    block = [f"{layer}.{kind}" for layer in linear for kind in ("weight", "bias")]
    block += [f"{n}.{kind}" for n in ("norm1", "norm2") for kind in ("scale", "shift")]
    names = [
        f"trf_blocks.{i}.{name}" for i in range(12) for name in [*block, "att.mask"]
    ]
    names += ["tok_emb.weight", "pos_emb.weight", "out_head.weight"]
    names += ["final_norm.scale", "final_norm.shift"]
    with torch.device("meta"):
        model = GPTModel(as_config(SETTINGS["124M"]))
    state = model.state_dict()
    assert sorted(state) == sorted(names)
    load_fitting(model, {name: state[name] for name in names})


# All or nothing


def lost(name):
    return lambda state: state.pop(name)


def put(name, value):
    return lambda state: state.update({name: value})


MISFITS = {
    "missing": (
        lost("trf_blocks.1.norm2.shift"),
        "trf_blocks.1.norm2.shift the model has (24,), the weights have nothing: ",
    ),
    "no output layer": (
        lost("out_head.weight"),
        "out_head.weight the model has (97, 24), the weights have nothing: ",
    ),
    "surplus": (
        put("trf_blocks.2.norm1.scale", torch.zeros(24)),
        "trf_blocks.2.norm1.scale the model has nothing, the weights have (24,): ",
    ),
    "a mask of a layer too many": (
        put("trf_blocks.2.att.mask", torch.zeros(16, 16)),
        "trf_blocks.2.att.mask the model has nothing, the weights have (16, 16): ",
    ),
    "a longer context": (
        put("pos_emb.weight", torch.zeros(32, 24)),
        "pos_emb.weight the model has (16, 24), the weights have (32, 24): ",
    ),
    "transposed": (
        put("trf_blocks.0.ff.layers.0.weight", torch.zeros(24, 96)),
        "trf_blocks.0.ff.layers.0.weight the model has (96, 24), the weights have "
        "(24, 96): ",
    ),
    "a number beside the weights": (
        put("epoch", 3),
        "epoch the model has nothing, the weights have (): ",
    ),
    "a number instead of a weight": (
        put("final_norm.scale", 3),
        "final_norm.scale the model has (24,), the weights have (): ",
    ),
}


def check_load_fitting(load_fitting):
    """The parameters to the bit, the model's own masks; a misfit changes nothing."""
    torch.manual_seed(0)
    source = perturb(GPTModel(CONFIG))
    masks = {name for name in source.state_dict() if name.endswith(".mask")}
    assert len(masks) == 2
    inverted = {name: 1 - source.state_dict()[name] for name in masks}
    too_small = {name: torch.zeros(3, 3) for name in masks}
    for of_the_file in (None, {}, inverted, too_small):
        state = copied(source)
        if of_the_file is not None:
            state = {n: t for n, t in state.items() if n not in masks} | of_the_file
        given_ = dict(state)
        model = GPTModel(CONFIG)
        parameters = list(model.parameters())
        load_fitting(model, state)
        for name, tensor in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name
        # An optimizer may hold the parameters; the dictionary is the caller's
        for old, new in zip(parameters, model.parameters(), strict=True):
            assert old is new
        assert state.keys() == given_.keys()
        assert all(state[name] is given_[name] for name in state)

    tied = GPTModel(CONFIG)
    tied.out_head.weight = tied.tok_emb.weight
    load_fitting(tied, tied.state_dict())

    for spoil, expected in MISFITS.values():
        state, model = copied(source), GPTModel(CONFIG)
        spoil(state)
        before = copied(model)
        with pytest.raises(InputError) as caught:
            load_fitting(model, state)
        message = str(caught.value)
        assert message.startswith(f"for {expected}build the model with the config")
        assert len(message.splitlines()) == 1
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("component", "check"),
    [(to_our_names, check_to_our_names), (load_fitting, check_load_fitting)],
)
def test_does_what_it_should(component, check):
    check(component)


# A file of torch.save


def test_through_a_pth_file(tmp_path):
    theirs = filled(transformers_gpt2(SMALL))
    model = GPTModel(CONFIG).eval()
    load_fitting(model, to_our_names(theirs.state_dict()))
    path = tmp_path / "gpt2-small-124M.pth"
    torch.save(model.state_dict(), path)

    state = torch.load(path, map_location="cpu", weights_only=True)
    again = GPTModel(CONFIG).eval()
    load_fitting(again, state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor)
        assert torch.equal(again.state_dict()[name], tensor)
    check_equal(again, theirs)


def test_what_to_our_names_returns_can_be_saved(tmp_path):
    theirs = filled(transformers_gpt2(SMALL))
    torch.save(to_our_names(theirs.state_dict()), tmp_path / "ours.pth")
    model = GPTModel(CONFIG).eval()
    load_fitting(model, torch.load(tmp_path / "ours.pth", weights_only=True))
    check_equal(model, theirs)


def test_a_training_checkpoint_is_not_a_state_dict(tmp_path):
    """Section 5.4's file with model and optimizer: its model part is one."""
    source, model = perturb(GPTModel(CONFIG)), GPTModel(CONFIG)
    optimizer = torch.optim.AdamW(source.parameters())
    both = {
        "model_state_dict": source.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "epoch": 3,
    }
    torch.save(both, tmp_path / "both.pth")
    state = torch.load(tmp_path / "both.pth", weights_only=True)
    with pytest.raises(InputError, match="for epoch the model has nothing"):
        load_fitting(model, state)
    load_fitting(model, state["model_state_dict"])
    assert torch.equal(model.out_head.weight, source.out_head.weight)


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a program has run')",)


def test_a_file_that_holds_a_program_is_refused(tmp_path):
    torch.save({"tok_emb.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "trap.pth", weights_only=True)


# Classic mistakes

MUTANTS = {
    (to_our_names, check_to_our_names): {
        "transpose forgotten": ("tensor = tensor.T", "pass"),
        "square matrices not transposed": (
            "tensor = tensor.T", "tensor = tensor.reshape(tensor.T.shape) if "
            "tensor.shape == tensor.T.shape else tensor.T"),
        "reshaped instead of transposed": (
            "tensor = tensor.T", "tensor = tensor.reshape(tensor.shape[::-1])"),
        "queries and keys swapped": ("zip(OURS[layer], parts",
                                     "zip(sorted(OURS[layer]), parts"),
        "values first": ("zip(OURS[layer], parts", "zip(OURS[layer][::-1], parts"),
        "only biases in another order": (
            "zip(OURS[layer], parts",
            "zip(OURS[layer] if kind == 'weight' else sorted(OURS[layer]), parts"),
        "every third column instead of blocks": (
            "tensor.chunk(len(OURS[layer]))",
            "[tensor[i :: len(OURS[layer])] for i in range(len(OURS[layer]))]"),
        "biases skipped": ('layer == "attn"', 'layer == "attn" or kind == "bias"'),
        "biases zero": ("= part\n", "= part * (kind != 'bias')\n"),
        "masks taken for weights": ('if layer == "attn"', 'if layer == "mask"'),
        "scale and shift swapped": ('"weight": "scale", "bias": "shift"',
                                    '"weight": "shift", "bias": "scale"'),
        "every block is the first": ('block.replace("h.", "trf_blocks.")',
                                     '"trf_blocks.0." if block else ""'),
        "prefix kept": ('.removeprefix("transformer.")', ""),
        "no output layer": ('if "tok_emb.weight" in ours', "if False"),
        "head not tied": ('ours["tok_emb.weight"])', '0 * ours["tok_emb.weight"])'),
        "a head of its own lost": (
            'ours.setdefault("out_head.weight", ours["tok_emb.weight"])',
            'ours["out_head.weight"] = ours["tok_emb.weight"]'),
        "unknown layers left out": ("raise InputError(", "continue\n            str("),
    },
    (load_fitting, check_load_fitting): {
        "surplus left out": ("expected.keys() | weights.keys()", "expected.keys()"),
        "missing weights tolerated": ("expected.keys() | weights.keys()",
                                      "weights.keys()"),
        "shapes not compared": ('getattr(side[name], "shape", ())', "()"),
        "not compared at all": ("ours != theirs", "False"),
        "nothing copied": ("load_state_dict(weights | buffers)", "eval()"),
        "the file's masks taken": ("weights | buffers", "buffers | state"),
        "masks needed": ("name not in buffers", "True"),
        "any mask left out": ("name not in buffers", 'not name.endswith(".mask")'),
        "tied weights a surplus": ("remove_duplicate=False", ""),
        "the caller's tensors taken": ("weights | buffers)",
                                       "weights | buffers, assign=True)"),
    },
}  # fmt: skip


@each_of(MUTANTS)
def test_mutant_is_caught(component, check, old, new):
    with pytest.raises((*NOTICED, KeyError, pytest.fail.Exception)):
        check(mutate(component, old, new))


# Notebooks and README


def source(notebook):
    return "\n".join(cell.source for cell in cells(notebook, "code"))


def table(text):
    """The table OURS, which a function without it is not."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "OURS":
            return ast.literal_eval(node.value)
    return None


def test_the_notebooks_define_what_the_module_ships():
    text = (FOLDER / "state_dict.py").read_text("utf-8")
    shipped, taught = definitions(text), []
    for notebook in NOTEBOOKS:
        found = definitions(source(notebook))
        for name in found.keys() & shipped.keys():
            assert found[name] == shipped[name], name
            taught.append(name)
        if "to_our_names" in found:
            assert table(source(notebook)) == table(text) is not None
    # Each of them once
    assert sorted(taught) == sorted(shipped)


def test_only_one_notebook_needs_transformers():
    needs = {n.name for n in NOTEBOOKS if "transformers" in source(n)}
    assert len(NOTEBOOKS) == 3
    assert needs == {"weights_transformers.ipynb"}


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    text = (FOLDER / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    filled(transformers_gpt2(SMALL)).save_pretrained(tmp_path)
    monkeypatch.setitem(SETTINGS, "124M", SMALL)
    names = {}
    exec(example.replace("openai-community/gpt2", str(tmp_path)), names)  # our own
    check_equal(names["gpt"], names["theirs"].eval())


def test_links_of_the_readme_lead_somewhere():
    text = (FOLDER / "README.md").read_text("utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert {notebook.name for notebook in NOTEBOOKS} <= set(targets)
    assert all((FOLDER / target).exists() for target in targets)
