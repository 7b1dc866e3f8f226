"""Published archives: converted as they are, and damaged or hostile ones named."""

import shutil
import zipfile
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import noria

GOLDEN = Path(__file__).parent / "golden" / "roformer_sim"
NAME = "chinese_roformer-sim-char_L-2_H-32_A-4"


def archive(tmp_path: Path, folder: bool = True) -> Path:
    path = tmp_path / f"{NAME}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in GOLDEN.iterdir():
            made.write(file, f"{NAME}/{file.name}" if folder else file.name)
        if folder:
            made.writestr("__MACOSX/._vocab.txt", b"")
    return path


@pytest.mark.parametrize("folder", [True, False], ids=["folder inside", "files alone"])
def test_an_archive_converts_as_its_folder_does(folder, tmp_path) -> None:
    shutil.copytree(GOLDEN, tmp_path / NAME)
    noria.convert("bert4keras", tmp_path / NAME, tmp_path / "from folder")
    target = noria.convert("bert4keras", archive(tmp_path, folder), tmp_path / "from archive")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "conversion.json", "upstream/vocab.txt"):
        assert (target / name).read_bytes() == (tmp_path / "from folder" / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, f"{NAME}.zip", "from archive", "from folder"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(target), AutoTokenizer.from_pretrained(target)
    assert model.config.unilm
    vectors = model.encode(**tokenizer(["一七", "万丈三上"], padding=True, return_tensors="pt"))
    assert vectors.shape == (2, 32)


def test_a_damaged_archive_is_named(tmp_path) -> None:
    path = archive(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"\.zip is not a readable zip archive"):
        noria.convert("bert4keras", path, tmp_path / "target")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["../escaped.txt", "/absolute.txt", "C:/drive.txt", "a\\..\\..\\b.txt"])
def test_members_outside_are_refused(name, tmp_path) -> None:
    path = tmp_path / "hostile.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(name, b"x")
    with pytest.raises(ValueError, match="a file outside the archive"):
        noria.convert("bert4keras", path, tmp_path / "target")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_archive_without_a_checkpoint_is_named(tmp_path) -> None:
    path = tmp_path / "empty.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("readme.txt", b"nothing")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint file"):
        noria.convert("bert4keras", path, tmp_path / "target")
