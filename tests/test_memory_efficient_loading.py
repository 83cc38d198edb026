"""Loading in little memory (ch05/memory_efficient_loading): the same model, six times.

The checks take the function as an argument: they get ours, which must pass, and ours
with a classic mistake in it, which must not. Memory is measured on a model of 210 MB.
"""

import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
from checks import perturb
from conftest import ROOT
from registry import TINY_CONFIG
from safetensors.torch import load_file, save_file
from test_mutants import NOTICED, each_of, mutate
from test_notebooks import cells, definitions

from ch02.cli import InputError
from ch04.gpt import GPTModel
from ch05.memory_efficient_loading import measure
from ch05.memory_efficient_loading.loading import (
    INDEX,
    SkipInit,
    build,
    build_on_meta,
    find_shards,
    load_and_assign,
    load_and_copy,
    load_by_tensor,
    load_mapped,
    load_sequentially,
    load_sharded,
    read_state_dict,
)
from ch05.memory_efficient_loading.measure import WAYS, read_memory, save_checkpoints

CONFIG = {**TINY_CONFIG, "qkv_bias": True, "drop_rate": 0.5}
FILES = {load.__name__: file for load, file in WAYS.values()}
FROM_PTH = (load_and_copy, load_sequentially, load_and_assign, load_mapped)
LOADS = (*FROM_PTH, load_by_tensor, load_sharded)
each_load = pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
KEY = "trf_blocks.1.att.W_key.weight"
MASK = "trf_blocks.1.att.mask"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, its logits, and the folder of its three checkpoints. Not to be changed.

    Its mask is 2 where the course's is 1: the same attention, but nobody can think the
    numbers up.
    """
    torch.manual_seed(0)
    model = perturb(build(CONFIG)).eval()
    for block in model.trf_blocks:
        block.att.mask *= 2
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_checkpoints(folder, model, CONFIG)
    ids = torch.randint(CONFIG["vocab_size"], (3, CONFIG["context_length"]))
    with torch.no_grad():
        return SimpleNamespace(model=model, folder=folder, ids=ids, logits=model(ids))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the checkpoints to spoil."""
    return shutil.copytree(saved.folder, tmp_path / "copy")


def fingerprint(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def save_state(folder, state_dict):
    """A state dict as all three checkpoints, the shards being two."""
    shards = folder / "shards"
    shards.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict, folder / "model.pth")
    save_file(state_dict, folder / "model.safetensors")
    weight_map = {}
    for i, file in enumerate(("a.safetensors", "b.safetensors")):
        part = dict(list(state_dict.items())[i::2])
        save_file(part, shards / file)
        weight_map |= dict.fromkeys(part, file)
    (shards / INDEX).write_text(json.dumps({"weight_map": weight_map}), "utf-8")


# The checks


def check_load(load, saved):
    """The model saved, bit for bit; nothing else changed; ready to be trained."""
    before, random_state = fingerprint(saved.folder), torch.get_rng_state()
    model = load(saved.folder / FILES[load.__name__], CONFIG)
    assert torch.equal(torch.get_rng_state(), random_state), "the seed has noticed"

    assert type(model) is GPTModel
    assert not any(module.training for module in model.modules())
    ours, theirs = model.state_dict(), saved.model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert ours[name].device == tensor.device
        assert torch.equal(ours[name], tensor), name
    for buffer in model.buffers():
        assert torch.equal(buffer, buffer.triu(1)), "a token may look into the future"
        assert not buffer.requires_grad
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(saved.ids), saved.logits)

    model(saved.ids).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} does not learn"
        parameter.data -= parameter.grad
    assert not torch.equal(model.tok_emb.weight, saved.model.tok_emb.weight)
    assert fingerprint(saved.folder) == before, "a checkpoint was changed"


def check_stands_alone(load, saved):
    """What happens to the file afterwards is nothing to the model."""
    folder = shutil.copytree(saved.folder, saved.folder.with_name("overwritten"))
    try:
        model = load(folder / FILES[load.__name__], CONFIG)
        for path in (path for path in folder.rglob("*") if path.is_file()):
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
        for name, tensor in saved.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor)
    finally:
        shutil.rmtree(folder)


