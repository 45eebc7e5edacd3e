"""A model is named by all bytes of its weights, which are read once: see pipeline/stillhouse/models/weights.py."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from stillhouse.models import weights
from stillhouse.models.files import ModelFiles
from stillhouse.models.weights import cache_folder, sha256_of_weights


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read to the end."""
    files: list[Path] = []
    plain = weights.sha256_of_file

    def counted(file: Path) -> str:
        files.append(file)
        return plain(file)

    monkeypatch.setattr(weights, "sha256_of_file", counted)
    return files


@pytest.fixture
def large(tiny_model: Path, tmp_path: Path) -> Path:
    """A model with a weight file of 8 MiB, of which samples of 64 KiB leave most out."""
    folder = tmp_path / "large"
    shutil.copytree(tiny_model, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(8 << 20)
    return folder


def edit(file: Path, place: int) -> None:
    """Change one byte, and nothing of the file's size or times that can be set back."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_any_byte_of_the_weights_counts(large: Path, cache: Path) -> None:
    between_samples = 100_000  # 64 samples of 64 KiB begin every 132 kB
    first = ModelFiles("large", large)
    names = first.content_sha256, first.sampled_sha256
    edit(large / "model.safetensors", between_samples)
    second = ModelFiles("large", large)
    assert second.sampled_sha256 == names[1], "an earlier release saw no difference"
    assert second.content_sha256 != names[0]


def test_a_moved_or_copied_model_is_the_same(large: Path, cache: Path) -> None:
    name = ModelFiles("large", large).content_sha256
    copy = Path(shutil.copytree(large, large.parent / "copy"))
    assert ModelFiles("copy", copy).content_sha256 == name
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    assert ModelFiles("copy", copy).content_sha256 != name


@pytest.mark.parametrize(("size", "same"), [(4 << 20, True), ((4 << 20) + 1, False)])
def test_a_model_that_was_sampled_whole_keeps_its_name(large: Path, cache: Path, size: int, same: bool) -> None:
    file = large / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(size)
    files = ModelFiles("large", large)
    assert (files.content_sha256 == files.sampled_sha256) is same
    names = {files.content_sha256}
    for place in (0, 65_535, 65_536, size // 2, size - 65_537, size - 1):
        edit(file, place)
        names.add(ModelFiles("large", large).content_sha256)
    assert len(names) == 7, "each edit makes another model"


def test_a_file_is_read_once_however_often_it_is_named(large: Path, cache: Path, read: list[Path]) -> None:
    names = {ModelFiles("large", large).content_sha256 for _ in range(3)}
    assert len(names) == 1
    assert read == [large / "model.safetensors"]
    link = large.parent / "link"
    link.symlink_to(large)
    assert ModelFiles("link", link).content_sha256 in names
    assert len(read) == 1, "a link leads to the same file"


def test_a_changed_file_is_read_again(large: Path, cache: Path, read: list[Path]) -> None:
    file = large / "model.safetensors"
    first = sha256_of_weights(file)
    edit(file, 5_000_000)
    assert sha256_of_weights(file) == hashlib.sha256(file.read_bytes()).hexdigest() != first
    other = large / "other"
    other.write_bytes(bytes(8 << 20))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)  # of the same size and time, another inode
    assert sha256_of_weights(file) == hashlib.sha256(bytes(8 << 20)).hexdigest()
    assert len(read) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"state": 1, "sha256": "x"}', b"[]"])
def test_a_damaged_entry_costs_another_reading(large: Path, cache: Path, read: list[Path], damage: bytes) -> None:
    file = large / "model.safetensors"
    right = sha256_of_weights(file)
    (entry,) = cache.rglob("*.json")
    entry.write_bytes(damage)
    assert sha256_of_weights(file) == right
    assert sha256_of_weights(file) == right
    assert len(read) == 2


def test_an_entry_of_another_file_does_not_count(large: Path, cache: Path) -> None:
    """Whatever it is called: what it says of a file's path counts."""
    file = large / "model.safetensors"
    right = sha256_of_weights(file)
    copy = large / "copy.safetensors"
    shutil.copy2(file, copy)
    edit(copy, 5_000_000)
    sha256_of_weights(copy)
    one, other = cache.rglob("*.json")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert sha256_of_weights(file) == right != sha256_of_weights(copy)


def test_a_cache_that_cannot_be_written_is_done_without(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "file/cache"))
    file = large / "model.safetensors"
    assert sha256_of_weights(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_several_may_write_at_once(large: Path, cache: Path) -> None:
    file = large / "model.safetensors"
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(sha256_of_weights(file))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [hashlib.sha256(file.read_bytes()).hexdigest()] * 6
    assert [one.suffix for one in cache.rglob("*") if one.is_file()] == [".json"]


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"STILLHOUSE_CACHE": "/a/b"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/stillhouse"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/stillhouse"),  # as the standard has it: no such place
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/stillhouse"),
        ({}, "/home/me/.cache/stillhouse"),
    ],
)
def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: str) -> None:
    for name in ("STILLHOUSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me"} | variables).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(place)
