"""OpenAI's GPT-2 weights: found or downloaded, checked, read (section 5.5).

`download_and_load_gpt2` returns what the book's function of that name returns, but from
the safetensors files of the Hugging Face hub, or of a mirror named in HF_ENDPOINT. A
file put by hand into MODELS_DIR/124M, or into gpt2/124M in LLM_COURSE_DATA, counts as
downloaded. Not here: putting the weights into a model (`gpt_generate.py`).
"""

import json
import math
import os
import re
import shutil
from pathlib import Path

from ch02.cli import InputError
from ch02.download import data_dir, has_right_checksum

WEIGHTS, CONFIG = "model.safetensors", "config.json"
REPOSITORIES = {
    "124M": "openai-community/gpt2",
    "355M": "openai-community/gpt2-medium",
    "774M": "openai-community/gpt2-large",
    "1558M": "openai-community/gpt2-xl",
}
SETTINGS = {
    size: {"n_vocab": 50257, "n_ctx": 1024, "n_embd": C, "n_head": H, "n_layer": L}
    for size, C, H, L in (
        ("124M", 768, 12, 12),
        ("355M", 1024, 16, 24),
        ("774M", 1280, 20, 36),
        ("1558M", 1600, 25, 48),
    )
}


def download_and_load_gpt2(model_size, models_dir):
    """Return (settings, params) of one of OpenAI's four models (section 5.5).

    model_size: "124M", "355M", "774M" or "1558M"; models_dir: the file is kept in
    models_dir/model_size. settings: dict of n_vocab, n_ctx, n_embd, n_head, n_layer.
    params: dict of blocks, b, g, wpe, wte with float32 arrays that the system reads
    from the file when they are used. Raises InputError, which is a ValueError.
    """
    if model_size not in SETTINGS:
        sizes = ", ".join(SETTINGS)
        raise InputError(f"there is no GPT-2 of size {model_size!r}: choose {sizes}")
    check_memory(model_size)
    path = find_or_download(model_size, models_dir)
    try:
        check_file(path, model_size)
        return dict(SETTINGS[model_size]), read_params(path, SETTINGS[model_size])
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}") from None


def find_or_download(model_size, models_dir):
    """Return the path of the weights file: one that is there, else a new one."""
    folders = (Path(models_dir).expanduser(), data_dir() / "gpt2")
    paths = [folder / model_size / WEIGHTS for folder in folders]
    problems = []
    for path in dict.fromkeys(paths):
        try:
            if path.is_file():
                return path
            problems.append(f"{path}: not there")
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")

    from huggingface_hub import hf_hub_url

    mirror = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    url = hf_hub_url(REPOSITORIES[model_size], WEIGHTS, endpoint=mirror)
    try:
        download(url, paths[0])
    except Exception as error:  # a network can fail in many ways
        reason = " ".join(str(error).split())[:200]
        problems.append(f"{url}: {type(error).__name__}: {reason}")
    else:
        return paths[0]
    arrived = sum(p.stat().st_size for p in paths[0].parent.glob("*.partial"))
    if arrived:
        size = f"{arrived / 1e6:,.1f} MB"
        problems.append(f"{size} have arrived; the next try goes on from there")
    tried = "".join(f"\n  {problem}" for problem in problems)
    raise InputError(
        f"the weights of GPT-2 {model_size} could not be had. Tried:{tried}\n"
        f"Put {WEIGHTS} of {REPOSITORIES[model_size]} there by hand: {paths[0]}, name "
        "a mirror in the variable HF_ENDPOINT, or train a model of your own "
        "(python -m ch05.gpt_train)."
    )


def download(url, path):
    """Download a large file of the hub, going on where an earlier try stopped.

    Its SHA-256 must be the one the hub publishes; it is kept beside the file, in
    `sha256sum` format. What has arrived so far is in a file called ….partial.
    """
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers, logging

    logging.set_verbosity_error()
    published = get_hf_file_metadata(url)
    size, sha256 = published.size, published.etag
    if not size or not re.fullmatch("[0-9a-f]{64}", sha256 or ""):
        raise ValueError("the server does not tell the file's size and SHA-256")

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{sha256[:8]}.partial")
    with WeakFileLock(f"{path}.lock"):
        if path.is_file():  # another process was at it
            return
        with partial.open("ab") as file:
            arrived = file.tell()
            free = shutil.disk_usage(path.parent).free
            if free < size - arrived:
                raise OSError(f"it has {size:,} bytes, the disk only {free:,} left")
            if arrived < size:
                headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
                name = f"GPT-2 {path.parent.name}"
                http_get(
                    url,
                    file,
                    resume_size=arrived,
                    headers=headers,
                    displayed_filename=name,
                )
        complete = partial.stat().st_size == size
        if not complete or not has_right_checksum(partial, sha256):
            partial.unlink()
            raise ValueError(f"it is not the file published: SHA-256 {sha256}")
        _checksum_file(path).write_text(f"{sha256}  {path.name}\n", encoding="utf-8")
        os.replace(partial, path)


def _checksum_file(path):
    return path.with_name(f"{path.name}.sha256")


