"""OpenAI's weights: equal to transformers' GPT-2, and nothing wrong is ever loaded.

No published file is at hand in a test: tiny random weights are saved the way OpenAI's
are published, and a web server on this machine plays the hub.
"""

import hashlib
import inspect
import json
import os
import shutil
import socket
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from checks import WIDTH, close, gpt2_pairs, perturb
from helpers_server import Handler, serve
from safetensors.torch import load_file, save_file
from test_mutants import mutate

from ch02.cli import InputError
from ch02.dataloader import get_tokenizer
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05 import gpt_download, gpt_generate
from ch05.gpt_download import (
    CONFIG,
    SETTINGS,
    WEIGHTS,
    download_and_load_gpt2,
    free_memory,
    memory_needed,
    parameter_shapes,
)
from ch05.gpt_generate import (
    as_config,
    assign,
    load_gpt2,
    load_weights_into_gpt,
)
from ch05.gpt_train import calc_loss_batch

TINY = {"n_vocab": 50257, "n_ctx": 16, "n_embd": WIDTH, "n_head": 3, "n_layer": 2}
SMALL_VOCABULARY = {**TINY, "n_vocab": 97}


def transformers_gpt2(settings):
    """The transformers model for a settings dict, its output layer tied to wte."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=settings["n_vocab"],
        n_positions=settings["n_ctx"],
        n_embd=settings["n_embd"],
        n_head=settings["n_head"],
        n_layer=settings["n_layer"],
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def published(model):
    """The tensors of a transformers GPT-2 under the names OpenAI's have on the hub."""
    tensors = model.transformer.state_dict()
    n_ctx = model.config.n_positions
    mask = torch.ones(n_ctx, n_ctx).tril().view(1, 1, n_ctx, n_ctx)
    for i in range(model.config.n_layer):
        tensors[f"h.{i}.attn.bias"] = mask.clone()
    return tensors


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let 124M be a tiny model."""
    monkeypatch.setitem(SETTINGS, "124M", SMALL_VOCABULARY)
    return SMALL_VOCABULARY


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """LLM_COURSE_DATA: a folder that does not exist yet."""
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(123)
    model = perturb(transformers_gpt2(SMALL_VOCABULARY))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 5  # or attention would be all but uniform
    return model


@pytest.fixture(scope="module")
def hand_made(theirs, tmp_path_factory):
    """A models folder that holds 124M, as somebody would fill it by hand."""
    folder = tmp_path_factory.mktemp("models")
    theirs.save_pretrained(folder / "124M")
    save_file(published(theirs), folder / "124M" / WEIGHTS)
    return folder


@pytest.fixture
def models(hand_made, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(hand_made, tmp_path / "models")


def refused(models_dir, model_size="124M"):
    with pytest.raises(InputError) as caught:
        download_and_load_gpt2(model_size, models_dir)
    return str(caught.value)


def loaded(models_dir):
    settings, params = download_and_load_gpt2("124M", models_dir)
    model = GPTModel(as_config(settings)).eval()
    load_weights_into_gpt(model, params)
    return model


# The same model as transformers'


def check_equal(ours, theirs):
    """Equal logits and loss; returns the largest difference of a logit."""
    token_ids = torch.randint(theirs.config.vocab_size, (3, 16))
    with torch.no_grad():
        logits = ours(token_ids)
        expected = theirs(token_ids, labels=token_ids)
        loss = calc_loss_batch(token_ids[:, :-1], token_ids[:, 1:], ours, "cpu")
    difference = (logits - expected.logits).abs().max().item()
    assert difference <= 1e-5
    assert abs(loss - expected.loss).item() <= 1e-5
    assert logits.std() > 0.1  # something to compare
    return difference


LAYOUTS = {
    "as on the hub": published,
    "as transformers saves": lambda model: {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    },
    "with the output layer": lambda model: {
        name: tensor.clone() for name, tensor in model.state_dict().items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_their_weights_in_our_model(layout, theirs, models):
    tensors = LAYOUTS[layout](theirs)
    assert ("h.0.attn.bias" in tensors) == (layout == "as on the hub")
    save_file(tensors, models / "124M" / WEIGHTS)
    model = loaded(models)
    check_equal(model, theirs)
    for ours, other in gpt2_pairs(model, theirs):
        assert torch.equal(ours, other)
        assert ours.is_contiguous()
        assert ours.requires_grad
    # Untied, as in the book: a copy
    assert model.out_head.weight.data_ptr() != model.tok_emb.weight.data_ptr()


@torch.no_grad()
def test_our_weights_in_their_model(models):
    from transformers import GPT2LMHeadModel

    torch.manual_seed(5)
    ours = perturb(GPTModel(as_config(SMALL_VOCABULARY))).eval()
    ours.out_head.weight.copy_(ours.tok_emb.weight)  # what GPT-2 can express
    theirs = transformers_gpt2(SMALL_VOCABULARY)
    for tensor, other in gpt2_pairs(ours, theirs):
        other.copy_(tensor)
    folder = models / "124M"
    save_file(published(theirs), folder / WEIGHTS, {"format": "pt"})
    again = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
    check_equal(ours, again.eval())
    # And home again, bit for bit
    for name, tensor in loaded(models).state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name


def test_settings_and_params_are_the_book_s(theirs, hand_made, small):
    settings, params = download_and_load_gpt2("124M", hand_made)
    assert settings == small
    assert list(settings) == ["n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"]
    assert list(params) == ["blocks", "b", "g", "wpe", "wte"]
    assert len(params["blocks"]) == 2
    shapes = {
        "attn": {
            "c_attn": {"b": (3 * WIDTH,), "w": (WIDTH, 3 * WIDTH)},
            "c_proj": {"b": (WIDTH,), "w": (WIDTH, WIDTH)},
        },
        "ln_1": {"b": (WIDTH,), "g": (WIDTH,)},
        "ln_2": {"b": (WIDTH,), "g": (WIDTH,)},
        "mlp": {
            "c_fc": {"b": (4 * WIDTH,), "w": (WIDTH, 4 * WIDTH)},
            "c_proj": {"b": (WIDTH,), "w": (4 * WIDTH, WIDTH)},
        },
    }

    def measured(value):
        if isinstance(value, dict):
            return {key: measured(part) for key, part in value.items()}
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.float32
        return value.shape

    assert [measured(block) for block in params["blocks"]] == [shapes, shapes]
    block, other = params["blocks"][1], theirs.transformer.h[1]
    weight = other.attn.c_attn.weight.detach().numpy()
    np.testing.assert_array_equal(block["attn"]["c_attn"]["w"], weight)
    np.testing.assert_array_equal(params["g"], theirs.transformer.ln_f.weight.detach())
    # The dict of sizes is not handed out
    settings["n_embd"] = 0
    assert SETTINGS["124M"]["n_embd"] == WIDTH


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, theirs, models):
    tensors = {name: tensor.to(dtype) for name, tensor in published(theirs).items()}
    save_file(tensors, models / "124M" / WEIGHTS)
    model = loaded(models)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
    close(model.tok_emb.weight, tensors["wte.weight"].float(), 0)


MISTAKES = {
    "keys and values swapped": ("q_w, k_w, v_w", "q_w, v_w, k_w"),
    "biases of queries and keys swapped": ("q_b, k_b, v_b", "k_b, q_b, v_b"),
    "not transposed": ("weight\"] = w.T", "weight\"] = w.T if w.shape != w.T.shape"
                       " else w"),
    "norms swapped": ('block["ln_1"]), ("norm2", block["ln_2"])',
                      'block["ln_2"]), ("norm2", block["ln_1"])'),
    "last norm swapped": ('scale": params["g"]', 'scale": params["b"]'),
    "output layer not a copy of wte": ('"out_head.weight": params["wte"]',
                                       '"out_head.weight": params["wte"] * 2'),
    "every block is the first": ("in enumerate(params[\"blocks\"])",
                                 "in enumerate([params[\"blocks\"][0]] * 2)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_mapping_is_caught(mistake, theirs, hand_made):
    settings, params = download_and_load_gpt2("124M", hand_made)
    model = GPTModel(as_config(settings)).eval()
    mutate(load_weights_into_gpt, *MISTAKES[mistake])(model, params)
    with pytest.raises(AssertionError):
        check_equal(model, theirs)


# The four published models, without their memory

COUNTS = {
    "124M": 124_439_808,
    "355M": 354_823_168,
    "774M": 774_030_080,
    "1558M": 1_557_611_200,
}


@pytest.mark.parametrize("size", COUNTS)
def test_the_published_models(size, monkeypatch):
    monkeypatch.undo()  # the true 124M
    settings = SETTINGS[size]
    with torch.device("meta"):
        theirs = transformers_gpt2(settings)
        ours = GPTModel(as_config(settings))
    shapes = parameter_shapes(settings)
    body = theirs.transformer.state_dict()
    assert shapes == {name: tuple(tensor.shape) for name, tensor in body.items()}
    total = sum(np.prod(shape) for shape in shapes.values())
    assert total == COUNTS[size] == theirs.num_parameters()

    # Arrays of the right shape that are one number, and an assign that copies nothing
    def array(name):
        return np.broadcast_to(np.float32(0), shapes[name])

    def layer(name, weight="w"):
        return {weight: array(f"{name}.weight"), "b": array(f"{name}.bias")}

    params = {"wte": array("wte.weight"), "wpe": array("wpe.weight")}
    params |= layer("ln_f", "g")
    params["blocks"] = [
        {
            "attn": {p: layer(f"h.{i}.attn.{p}") for p in ("c_attn", "c_proj")},
            "mlp": {p: layer(f"h.{i}.mlp.{p}") for p in ("c_fc", "c_proj")},
            "ln_1": layer(f"h.{i}.ln_1", "g"),
            "ln_2": layer(f"h.{i}.ln_2", "g"),
        }
        for i in range(settings["n_layer"])
    ]
    assigned = []

    def instead(left, right):
        assert left.shape == right.shape
        assigned.append(left)
        return left

    monkeypatch.setattr(gpt_generate, "assign", instead)
    load_weights_into_gpt(ours, params)
    assert {id(p) for p in assigned} == {id(p) for p in ours.parameters()}
    untied = sum(parameter.numel() for parameter in ours.parameters())
    assert untied == COUNTS[size] + settings["n_vocab"] * settings["n_embd"]

    masks = sum(buffer.numel() for buffer in ours.buffers())
    on_the_way = 2 * settings["n_vocab"] * settings["n_embd"]
    assert memory_needed(settings) == 4 * (untied + masks + on_the_way)


def test_the_names_of_the_command_line_are_those_of_the_sizes():
    sizes = dict(gpt_generate.MODELS)
    assert sizes.pop("gpt2-mini") is None  # comes with the course
    assert list(sizes.values()) == list(SETTINGS) == list(COUNTS)
    assert set(gpt_download.REPOSITORIES) == set(SETTINGS)
    for name, size in sizes.items():
        repository = gpt_download.REPOSITORIES[size].removeprefix("openai-community/")
        assert repository == ("gpt2" if name == "gpt2-small" else name)


@pytest.mark.parametrize("size", ["125M", "", "124m", "gpt2", None, 124])
def test_no_other_sizes(size, tmp_path):
    with pytest.raises(ValueError, match="124M, 355M, 774M, 1558M"):
        download_and_load_gpt2(size, tmp_path)


# Weights that do not fit


def resaved(models, change):
    """Save the file again with changed tensors; returns its path."""
    path = models / "124M" / WEIGHTS
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    return path


SPOILED = {
    "missing": (lambda t: t.pop("h.1.ln_2.bias"), "h.1.ln_2.bias", "(24,)", "nothing"),
    "surplus": (
        lambda t: t.update({"h.2.ln_1.bias": torch.zeros(24)}),
        "h.2.ln_1.bias",
        "nothing",
        "(24,)",
    ),
    "transposed": (
        lambda t: t.update({"h.0.mlp.c_fc.weight": torch.zeros(96, 24)}),
        "h.0.mlp.c_fc.weight",
        "(24, 96)",
        "(96, 24)",
    ),
    "a longer context": (
        lambda t: t.update({"wpe.weight": torch.zeros(32, 24)}),
        "wpe.weight",
        "(16, 24)",
        "(32, 24)",
    ),
    "whole numbers": (
        lambda t: t.update({"ln_f.bias": torch.zeros(24, dtype=torch.int64)}),
        "ln_f.bias",
        "(24,)",
        "(24,) I64",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_file_that_does_not_fit(case, models):
    change, name, ours, theirs = SPOILED[case]
    path = resaved(models, change)
    message = refused(models)
    assert f"{path} is of another architecture: for {name} the model has" in message
    assert message.endswith(f"the model has {ours}, the file {theirs}")


def test_another_output_layer(theirs, models):
    tensors = {name: t.clone() for name, t in theirs.state_dict().items()}
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, models / "124M" / WEIGHTS)
    assert "lm_head.weight differs from wte.weight" in refused(models)


def renamed(key, change):
    def spoil(params):
        params[key] = change(params[key])

    return spoil


MISFITS = {
    "a block too few": (
        lambda params: params["blocks"].pop(),
        "trf_blocks.1.att.W_key.bias the model has (24,), the weights have nothing",
    ),
    "a block too many": (
        lambda params: params["blocks"].append(params["blocks"][0]),
        "trf_blocks.2.att.W_key.bias the model has nothing, the weights have (24,)",
    ),
    "a longer context": (
        lambda params: params.update(wpe=np.zeros((32, 24))),
        "pos_emb.weight the model has (16, 24), the weights have (32, 24)",
    ),
    "queries, keys and values of unequal width": (
        lambda params: params["blocks"][0]["attn"]["c_attn"].update(
            w=np.zeros((24, 73))
        ),
        "trf_blocks.0.att.W_query.weight the model has (24, 24), the weights have "
        "(25, 24)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_misfits_leave_the_model_unchanged(case, hand_made):
    settings, params = download_and_load_gpt2("124M", hand_made)
    spoil, expected = MISFITS[case]
    spoil(params)
    model = GPTModel(as_config(settings))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights_into_gpt(model, params)
    assert str(caught.value).startswith(f"for {expected}")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_model_without_biases_is_told_so(hand_made):
    settings, params = download_and_load_gpt2("124M", hand_made)
    model = GPTModel({**as_config(settings), "qkv_bias": False})
    with pytest.raises(InputError, match="qkv_bias True") as caught:
        load_weights_into_gpt(model, params)
    name = "trf_blocks.0.att.W_key.bias"
    assert f"{name} the model has nothing, the weights have (24,)" in str(caught.value)


def test_assign():
    left = torch.nn.Parameter(torch.zeros(2, 3))
    right = np.arange(6.0).reshape(3, 2)
    new = assign(left, right.T)
    assert isinstance(new, torch.nn.Parameter)
    assert new.dtype == torch.float32
    assert new.is_contiguous()
    assert new.tolist() == right.T.tolist()
    right[0, 0] = 9  # a copy
    assert new[0, 0] == 0
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        assign(left, right)


# Files that are there


def test_files_put_there_by_hand_need_no_network(hand_made, data, monkeypatch):
    def asked(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(gpt_download, "download", asked)
    loaded(hand_made)
    # The weights alone are enough, also in LLM_COURSE_DATA
    folder = data / "gpt2" / "124M"
    folder.mkdir(parents=True)
    shutil.copy(hand_made / "124M" / WEIGHTS, folder)
    loaded(data / "nowhere")
    assert os.listdir(folder) == [WEIGHTS]


@pytest.mark.parametrize("length", [0, 7, 8, 500, 0.5, -1, 1])
def test_a_file_cut_off_or_continued(length, models):
    path = models / "124M" / WEIGHTS
    content = path.read_bytes()
    if length == 1:
        content += b"\0"
    else:
        content = content[: int(length * len(content)) if length == 0.5 else length]
    path.write_bytes(content)
    message = refused(models)
    assert f"{path} is damaged or cut off" in message
    assert "delete it" in message
    assert path.read_bytes() == content


def test_a_file_of_anything_else(models):
    path = models / "124M" / WEIGHTS
    for content in (b"The river came.", b"\0" * 5000, b"\x80\x02}q\x00." * 500):
        path.write_bytes(content)
        assert str(path) in refused(models)


def test_a_file_with_another_checksum(models):
    """As written by a download; a byte of a weight is not seen otherwise."""
    path = models / "124M" / WEIGHTS
    content = bytearray(path.read_bytes())
    sha256 = hashlib.sha256(content).hexdigest()
    path.with_name(f"{WEIGHTS}.sha256").write_text(f"{sha256}  {WEIGHTS}\n")
    loaded(models)
    content[-1] ^= 1
    path.write_bytes(content)
    message = refused(models)
    assert f"{path} is cut off or altered" in message
    path.with_name(f"{WEIGHTS}.sha256").write_bytes(b"")
    assert "cut off or altered" in refused(models)


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("n_head", 4, "3"),
        ("n_embd", 1024, "24"),
        ("activation_function", "gelu", "'gelu_new'"),
        ("layer_norm_epsilon", 1e-6, "1e-05"),
        ("model_type", "llama", "'gpt2'"),
        ("scale_attn_by_inverse_layer_idx", True, "False"),
    ],
)
def test_the_config_of_another_model(key, value, right, models):
    path = models / "124M" / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, key: value}))
    message = refused(models)
    expected = f"{path} is of another model: {key} is {value!r}, in GPT-2 124M {right}"
    assert message == expected


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"[1]", b"\xff\xfe", b"null"])
def test_a_config_that_is_none(content, models):
    (models / "124M" / CONFIG).write_bytes(content)
    assert "not a model's config" in refused(models)


# Memory


@pytest.mark.parametrize("size", COUNTS)
def test_too_little_memory_is_said_before_anything_happens(size, tmp_path, monkeypatch):
    monkeypatch.undo()
    asked = []
    monkeypatch.setattr(gpt_download, "find_or_download", lambda *_: asked.append(1))
    needed = memory_needed(SETTINGS[size])
    monkeypatch.setattr(gpt_download, "free_memory", lambda: needed - 1)
    message = refused(tmp_path, size)
    assert message.startswith(f"GPT-2 {size} needs {needed / 1e9:.1f} GB of memory, ")
    assert "choose a smaller" in message
    assert len(message.splitlines()) == 1
    assert asked == []
    # One byte more, or a system that does not tell
    for free in (needed, None):
        monkeypatch.setattr(gpt_download, "free_memory", lambda free=free: free)
        gpt_download.check_memory(size)


def test_free_memory_is_a_sensible_number(monkeypatch, tmp_path):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**26 < free_memory() <= total
    monkeypatch.setattr(gpt_download, "Path", lambda _: tmp_path / "missing")
    assert free_memory() == total  # as on macOS
    monkeypatch.delattr(os, "sysconf")
    assert free_memory() is None


# A hub that misbehaves


class Hub(Handler):
    """Plays the hub: what GET does is the first part of the path, HEAD mostly right.

    `server.requests` gets a pair for each GET: the behaviour and the Range asked for.
    """

    @property
    def behaviour(self):
        return self.path.split("/")[1]

    def do_HEAD(self):
        self.server.asked.set()
        size, sha256 = len(self.server.content), self.server.sha256
        status = {"missing": 404, "busy": 503}.get(self.behaviour, 200)
        headers = {"X-Repo-Commit": "0" * 40, "X-Linked-Etag": f'"{sha256}"'}
        headers["X-Linked-Size"] = size
        if self.behaviour == "larger":
            headers["X-Linked-Size"] = size + 1
        if self.behaviour == "weak":  # no SHA-256
            headers["X-Linked-Etag"] = '"../../5d41402abc4b2a76"'
        if self.behaviour == "login":
            headers = {}
        if self.behaviour in ("moved", "circle"):
            # To another host, as the hub does
            status = 302
            headers["Location"] = self.elsewhere
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", "0" if status != 200 else str(size))
        self.end_headers()

    def do_GET(self):
        self.server.requests.append((self.behaviour, self.headers.get("Range")))
        getattr(self, f"answer_{self.behaviour}")()

    @property
    def elsewhere(self):
        target = {"moved": "right", "circle": "circle"}[self.behaviour]
        return f"http://localhost:{self.server.server_port}/{target}/file"

    def send(self, content=None, end=None, length=None):
        """Send content from the wanted byte up to end, announcing all of it."""
        content = self.server.content if content is None else content
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        total = len(content)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        self.wfile.write(content[start:end])
        self.wfile.flush()

    @property
    def half(self):
        return len(self.server.content) // 2

    def answer_right(self):
        self.send()

    answer_larger = answer_right

    def answer_hiccup(self):
        """Break off after the first half, then behave."""
        first = self.headers.get("Range") is None
        self.send(end=self.half if first else None)

    def answer_cut(self):
        self.send(end=self.half)

    def answer_stall(self):
        self.send(end=self.half)
        self.server.stopping.wait(20)

    def answer_corrupt(self):
        content = bytearray(self.server.content)
        content[-1] ^= 1
        self.send(bytes(content))

    def answer_longer(self):
        self.send(self.server.content + b"\0")

    def answer_portal(self):
        self.answer(b"<html>Please log in to this network</html>")

    def answer_ignorant(self):
        """Send everything whatever the Range."""
        self.answer(self.server.content)

    def answer_moved(self):
        self.answer(b"", status=302, Location=self.elsewhere)

    answer_circle = answer_moved


@pytest.fixture(scope="module")
def server(hand_made):
    with serve((hand_made / "124M" / WEIGHTS).read_bytes(), Hub) as running:
        running.sha256 = hashlib.sha256(running.content).hexdigest()
        running.asked = threading.Event()
        yield running


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """Make HF_ENDPOINT the server; returns a function that chooses its behaviour."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    # Between two tries it would wait
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    server.requests.clear()

    def behave(behaviour):
        endpoint = f"http://127.0.0.1:{server.server_port}/{behaviour}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        timeout = 0.2 if behaviour == "stall" else 10
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", timeout)
        return f"{endpoint}/openai-community/gpt2/resolve/main/{WEIGHTS}"

    return behave