class Intruder:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def check_state_dict(read, saved):
    """Only state dicts that fit are handed out, and nothing in a file is executed."""
    ours, path = saved.model.state_dict(), saved.folder.with_name("other.pth")
    for mmap in (False, True):
        found = read(saved.folder / "model.pth", saved.model, mmap=mmap)
        assert found.keys() == ours.keys()
        for content in (
            list(ours.values()),
            ours[KEY],
            {},
            {"model": ours},
            {**ours, KEY: "text"},
            {**ours, 1: ours[KEY]},
            {**ours, KEY: ours[KEY][:-1]},
            {**ours, "more": ours[KEY]},
            {name: tensor for name, tensor in ours.items() if name != MASK},
            {**ours, "more": Intruder(path.with_name("intruder"))},
        ):
            torch.save(content, path)
            with pytest.raises(InputError) as error:
                read(path, saved.model, mmap=mmap)
            assert "\n" not in str(error.value)
            assert str(path) in str(error.value)
            assert not path.with_name("intruder").exists()


def check_shards(find, saved):
    """The files of the index, each once; what does not belong together is refused."""
    folder = saved.folder.with_name("shards")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    state_dict = saved.model.state_dict()
    parts = [dict(list(state_dict.items())[i::3]) for i in range(3)]
    index = {n: file for file, part in zip(names, parts, strict=True) for n in part}
    first = next(iter(parts[0]))

    def found(parts=parts, index=index):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, part in zip(names, parts, strict=False):
            save_file(part, folder / name)
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / INDEX).write_text(text, "utf-8")
        return find(folder, saved.model)

    def refused(*words, **changes):
        with pytest.raises(InputError) as error:
            found(**changes)
        assert "\n" not in str(error.value)
        for word in (str(folder), *words):
            assert word in str(error.value)

    try:
        assert sorted(found()) == [folder / name for name in names]
        refused(names[2], INDEX, parts=parts[:2])
        # In the index but not in the file, and the other way round
        refused(names[0], "ghost", index={**index, "ghost": names[0]})
        refused(names[0], first, index={n: f for n, f in index.items() if n != first})
        refused(names[0], "guest", parts=[{**parts[0], "guest": torch.ones(2)}])
        # In another file than the index says
        refused(first, index={**index, first: names[1]})
        # Index and files agree, the model does not
        lacking = {n: f for n, f in index.items() if n != first}
        less = [{n: t for n, t in part.items() if n != first} for part in parts]
        refused(first, "nothing", index=lacking, parts=less)
        guest = [{**parts[0], "guest": torch.ones(2)}, *parts[1:]]
        refused("guest", "nothing", index={**index, "guest": names[0]}, parts=guest)
        smaller = [{**part} for part in parts]
        smaller[0][first] = smaller[0][first][1:].clone()
        shapes = [str(tuple(side[0][first].shape)) for side in (parts, smaller)]
        refused(first, *shapes, parts=smaller)
        # Files are read from the folder alone
        save_file(parts[0], folder.with_name("outside.safetensors"))
        outside = {n: f.replace(names[0], "../outside.safetensors")
                   for n, f in index.items()}  # fmt: skip
        refused("../outside.safetensors", INDEX, index=outside)
    finally:
        shutil.rmtree(folder)


CHECKS = [
    *((load, check_load) for load in LOADS),
    *((load, check_stands_alone) for load in LOADS if load is not load_mapped),
    (read_state_dict, check_state_dict),
    (find_shards, check_shards),
]


@pytest.mark.parametrize(
    ("component", "check"), CHECKS, ids=lambda thing: thing.__name__
)
def test_loads_what_was_saved(component, check, saved):
    check(component, saved)


# Classic mistakes

