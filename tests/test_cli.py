"""The `noria` command: its help, its answers, its exit status, and one line for bad input."""

import io
import os
import shlex
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import noria.hub
from noria import cli
from noria.registry import ARCHITECTURES
from noria.tokenization.characters import character_tokenizer
from noria.training.architecture import causal_config

COMMANDS = ("quickstart", "list", "generate", "convert", "export", "push", "card")


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with random weights over the letters a to z."""
    folder = tmp_path_factory.mktemp("letters") / "model"
    tokenizer = character_tokenizer("abcdefghijklmnopqrstuvwxyz ")
    torch.manual_seed(0)
    config = causal_config("retnet", hidden_size=16, num_hidden_layers=1, vocab_size=len(tokenizer), eos_token_id=None)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(line, *more):
    """The exit status of a command line."""
    try:
        return cli.main([*shlex.split(line), *map(str, more)])
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, capsys):
    assert run(f"{command} --help") == 0
    out = capsys.readouterr().out
    assert f"usage: noria {command}".rstrip() in out
    assert command or all(name in out for name in COMMANDS)


def test_list_shows_the_table(capsys):
    assert run("list") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["ARCHITECTURE", "MODEL", "TYPE", "HEADS", "PAPER"]
    assert len(rows) == len(ARCHITECTURES)
    for model_type, row in ARCHITECTURES.items():
        line = next(line for line in rows if f" {model_type} " in line)
        assert line.startswith(row.name)
        assert all(head in line for head in row.models)
        assert "arXiv:" in line


def test_generate_streams_the_prompt_and_what_follows(folder, capsys):
    texts = []
    for seed in (1, 1, 2):
        assert run(f"generate --prompt 'a b' --max-new-tokens 12 --temperature 1 --top-k 0 --seed {seed}", folder) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("a b") for text in texts)


def test_generate_takes_the_likeliest_token_when_told_to(folder, capsys):
    texts = [run("generate --prompt ab --greedy --max-new-tokens 8", folder) or capsys.readouterr().out for _ in "12"]
    assert texts[0] == texts[1]
    assert len(texts[0].strip()) > 2


def test_generate_reads_the_prompt_from_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("xyz"))
    assert run("generate --prompt - --max-new-tokens 2 --dtype bfloat16", folder) == 0
    assert capsys.readouterr().out.startswith("xyz")


def test_push_and_card_hand_on_what_they_are_given(folder, capsys, monkeypatch):
    given = []
    monkeypatch.setattr(noria.hub, "push", lambda *arguments, **options: given.append((arguments, options)) or "there")
    assert run(f"push {folder} me/letters --private --no-code --revision next") == 0
    (arguments, options) = given[0]
    assert (str(arguments[0]), arguments[1]) == (str(folder), "me/letters")
    assert (options["private"], options["code"], options["revision"]) == (True, False, "next")
    assert run("card retnet") == 0
    out = capsys.readouterr().out
    assert out.startswith("there\n---")
    assert "2307.08621" in out


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("quickstrat", "invalid choice: 'quickstrat'"),
        ("quickstart --seconds long", "invalid float value: 'long'"),
        ("quickstart --seconds 0", "longer than 0 seconds, got 0"),
        ("quickstart --threads 0", "--threads must be at least 1, got 0"),
        ("quickstart --architecture perceiver9", "'perceiver9' is no causal language model"),
        ("quickstart --output {file}", "is a file, not a folder"),
        ("quickstart --output {folder}", "was not written by noria quickstart"),
        ("quickstart --output .", "is the folder that you are in"),
        ("quickstart --precision float8", "--precision must be float32 or bfloat16, got 'float8'"),
        ("quickstart --output {missing}/deeper", "cannot write beside --output"),
        ("quickstart --resume --output {missing}", "there is no run to resume"),
        ("generate {folder}", "the following arguments are required: --prompt"),
        ("generate {missing} --prompt a", "there is no folder"),
        ("generate {file} --prompt a", "is a file"),
        ("generate {empty} --prompt a", "is a folder without config.json"),
        ("generate {folder} --prompt a --dtype float8", "unknown dtype 'float8'; known: auto, float32"),
        ("generate {folder} --prompt a --device tpu9", "device 'tpu9' cannot be used here"),
        ("generate {folder} --prompt a --temperature -1", "temperature"),
        ("generate {folder} --prompt a --greedy --top-k 3", "--greedy takes the likeliest token"),
        ("generate {folder} --prompt a --max-new-tokens 0", "--max-new-tokens must be at least 1, got 0"),
        ("generate {corrupt} --prompt a", ""),
        ("convert nonsense {file} {missing}", "nonsense"),
        ("export nonsense {folder} {missing}", "nonsense"),
        ("push {missing} me/letters", "is not a folder"),
        ("card {missing}", "no architecture"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(line, complaint, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {name: tmp_path / name for name in ("file", "missing", "empty", "corrupt")}
    places["file"].touch()
    places["empty"].mkdir()
    places["corrupt"].mkdir()
    for path in folder.iterdir():
        (places["corrupt"] / path.name).write_bytes(path.read_bytes()[: -7 if path.suffix == ".safetensors" else None])
    assert run(line.format(folder=folder, **places)) == 2
    *progress, last = capsys.readouterr().err.splitlines()
    assert last.startswith("noria")
    assert complaint in last
    assert not progress or line.startswith(("convert", "export"))
    assert not places["missing"].exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corrupt", "empty", "file"]


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(cli, "run_list", lambda options: {}["missing"])
    with pytest.raises(KeyError):
        run("list")


def test_ctrl_c_is_status_130(monkeypatch, capsys):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_list", stop)
    assert run("list") == 130
    assert capsys.readouterr().err == "noria: interrupted\n"


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-c", "import sys; from noria.cli import main; sys.exit(main(['card', 'retnet']))"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