def assert_downloaded(models_dir, server):
    """Only what belongs there, each complete."""
    folder = models_dir / "124M"
    assert (folder / WEIGHTS).read_bytes() == server.content
    written = (folder / f"{WEIGHTS}.sha256").read_text()
    assert written == f"{server.sha256}  {WEIGHTS}\n"
    others = set(os.listdir(folder)) - {WEIGHTS, f"{WEIGHTS}.sha256"}
    assert others <= {f"{WEIGHTS}.lock"}


@pytest.mark.parametrize("behaviour", ["right", "moved", "hiccup", "ignorant"])
def test_a_download(behaviour, hub, server, theirs, tmp_path):
    hub(behaviour)
    check_equal(loaded(tmp_path), theirs)
    assert_downloaded(tmp_path, server)
    asked = list(server.requests)
    if behaviour == "hiccup":  # the second half only
        assert asked == [
            ("hiccup", None),
            ("hiccup", f"bytes={len(server.content) // 2 // 1024 * 1024}-"),
        ]
    loaded(tmp_path)
    assert server.requests == asked  # the second time nobody is asked


BAD = {
    "missing": "404",
    "busy": "503",
    "circle": "redirect",
    "login": "size and SHA-256",
    "weak": "size and SHA-256",
    "cut": "peer closed connection",
    "stall": "timed out",
    "corrupt": "not the file published",
    "longer": "not the file published",
    "larger": "not the file published",
    "portal": "not the file published",
}
KEPT = ("cut", "stall")  # what came was right as far as it went