ASSIGN = "strict=False, assign=True"
MUTANTS = {
    (load_and_copy, check_load): {
        "dropout left on": ("model.eval()", "model"),
        "the reader's seed moved": ("build(config)", "GPTModel(config)"),
        "not copied": ("model.load_state_dict(state_dict)", "pass"),
        "half of the layers": (
            "model.load_state_dict(state_dict)",
            "model.load_state_dict({n: t for n, t in state_dict.items() "
            "if 'blocks.1' not in n}, strict=False)",
        ),
    },
    (load_sequentially, check_load): {
        "copied the wrong way": (
            "tensor.copy_(state_dict.pop(name))",
            "state_dict.pop(name).copy_(tensor)",
        ),
        "copied into a copy": ("tensor.copy_(", "tensor.clone().copy_("),
        "buffers forgotten": ("model.state_dict().items()",
                              "dict(model.named_parameters()).items()"),
        "in another order": ("state_dict.pop(name)", "state_dict.popitem()[1]"),
    },
    (load_and_assign, check_load): {
        "copied to the meta device": (", assign=True", ""),
        "random instead of empty": ("build_on_meta(config)", "GPTModel(config)"),
        "no gradients": ("model.eval()", "model.requires_grad_(False).eval()"),
        "dropout left on": ("model.eval()", "model"),
    },
    (load_mapped, check_load): {
        "copied to the meta device": (", assign=True", ""),
        "dropout left on": ("model.eval()", "model"),
    },
    (load_by_tensor, check_load): {
        "masks left as they came from to_empty": (
            "    for name in model.state_dict():\n",
            "    model.to_empty(device='cpu')\n"
            "    for name, _ in model.named_parameters():\n",
        ),
        "masks left on the meta device": (
            "for name in model.state_dict():",
            "for name, _ in model.named_parameters():",
        ),
        "under the wrong name": (
            "file.get_tensor(name)",
            "file.get_tensor(name.replace('W_key', 'W_query'))",
        ),
        "copied to the meta device": (ASSIGN, "strict=False"),
        "dropout left on": ("model.eval()", "model"),
    },
    (load_by_tensor, check_stands_alone): {
        "still in the file": (".clone()", ""),
    },
    (load_sharded, check_load): {
        "a shard skipped": ("in find_shards(folder, model)",
                            "in find_shards(folder, model)[1:]"),
        "under the wrong name": ("{name: t.clone()",
                                 "{name.replace('W_key', 'W_query'): t.clone()"),
        "copied to the meta device": (ASSIGN, "strict=False"),
        "dropout left on": ("model.eval()", "model"),
    },
    (load_sharded, check_stands_alone): {
        "still in the file": (".clone()", ""),
    },
    (read_state_dict, check_state_dict): {
        "pickles executed": ("weights_only=True", "weights_only=False"),
        "not compared with the model": ("compare_tensors(path", "(path"),
        "errors of PyTorch let through": ("with reading(path):", "if True:"),
    },
    (find_shards, check_shards): {
        "not compared with the model": ("compare_tensors(folder", "(folder"),
        "surplus of a file accepted": ("names ^ shapes.keys()",
                                       "names - shapes.keys()"),
        "gaps of a file accepted": ("names ^ shapes.keys()", "shapes.keys() - names"),
        "any path accepted": ("Path(file).name != file", "False"),
        "files not looked for": ("not (folder / file).is_file()", "False"),
        "one file forgotten": ("for file in shards]", "for file in list(shards)[1:]]"),
    },
}  # fmt: skip


@each_of(MUTANTS)
def test_mutant_is_caught(component, check, old, new, saved):
    mutant = mutate(component, old, new)
    with pytest.raises((*NOTICED, KeyError, AttributeError, pytest.fail.Exception)):
        check(mutant, saved)


# What holds besides


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_model_on_the_meta_device_has_all_but_numbers(qkv_bias):
    config = {**CONFIG, "qkv_bias": qkv_bias}
    random_state = torch.get_rng_state()
    ours, theirs = build_on_meta(config), build(config)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for (name, tensor), other in zip(
        ours.state_dict(keep_vars=True).items(),
        theirs.state_dict(keep_vars=True).values(),
        strict=True,
    ):
        assert tensor.is_meta, name
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
        assert tensor.requires_grad == other.requires_grad
    assert str(ours) == str(theirs)
    # Outside, everything is initialised again
    assert build(config).trf_blocks[0].att.mask.sum() > 0
    assert torch.nn.Linear(50, 50).weight.std() > 0.05


