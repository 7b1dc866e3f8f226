"""The examples: each runs from beginning to end on a tiny budget, and complains in one line."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from noria import NoriaLinearTransformerConfig, NoriaLinearTransformerForSequenceClassification
from noria.data.tang_vs_song import tang_vs_song

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture
def example(monkeypatch):
    """example(name): a script as a module that no other test sees."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def positions(example, monkeypatch):
    """positions.py on four rows of held-out text, in batches of two."""
    module = example("positions")
    rows, held_out, vocabulary = module.corpus()
    monkeypatch.setattr(module, "corpus", lambda: (rows, held_out[:4], vocabulary))
    monkeypatch.setattr(module, "BATCH", 2)
    return module


def complaint(capsys, module, *arguments: str) -> str:
    """The line that a script prints where it exits with status 2."""
    capsys.readouterr()
    try:
        status = module.main(list(map(str, arguments)))
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith(f"{Path(module.__file__).name}: error: ")
    return error


@pytest.mark.parametrize("name", NAMES)
def test_help_begins_with_what_the_script_is_for(example, capsys, name):
    module = example(name)
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    assert " ".join(module.__doc__.split("\n")[0].split()) in " ".join(capsys.readouterr().out.split())


def test_a_script_runs_from_the_command_line_and_from_anywhere(tmp_path):
    command = [sys.executable, FOLDER / "positions.py", "--seeds", "0", "--output", "here"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ), timeout=120)
    assert done.returncode == 2
    assert done.stderr == "positions.py: error: --seeds must be at least 1, got 0\n"
    assert not list(tmp_path.iterdir())


def test_the_same_characters_are_hidden_at_every_length(positions):
    _, held_out, vocabulary = positions.corpus()
    ids, hidden = positions.hide(held_out, vocabulary - 1, torch.Generator().manual_seed(0))
    again, _ = positions.hide(held_out, vocabulary - 1, torch.Generator().manual_seed(0))
    assert torch.equal(ids, again)
    assert held_out[hidden].min() >= len(positions.SPECIAL_TOKENS)
    assert (ids == vocabulary - 1).equal(hidden)
    assert 0.2 < hidden.double().mean() < 0.3
    assert torch.equal(ids[~hidden], held_out[~hidden])


def test_every_encoding_is_trained_and_read(positions):
    texts = positions.corpus()
    for encoding in positions.VARIANTS:
        run = positions.measure(encoding, 0, positions.Budget(0.0, 1), texts)
        assert run["steps"] == 1
        assert run["lengths"]["64"]["loss"] < 30, encoding
        assert all(0 <= point["accuracy"] <= 1 for point in run["lengths"].values() if point), encoding