def check_file(path, model_size):
    """Raise InputError if the checksum or the config beside a file says it is wrong.

    Both are optional: a file put there by hand may stand alone.
    """
    if _checksum_file(path).is_file():
        written = _checksum_file(path).read_text("utf-8", errors="replace")
        if not has_right_checksum(path, written[:64]):
            raise InputError(
                f"{path} is cut off or altered: its SHA-256 is not the one in "
                f"{_checksum_file(path).name}. Delete it to download it again"
            )
    config_path = path.with_name(CONFIG)
    if not config_path.is_file():
        return
    settings = SETTINGS[model_size]
    # What the names and shapes of the weights do not show, too
    expected = {
        "model_type": "gpt2",
        "vocab_size": settings["n_vocab"],
        "n_positions": settings["n_ctx"],
        "n_embd": settings["n_embd"],
        "n_head": settings["n_head"],
        "n_layer": settings["n_layer"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
    }
    try:
        config = dict(json.loads(config_path.read_text("utf-8")))
    except (ValueError, TypeError):
        raise InputError(f"{config_path} is not a model's config") from None
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise InputError(
                f"{config_path} is of another model: {key} is {config[key]!r}, in "
                f"GPT-2 {model_size} {value!r}"
            )


def parameter_shapes(settings):
    """The shape of each weight, by its name in the published file.

    A linear layer is stored as (inputs, outputs), and queries, keys and values are one
    layer. The output layer is missing: it is wte.
    """
    C = settings["n_embd"]
    block = {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (C, 3 * C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (C, 4 * C),
        "mlp.c_fc.bias": (4 * C,),
        "mlp.c_proj.weight": (4 * C, C),
        "mlp.c_proj.bias": (C,),
    }
    shapes = {
        "wte.weight": (settings["n_vocab"], C),
        "wpe.weight": (settings["n_ctx"], C),
        "ln_f.weight": (C,),
        "ln_f.bias": (C,),
    }
    for i in range(settings["n_layer"]):
        shapes |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def read_params(path, settings):
    """Return a weights file as the nested dict of the book (section 5.5).

    Names and shapes are compared with the settings before anything is read. Masks are
    left out: the model has its own.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    masks = (".attn.bias", ".attn.masked_bias")
    expected = parameter_shapes(settings)
    try:
        with safe_open(path, framework="pt") as file:
            names = {
                name.removeprefix("transformer."): name
                for name in file.keys()  # noqa: SIM118 (not a dict)
                if not name.endswith(masks)
            }
            if "lm_head.weight" in names:
                expected["lm_head.weight"] = expected["wte.weight"]
            _compare(path, {n: file.get_slice(names[n]) for n in names}, expected)
            tensors = {n: file.get_tensor(name).float() for n, name in names.items()}
    except SafetensorError as error:
        raise InputError(
            f"{path} is damaged or cut off ({error}): delete it to download it again"
        ) from None
    if "lm_head.weight" in tensors and not torch.equal(
        tensors["lm_head.weight"], tensors["wte.weight"]
    ):
        raise InputError(
            f"{path} is of another architecture: lm_head.weight differs from "
            "wte.weight, in GPT-2 they are the same"
        )

    def layer(name, weight="w"):
        return {
            "b": tensors[f"{name}.bias"].numpy(),
            weight: tensors[f"{name}.weight"].numpy(),
        }

    def block(name):
        return {
            "attn": {
                "c_attn": layer(f"{name}.attn.c_attn"),
                "c_proj": layer(f"{name}.attn.c_proj"),
            },
            "ln_1": layer(f"{name}.ln_1", "g"),
            "ln_2": layer(f"{name}.ln_2", "g"),
            "mlp": {
                "c_fc": layer(f"{name}.mlp.c_fc"),
                "c_proj": layer(f"{name}.mlp.c_proj"),
            },
        }

    return {
        "blocks": [block(f"h.{i}") for i in range(settings["n_layer"])],
        **layer("ln_f", "g"),
        "wpe": tensors["wpe.weight"].numpy(),
        "wte": tensors["wte.weight"].numpy(),
    }


def _compare(path, found, expected):
    """Raise an InputError that names the first weight that is not as expected."""

    def describe(name):
        if name not in found:
            return "nothing"
        dtype = found[name].get_dtype()
        kind = "" if dtype in ("F32", "F16", "BF16", "F64") else f" {dtype}"
        return f"{tuple(found[name].get_shape())}{kind}"

    for name in sorted(expected.keys() | found.keys()):
        ours, theirs = str(expected.get(name, "nothing")), describe(name)
        if ours != theirs:
            raise InputError(
                f"{path} is of another architecture: for {name} the model has {ours}, "
                f"the file {theirs}"
            )


def memory_needed(settings):
    """Bytes it takes to load a GPTModel: 4 per number in its weights and masks.

    The token embedding counts four times: it is also the output layer, and twice that
    is on the way while weights are copied.
    """
    shapes = parameter_shapes(settings)
    masks = settings["n_layer"] * settings["n_ctx"] ** 2
    copies = 3 * math.prod(shapes["wte.weight"])
    return 4 * (sum(map(math.prod, shapes.values())) + masks + copies)


def free_memory():
    """Bytes of memory to be had; where the system does not tell, all there are or None.

    Read as in setup/check_environment.py, which must work before the course is there.
    """
    try:
        table = Path("/proc/meminfo").read_text()  # Linux
        return int(re.search(r"MemAvailable: +(\d+) kB", table).group(1)) * 1024
    except (OSError, AttributeError):
        pass
    if os.name == "nt":
        import ctypes

        # MEMORYSTATUSEX: two 32-bit numbers, then seven of 64 bits
        status = (ctypes.c_uint64 * 8)(64)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status[2]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def check_memory(model_size):
    """Raise InputError if a model of this size does not fit into free memory."""
    needed, free = memory_needed(SETTINGS[model_size]), free_memory()
    if free is not None and free < needed:
        raise InputError(
            f"GPT-2 {model_size} needs {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free: close other programs or choose a smaller "
            "model"
        )