def test_skip_init_skips_nothing_else():
    with SkipInit():
        x = torch.arange(6.0).reshape(2, 3)
        assert torch.equal(x.tril(), torch.tensor([[0.0, 0, 0], [3, 4, 0]]))
        assert torch.nn.init.normal_(tensor=x) is x
        assert torch.equal(torch.triu(x), x)
    assert torch.equal(torch.triu(x), torch.tensor([[0.0, 1, 2], [0, 4, 5]]))


def test_no_way_imports_a_computer_algebra_system(saved):
    """It would take more memory than many a model."""
    code = (
        "import sys\n"
        "from ch05.memory_efficient_loading.measure import WAYS\n"
        "for load, file in WAYS.values():\n"
        "    load(folder / file, config)\n"
        "    assert 'sympy' not in sys.modules, load\n"
    )
    measure.run_alone(exec, code, {"folder": saved.folder, "config": CONFIG})


@each_load
def test_half_precision_is_assigned_as_it_is_and_copied_as_float32(
    load, saved, tmp_path
):
    state_dict = {n: t.bfloat16() for n, t in saved.model.state_dict().items()}
    save_state(tmp_path / "half", state_dict)
    model = load(tmp_path / "half" / FILES[load.__name__], CONFIG)
    copies = load in (load_and_copy, load_sequentially)
    dtype = torch.float32 if copies else torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, state_dict[name].to(dtype))


def test_loads_the_course_s_own_checkpoints(saved, tmp_path):
    """As gpt_train writes them: a folder of the run, and the newest step in it."""
    for step, factor in ((1, 2), (2, 1)):
        checkpoint = tmp_path / f"checkpoints/step-00000{step}"
        checkpoint.mkdir(parents=True)
        tensors = load_file(saved.folder / "model.safetensors")
        tensors[KEY] *= factor
        save_file(tensors, checkpoint / "model.safetensors")
    for path in (tmp_path, checkpoint, checkpoint / "model.safetensors"):
        loaded = load_by_tensor(str(path), CONFIG).state_dict()
        assert torch.equal(loaded[KEY], saved.model.state_dict()[KEY])


def test_shards_are_those_of_the_hub(saved):
    """The names and the index that published checkpoints have."""
    folder = saved.folder / "shards"
    index = json.loads((folder / INDEX).read_text("utf-8"))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) >= measure.SHARDS
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files)
    assert index["weight_map"].keys() == saved.model.state_dict().keys()


# What is refused


def refusal(load, path):
    with pytest.raises(InputError) as error:
        load(path, CONFIG)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@each_load
def test_a_tensor_that_does_not_fit_is_named_with_both_shapes(load, saved, tmp_path):
    ours = saved.model.state_dict()
    file = FILES[load.__name__]
    for name, tensor, words in (
        (KEY, None, ["(32, 32)", "nothing"]),
        (MASK, None, ["(16, 16)", "nothing"]),
        ("lm_head.weight", torch.ones(2, 3), ["(2, 3)", "nothing"]),
        (KEY, torch.ones(32, 31), ["(32, 32)", "(32, 31)"]),
        (KEY, torch.ones(32 * 32), ["(32, 32)", "(1024,)"]),
        (KEY, torch.ones(32, 32, dtype=torch.int32), ["(32, 32)", "int32"]),
    ):
        spoilt = {n: t for n, t in ours.items() if n != name}
        if tensor is not None:
            spoilt[name] = tensor
        save_state(tmp_path / "spoilt", spoilt)
        message = refusal(load, tmp_path / "spoilt" / file)
        for word in (name, *words, str(tmp_path / "spoilt")):
            assert word in message