@pytest.mark.parametrize("behaviour", BAD)
def test_a_bad_source_leaves_nothing_to_load(behaviour, hub, server, tmp_path, data):
    url = hub(behaviour)
    message = refused(tmp_path)
    first, *tried, last = message.splitlines()
    assert first == "the weights of GPT-2 124M could not be had. Tried:"
    path = tmp_path / "124M" / WEIGHTS
    assert tried[0] == f"  {path}: not there"
    assert tried[1] == f"  {data / 'gpt2' / '124M' / WEIGHTS}: not there"
    assert tried[2].startswith(f"  {url}: ")
    assert any(words in tried[2] for words in BAD[behaviour].split("|")), tried[2]
    assert len(tried) == 3 + (behaviour in KEPT)
    # Where to put it by hand, and what to do without it
    assert f"by hand: {path}, " in last
    assert "HF_ENDPOINT" in last
    assert "python -m ch05.gpt_train" in last

    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size]
    assert [p.suffix for p in files] == [".partial"] * (behaviour in KEPT)
    # Once the network is better
    hub("right")
    loaded(tmp_path)
    assert_downloaded(tmp_path, server)


@pytest.mark.parametrize("then", ["right", "ignorant", "corrupt"])
@pytest.mark.parametrize("behaviour", ["cut", "stall"])
def test_the_next_run_goes_on_where_the_last_stopped(
    behaviour, then, hub, server, tmp_path
):
    hub(behaviour)
    message = refused(tmp_path)
    (partial,) = (tmp_path / "124M").glob("*.partial")
    arrived = partial.stat().st_size
    assert len(server.content) // 2 - 1024 <= arrived <= len(server.content) // 2
    assert partial.read_bytes() == server.content[:arrived]
    assert f"{arrived / 1e6:,.1f} MB have arrived; the next try goes on" in message
    server.requests.clear()
    hub(then)
    if then == "corrupt":
        assert "SHA-256" in refused(tmp_path)
        assert not partial.exists()
        hub("right")
    loaded(tmp_path)
    assert_downloaded(tmp_path, server)
    assert server.requests[0] == (then, f"bytes={arrived}-")