def test_positions_are_measured_once_and_drawn(positions, capsys, tmp_path):
    arguments = ["--encodings", "rotary", "learned", "linear_cosine", "--steps", "2", "--output", str(tmp_path)]
    assert positions.main([*arguments, "--seeds", "1"]) == 0
    first = json.loads((tmp_path / "positions.json").read_text(encoding="utf-8"))["runs"]
    assert positions.main([*arguments, "--seeds", "2"]) == 0
    runs = json.loads((tmp_path / "positions.json").read_text(encoding="utf-8"))["runs"]
    assert runs[:3] == first
    assert [(run["encoding"], run["seed"]) for run in runs[3:]] == [
        ("rotary", 1),
        ("learned", 1),
        ("linear_cosine", 1),
    ]
    lines = (tmp_path / "positions.md").read_text(encoding="utf-8").splitlines()
    assert sorted(line.split(" | ")[0] for line in lines[2:]) == ["| learned", "| linear_cosine", "| rotary"]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].split(" | ")[0] == "| learned"
    assert lines[-1].count(" | -") == 6, "a table of 64 positions has no code for longer rows"
    assert (tmp_path / "positions.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "positions.png") in capsys.readouterr().out
    assert "other settings" in complaint(capsys, positions, *arguments[:-4], "--steps", "3", *arguments[-2:])


def test_the_same_seed_measures_the_same(positions):
    runs = [positions.measure("rotary", 3, positions.Budget(0.0, 2), positions.corpus()) for _ in range(2)]
    assert runs[0]["lengths"] == runs[1]["lengths"]


def test_the_chart_names_mean_and_spread(example):
    chart = example("positions_chart")
    point = {"accuracy": 0.5, "loss": 2.0}
    runs = [
        {"encoding": name, "lengths": {str(n): {**point, "accuracy": value} for n in chart.LENGTHS}}
        for name, value in (("low", 0.1), ("high", 0.4), ("high", 0.6))
    ]
    assert chart.ranked(runs) == ["high", "low"]
    assert "| high | 2 | 50.0 ± 14.1 |" in chart.table(runs)
    assert "| low | 1 | 10.0 ± 0.0 |" in chart.table(runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encodings", "moon"], "invalid choice: 'moon'"),
        (["--steps", "0"], "the number of training steps must be at least 1, got 0"),
        (["--seconds", "0"], "the training time must be longer than 0 seconds, got 0.0"),
    ],
)
def test_positions_refuse_bad_settings(example, capsys, tmp_path, arguments, message):
    module = example("positions")
    assert message in complaint(capsys, module, *arguments, "--output", tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_chart_wants_a_measured_folder(example, capsys, tmp_path):
    assert "positions.json" in complaint(capsys, example("positions_chart"), tmp_path)


def test_a_small_encoder_is_pretrained_and_tuned(example, capsys):
    module = example("finetune_classification")
    small = ["--pretrain-seconds", "0.2", "--hidden-size", "16", "--epochs", "1", "--limit", "48"]
    assert module.main(small) == 0
    output = capsys.readouterr().out
    assert "accuracy after each epoch: 0." in output
    assert "accuracy on 48 test poems" in output
    assert "this encoder" in output
    assert "TF-IDF and regression    0." in output


def test_any_encoder_with_its_tokenizer_is_tuned(example, capsys, tmp_path):
    module = example("finetune_classification")
    characters = sorted({c for side in tang_vs_song() for poem in side[:40] for c in poem.text})
    tokens = [*module.SPECIAL_TOKENS.values(), *characters]
    module.wordpiece_tokenizer({token: index for index, token in enumerate(tokens)}).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "bidirectional": True, "pad_token_id": 0}
    config = NoriaLinearTransformerConfig(vocab_size=len(tokens), **sizes)
    NoriaLinearTransformerForSequenceClassification(config).save_pretrained(tmp_path)
    assert module.main(["--model", str(tmp_path), "--epochs", "1", "--limit", "40"]) == 0
    assert "accuracy on 40 test poems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "--model nowhere is no folder"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--learning-rate", "0"], "--learning-rate must be at least 1e-09, got 0.0"),
        (["--pretrain-seconds", "-1"], "--pretrain-seconds must be at least 0, got -1.0"),
    ],
)
def test_tuning_refuses_bad_settings(example, capsys, arguments, message):
    assert message in complaint(capsys, example("finetune_classification"), *arguments)


def test_a_stand_in_for_sim_says_that_its_figures_mean_nothing(example, capsys):
    assert example("similarity").main(["--candidates", "4", "--shown", "2"]) == 0
    output = capsys.readouterr().out
    assert "figures mean nothing" in output
    assert output.count("1.000") >= 5


def test_a_sim_from_a_folder_gives_cosines_and_sentences(example, capsys, tmp_path):
    module = example("similarity")
    torch.manual_seed(0)
    model, tokenizer = module.make_tiny(module.SENTENCES)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = module.load(tmp_path)
    vectors = module.embed(*loaded, module.SENTENCES)
    assert torch.equal(vectors, module.embed(model, tokenizer, module.SENTENCES))
    alone = torch.cat([module.embed(*loaded, [sentence]) for sentence in module.SENTENCES])
    torch.testing.assert_close(vectors @ vectors.T, alone @ alone.T, rtol=0, atol=1e-5)
    found = module.similar(*loaded, module.SENTENCES[0], candidates=6, shown=3)
    assert len(found) == 3
    assert found == sorted(found, reverse=True)
    for cosine, text in found:
        again = module.embed(*loaded, [module.SENTENCES[0], text])
        assert cosine == pytest.approx(float(again[0] @ again[1]), abs=1e-5)
    assert module.main([str(tmp_path), "今天天气", "明天下雨", "--candidates", "2"]) == 0
    assert "figures mean nothing" not in capsys.readouterr().out


def test_similarity_refuses_what_is_no_sim(example, capsys, tmp_path):
    module = example("similarity")
    assert "there is no folder" in complaint(capsys, module, tmp_path / "none")
    assert "give at least two sentences" in complaint(capsys, module, tmp_path, "one")
    assert "--candidates and --shown must be at least 1, got 0 and 10" in complaint(
        capsys, module, "--candidates", "0"
    )
    config = module.NoriaRoFormerConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1)
    module.NoriaRoFormerForCausalLM(config).save_pretrained(tmp_path)
    assert "holds no RoFormer-Sim" in complaint(capsys, module, tmp_path)
