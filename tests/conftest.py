"""Shared by all tests: a clean environment, the book's text where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ch02.download import THE_VERDICT, data_dir, has_right_checksum

ROOT = Path(__file__).parent.parent

# Notebook kernels and scripts inherit this: no test may reach for a hub
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
os.environ.pop("LLM_COURSE_TEXT", None)
os.environ.pop("LLM_COURSE_SIZE", None)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def the_verdict(monkeypatch):
    """Run a test on the book's text; skipped, with the way to get it, if not there."""
    if not has_right_checksum(data_dir() / THE_VERDICT.name, THE_VERDICT.sha256):
        pytest.skip(f"needs {THE_VERDICT.name} in LLM_COURSE_DATA")
    monkeypatch.setenv("LLM_COURSE_TEXT", "the-verdict")


@pytest.fixture
def run():
    """Run a command as a process of its own; returns the CompletedProcess."""

    def run_process(*command, cwd=ROOT, timeout=300, **options):
        command = [
            sys.executable if part == "python" else str(part) for part in command
        ]
        return subprocess.run(
            command,
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            encoding="utf-8",
            **options,
        )

    return run_process