def test_stopped_between_the_last_byte_and_the_renaming(hub, server, tmp_path):
    partial = tmp_path / "124M" / f"{WEIGHTS}.{server.sha256[:8]}.partial"
    partial.parent.mkdir()
    partial.write_bytes(server.content)
    hub("right")
    loaded(tmp_path)
    assert_downloaded(tmp_path, server)
    assert server.requests == []


@pytest.mark.parametrize("content", [b"\0" * 500, b"\0" * 500_000])
def test_a_partial_file_of_something_else(content, hub, server, tmp_path):
    partial = tmp_path / "124M" / f"{WEIGHTS}.{server.sha256[:8]}.partial"
    partial.parent.mkdir()
    partial.write_bytes(content)
    hub("right")
    assert "SHA-256" in refused(tmp_path)
    loaded(tmp_path)
    assert_downloaded(tmp_path, server)


def test_ctrl_c_keeps_what_has_arrived(hub, server, tmp_path, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    hub("stall")
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        download_and_load_gpt2("124M", tmp_path)
    (partial,) = (tmp_path / "124M").glob("*.partial")
    assert partial.stat().st_size > 0
    hub("right")
    loaded(tmp_path)
    assert_downloaded(tmp_path, server)


def test_a_second_process_waits_for_the_first(hub, server, tmp_path):
    from huggingface_hub.utils import WeakFileLock

    url, path = hub("right"), tmp_path / "124M" / WEIGHTS
    path.parent.mkdir()
    server.asked.clear()
    second = threading.Thread(target=gpt_download.download, args=(url, path))
    with WeakFileLock(f"{path}.lock"):
        second.start()
        assert server.asked.wait(10)
        server.stopping.wait(0.2)  # time to make a mistake
        path.write_bytes(b"downloaded by the first")
    second.join(10)
    assert server.requests == []
    assert path.read_bytes() == b"downloaded by the first"


def test_no_network(hub, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    message = refused(tmp_path)
    assert f"{endpoint}/openai-community/gpt2/resolve/main/{WEIGHTS}: Conn" in message
    assert os.listdir(tmp_path) == []


def test_without_a_mirror_the_hub_is_asked(tmp_path, monkeypatch):
    """Not reached: HF_HUB_OFFLINE is set in all tests."""
    message = refused(tmp_path)
    assert "https://huggingface.co/openai-community/gpt2/resolve/main/" in message
    assert "OfflineModeIsEnabled" in message
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert refused(tmp_path) == message


def test_a_full_disk_is_noticed_before(hub, server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    hub("right")
    assert f"{len(server.content):,} bytes, the disk only 1,000 left" in refused(
        tmp_path
    )
    assert server.requests == []


@pytest.mark.parametrize("target", ["file", "file/deeper"])
def test_a_folder_that_is_a_file(target, hub, tmp_path):
    (tmp_path / "file").write_bytes(b"a file")
    hub("right")
    message = refused(tmp_path / target)
    assert str(tmp_path / target) in message
    assert (tmp_path / "file").read_bytes() == b"a file"


def test_a_token_does_not_leave_the_endpoint(hub, server, tmp_path, monkeypatch):
    seen = []
    send = Hub.send

    def noted(self, *args, **kwargs):
        host = self.headers["Host"].partition(":")[0]
        seen.append((host, self.headers.get("Authorization")))
        send(self, *args, **kwargs)

    monkeypatch.setattr(Hub, "send", noted)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert urlsplit(hub("right")).hostname == "127.0.0.1"
    monkeypatch.setenv("HF_ENDPOINT", os.environ["HF_ENDPOINT"] + "/")
    loaded(tmp_path / "one")
    hub("moved")
    loaded(tmp_path / "two")
    assert seen == [("127.0.0.1", "Bearer hf_secret"), ("localhost", None)]


# The command line


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A models folder with a tiny 124M that has GPT-2's vocabulary."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("words")
    model = perturb(transformers_gpt2(TINY))
    model.save_pretrained(folder / "124M")
    save_file(published(model), folder / "124M" / WEIGHTS)
    return folder


@pytest.fixture
def tiny_words(monkeypatch):
    monkeypatch.setitem(SETTINGS, "124M", TINY)


def options(folder, *more):
    fixed = ("--model", "gpt2-small", "--device", "cpu", "--max-new-tokens", 6)
    prompt = ("--prompt", "The river")
    return [str(word) for word in (*fixed, *prompt, "--models-dir", folder, *more)]


@pytest.mark.parametrize("choice", [(), ("--temperature", 1, "--top-k", 20)])
def test_the_command_line_writes_what_transformers_would(
    choice, words, tiny_words, capsys
):
    from transformers import GPT2LMHeadModel

    gpt_generate.cli(options(words, *choice))
    written = capsys.readouterr()
    theirs = GPT2LMHeadModel.from_pretrained(words / "124M").eval()
    ids = torch.tensor([get_tokenizer().encode("The river")])
    torch.manual_seed(123)
    expected = gpt_generate.generate(
        lambda idx: theirs(idx).logits,
        ids,
        6,
        16,
        temperature=1.0 if choice else 0.0,
        top_k=20 if choice else None,
    )
    assert written.out == get_tokenizer().decode(expected[0].tolist()) + "\n"
    assert written.err == ""


def test_the_course_s_data_folder_is_the_default(words, tiny_words, data, capsys):
    gpt_generate.cli(options(words))
    expected = capsys.readouterr().out
    shutil.copytree(words, data / "gpt2")
    arguments = options(words)
    at = arguments.index("--models-dir")
    del arguments[at : at + 2]
    gpt_generate.cli(arguments)
    assert capsys.readouterr().out == expected

    shutil.rmtree(data / "gpt2")
    with pytest.raises(SystemExit):
        gpt_generate.cli(arguments)
    error = capsys.readouterr().err
    assert error.count("not there") == 1
    assert f"by hand: {data / 'gpt2' / '124M' / WEIGHTS}, " in error


def test_the_book_s_main(words, tiny_words, tmp_path, monkeypatch, capsys):
    parameters = list(inspect.signature(gpt_generate.main).parameters)
    assert parameters == ["gpt_config", "input_prompt", "model_size", "device"]
    shutil.copytree(words, tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    gpt_generate.main(as_config(TINY), "The river", "124M", "cpu")
    printed = capsys.readouterr().out
    assert printed.startswith("Output text:\n The river")
    # Made of tokens that sampling with a seed chooses
    model, _ = load_gpt2("gpt2-small", words)
    ids = torch.tensor([get_tokenizer().encode("The river")])
    torch.manual_seed(123)
    ids = gpt_generate.generate(model, ids, 25, 16, temperature=1.0, top_k=50)
    assert get_tokenizer().decode(ids[0].tolist()) in printed


def test_loading_does_not_touch_the_reader_s_seed(hand_made):
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    model, config = load_gpt2("gpt2-small", hand_made)
    assert torch.equal(torch.rand(3), expected)
    assert not model.training
    assert config == as_config(SMALL_VOCABULARY)
    assert config.keys() == GPT_CONFIG_124M.keys()


REFUSALS = {
    "both": (["--model", "gpt2-small", "--checkpoint", "run"], "not allowed with"),
    "unknown": (["--model", "gpt3"], "invalid choice: 'gpt3'"),
    "models-dir alone": (["--models-dir", "x"], "--models-dir"),
    "not there": (["--model", "gpt2-small", "--models-dir", "x"], "could not be had"),
    "too large": (["--model", "gpt2-xl"], "GPT-2 1558M needs 7"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_the_command_line_refuses(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpt_download, "free_memory", lambda: 1e9)
    arguments, expected = REFUSALS[case]
    with pytest.raises(SystemExit) as end:
        gpt_generate.cli(["--prompt", "The", *arguments])
    assert end.value.code == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("gpt_generate: ")
    assert expected in written.err
    assert "Traceback" not in written.err
    if case != "not there":
        assert len(written.err.splitlines()) == 1
    assert os.listdir(tmp_path) == []