@each_load
def test_a_file_that_is_damaged_or_missing_is_named(load, folder, saved):
    path = folder / FILES[load.__name__]
    damaged = sorted(path.glob("*00003-of*"))[0] if path.is_dir() else path
    whole = damaged.read_bytes()
    for content in (
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:100],
        b"",
        b"It was a dark and stormy night.",
    ):
        damaged.write_bytes(content)
        assert str(damaged) in refusal(load, path)
    damaged.unlink()
    message = refusal(load, path)
    assert str(path) in message
    assert damaged.name in message
    damaged.mkdir()
    assert str(path) in refusal(load, path)
    assert str(folder / "nowhere") in refusal(load, folder / "nowhere")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "\udcff",
     '{"weight_map": {"a": ["b"]}}', '{"weight_map": {}}', '{"weight_map": {"a": ""}}',
     '{"weight_map": {"a": ".."}}', '{"weight_map": {"a": "/etc/hostname"}}'],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(text, folder):
    path = folder / "shards"
    (path / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert str(path) in refusal(load_sharded, path)


def test_shards_without_an_index_are_refused(folder):
    (folder / "shards" / INDEX).unlink()
    assert INDEX in refusal(load_sharded, folder / "shards")


def test_the_old_format_of_pytorch_cannot_be_mapped(saved, tmp_path):
    path = tmp_path / "old.pth"
    state_dict = saved.model.state_dict()
    torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    assert "mmap" in refusal(load_mapped, path)
    assert torch.equal(load_and_assign(path, CONFIG).state_dict()[KEY], state_dict[KEY])


# Memory


@pytest.fixture(scope="module")
def needs(tmp_path_factory):
    """What `measure` finds for its model of 210 MB; the files are gone afterwards."""
    folder = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        found = dict(measure.measure(measure.CONFIG))
    # The socket of multiprocessing stays as long as this process
    assert all(path.name.startswith("pymp-") for path in folder.iterdir())
    return found


on_linux = pytest.mark.skipif(
    math.isnan(read_memory().peak), reason="memory is measured on Linux"
)


def test_the_model_measured_is_large_and_its_logits_are_the_same(needs):
    assert measure.n_bytes(build_on_meta(measure.CONFIG)) >= 200e6
    assert needs.keys() == WAYS.keys()
    assert all(found.same_logits is True for found in needs.values())


@on_linux
def test_peaks_are_twice_or_once_the_model(needs):
    """The multiples that the README and the notebook tell."""
    for way in ("copy", "sequential"):
        assert 1.8 <= needs[way].loading <= 2.1
    for way in ("assign", "by-tensor"):
        assert 0.9 <= needs[way].loading <= 1.1
    assert 0.9 <= needs["sharded"].loading <= 1 + 1 / measure.SHARDS + 0.1
    assert -0.1 <= needs["mmap"].loading <= 0.1
    for way, found in needs.items():
        # The first forward pass needs the weights and little else
        assert found.forward >= found.loading
        assert found.forward <= max(found.loading, 1) + 0.1
        in_file = way == "mmap"
        assert found.own == pytest.approx(0 if in_file else 1, abs=0.1)
        assert found.files == pytest.approx(1 if in_file else 0, abs=0.1)


GREEDY = {
    "the file kept open": (
        ("    for name in", "    file = safe_open(path, framework='pt')\n"
                            "    for name in"),
        ("with safe_open(path, framework=\"pt\") as file:", "if True:"),
    ),
    "all tensors read at once": (
        ("    for name in", "    everything = torch.load(path.with_suffix('.pth'))\n"
                            "    for name in"),
        ("file.get_tensor(name)", "everything[name]"),
    ),
    "memory for a model beforehand": (
        ("build_on_meta(config)", "build(config)"),
        ("in model.state_dict()", "in {**(unused := model.state_dict())}"),
    ),
    "everything initialised on the meta device": (
        ("model = build_on_meta(config)",
         "with torch.device('meta'):\n        model = GPTModel(config)"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def four_layers():
    """Checkpoints of 60 MB, and what they are of; not kept as pytest's folders are."""
    config = {**measure.CONFIG, "n_layers": 4}
    with TemporaryDirectory() as folder:
        folder = Path(folder) / "model"
        measure.run_alone(measure.save_random_model, folder, config)
        yield {"folder": folder, "config": config}


@on_linux
@pytest.mark.parametrize("mistake", ["none", *GREEDY])
def test_needing_more_memory_is_noticed(mistake, four_layers):
    """The right function passes the limit, with a mistake in it it does not."""
    code = """
import inspect
from ch05.memory_efficient_loading import loading, measure

source = inspect.getsource(loading.load_by_tensor)
for old, new in changes:
    assert old in source, old
    source = source.replace(old, new)
exec(source, vars(loading))
measure.WAYS["mutant"] = (loading.load_by_tensor, "model.safetensors")
needs = measure.load_and_measure("mutant", folder, config)
assert needs.same_logits
assert (needs.loading > 1.5) == bool(changes), needs
"""
    changes = {"changes": GREEDY.get(mistake, ())}
    measure.run_alone(exec, code, four_layers | changes)


@on_linux
def test_the_reading_of_memory_is_right():
    code = """
import gc, mmap, tempfile
from pathlib import Path
import torch
from ch05.memory_efficient_loading.measure import read_memory

n = 2**26
def near(a, b):
    return abs(a - b) < n // 4  # PyTorch's code counts too

with tempfile.TemporaryFile() as file:
    file.write(bytes(n))
    file.flush()
    one = read_memory()
    x = torch.ones(n, dtype=torch.uint8)
    two = read_memory()
    del x
    three = read_memory()
    pages = mmap.mmap(file.fileno(), n)
    pages[::4096]
    four = read_memory()
assert near(two.now - one.now, n) and near(two.own - one.own, n)
assert near(three.now, one.now) and near(three.own, one.own)
assert near(four.now - three.now, n) and near(four.own, three.own)
assert near(two.peak, two.now) and near(three.peak, two.now)
"""
    measure.run_alone(exec, code, {})


def test_elsewhere_the_logits_are_compared(saved, monkeypatch):
    monkeypatch.setattr(measure.Path, "read_text", raises(FileNotFoundError()))
    monkeypatch.setattr(measure.Path, "write_text", raises(FileNotFoundError()))
    assert all(math.isnan(figure) for figure in read_memory())
    folder = saved.folder.with_name("random")
    measure.save_random_model(folder, CONFIG)
    found = measure.load_and_measure("assign", folder, CONFIG)
    assert all(math.isnan(multiple) for multiple in found[:4])
    assert found.same_logits is True


def test_other_logits_are_noticed(tmp_path):
    measure.save_random_model(tmp_path / "model", CONFIG)
    torch.manual_seed(1)
    torch.save(build(CONFIG).state_dict(), tmp_path / "model/model.pth")
    found = measure.load_and_measure("copy", tmp_path / "model", CONFIG)
    assert found.same_logits is False


def raises(error):
    def function(*_, **__):
        raise error

    return function


# The command line


def test_the_command_prints_a_table(capsys):
    measure.main(["--layers", "1", "--way", "assign"])
    title, columns, line = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Multiples of \d+ MB", title)
    assert columns.split()[1:5] == ["loading", "forward", "own", "files"]
    assert re.fullmatch(r"assign( +(-?\d\.\d\d|nan)){4}  yes", line)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--way", "fast"], "fast"),
        (["--layers", "0"], "0"),
        (["--layers", "100000"], "fewer layers"),
        (["here"], "here"),
    ],
)
def test_the_command_refuses_in_one_line(options, word, capsys):
    with pytest.raises(SystemExit) as error:
        measure.main(options)
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert word in message


# The notebook


def test_the_notebook_defines_what_the_module_ships():
    folder = ROOT / "ch05/memory_efficient_loading"
    notebook = cells(folder / "memory_efficient_loading.ipynb", "code")
    taught = definitions("\n".join(cell.source for cell in notebook))
    shipped = definitions((folder / "loading.py").read_text("utf-8"))
    assert {*FILES, "SkipInit", "build_on_meta"} <= taught.keys()
    for name in taught.keys() & shipped.keys():
        assert taught[name] == shipped[name], name
