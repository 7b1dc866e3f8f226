"""The quickstart: budgets, losses, folders, and that an interrupted run ends where an uninterrupted one ends."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import noria.training.quickstart
import noria.training.run
from noria.data.texts import Record, classics, split
from noria.tokenization.characters import character_tokenizer
from noria.training.architecture import causal_architectures, causal_config
from noria.training.budget import Budget
from noria.training.corpus import Blocks, encode, held_out_loss, prompt, unigram_baseline
from noria.training.folder import publish, read_record, require_replaceable, staging
from noria.training.interruption import Interruption, Stopped
from noria.training.measure import cache_bytes, write
from noria.training.quickstart import quickstart
from noria.training.report import History, losses
from noria.training.run import prepare
from noria.training.settings import Settings, checkpoint_of, plan

SMALL = {"hidden_size": 16, "layers": 1, "length": 16, "batch": 2}


@pytest.fixture(scope="module")
def records():
    train, held_out = split(classics())
    return train[:30] + held_out[:4]


@pytest.fixture
def small_text(monkeypatch, records):
    """The classics, cut down to 34 of them."""
    monkeypatch.setattr(noria.training.run, "classics", lambda: records)


def small_model(tokenizer, architecture="retnet"):
    torch.manual_seed(0)
    config = causal_config(architecture, hidden_size=16, num_hidden_layers=2, vocab_size=len(tokenizer))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def test_the_learning_rate_rises_and_falls_with_the_budget():
    budget = Budget(seconds=1, steps=100)
    rates = []
    for step in range(101):
        budget.step = step
        rates.append(budget.factor())
    assert rates[0] > 0
    assert rates.index(max(rates)) == 5
    assert rates[:6] == sorted(rates[:6])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[100] == 0


def test_time_before_the_start_and_of_earlier_parts_is_counted_rightly(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    budget = Budget(seconds=10, elapsed=4)
    now = 200.0
    budget.start()
    now = 203.0
    budget.advance(7)
    assert (budget.step, budget.elapsed, budget.spent) == (7, 7.0, 0.7)
    now = 300.0
    budget.advance(8)
    assert budget.spent == 1.0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seconds": 0}, "longer than 0 seconds, got 0"),
        ({"seconds": math.nan}, "longer than 0 seconds, got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"hidden_size": 0}, "--hidden-size must be greater than 0, got 0"),
        ({"learning_rate": -1.0}, "--learning-rate must be greater than 0, got -1"),
        ({"length": 1}, "--length must be at least 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**given)


def test_an_unknown_architecture_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'bert-9' is no causal language model .* linear_transformer, .*retnet"):
        causal_config("bert-9", hidden_size=16)


@pytest.mark.parametrize("name", ["noria_retnet", "llama"])
def test_model_types_are_architectures_too(name):
    config = causal_config(name, hidden_size=32, num_hidden_layers=1, vocab_size=9)
    assert (config.model_type, config.hidden_size, config.vocab_size) == (name, 32, 9)


def test_rows_hold_the_text_in_an_order_of_the_seed(records):
    tokenizer = character_tokenizer(prompt(r.genre) + r.text for r in records)
    rows = encode(records, tokenizer)
    assert rows[0][0] == tokenizer.bos_token_id
    assert rows[0][-1] == tokenizer.eos_token_id
    blocks = Blocks(rows, 16, seed=1)
    tokens = sum(map(len, rows))
    assert len(blocks) == tokens // 16
    assert torch.equal(blocks[3]["input_ids"], Blocks(rows, 16, seed=1)[3]["labels"])
    assert not torch.equal(blocks.rows, Blocks(rows, 16, seed=2).rows)
    with pytest.raises(ValueError, match=f"{tokens} tokens of text do not fill one row of {tokens + 1}"):
        Blocks(rows, tokens + 1)


def test_the_baseline_is_laplace_s_rule():
    train, held_out = [Record("唐诗", "", "", "aab")], [Record("唐诗", "", "", "ac")]
    expected = -(math.log(3 / 6) + math.log(1 / 6)) / 2
    assert unigram_baseline(train, held_out) == pytest.approx(expected)
    assert unigram_baseline(*split(classics())) == pytest.approx(6.541, abs=1e-3)
    with pytest.raises(ValueError, match="nothing to measure"):
        unigram_baseline(train, [])


@pytest.mark.parametrize("architecture", causal_architectures())
def test_the_held_out_loss_is_that_of_each_text_read_alone(architecture, records):
    tokenizer = character_tokenizer(prompt(r.genre) + r.text for r in records)
    model = small_model(tokenizer, architecture).eval()
    nats = characters = 0.0
    for record in records[-4:]:
        ids = tokenizer(prompt(record.genre) + record.text, return_tensors="pt").input_ids
        logits = model(ids).logits[0, :-1].log_softmax(-1)
        taken = logits.gather(1, ids[0, 1:, None])[-len(record.text) :]
        nats, characters = nats - taken.sum().item(), characters + len(record.text)
    for tokens in (10**6, 300, 1):
        assert held_out_loss(model, tokenizer, records[-4:], tokens) == pytest.approx(nats / characters, rel=1e-5)


def test_cache_sizes_are_those_of_the_tensors(records):
    tokenizer = character_tokenizer(r.text for r in records)
    recurrent, growing = small_model(tokenizer), small_model(tokenizer, "llama")
    assert cache_bytes(recurrent, 16) == cache_bytes(recurrent, 300) > 0
    layers, keys_and_values, width, bytes_each = 2, 2, 16, 4
    assert cache_bytes(growing, 300) == layers * keys_and_values * 300 * width * bytes_each


def test_a_seed_fixes_what_is_written(records):
    tokenizer = character_tokenizer(r.text for r in records)
    model = small_model(tokenizer)
    first, second = (write(model, tokenizer, ["a", "b"], seed, max_new_tokens=12) for seed in (5, 5))
    assert [s.text for s in first] == [s.text for s in second]
    assert [s.seed for s in first] == [5, 6]
    assert all(0 < s.tokens <= 12 and s.seconds > 0 for s in first)
    assert write(model, tokenizer, ["b"], 6, max_new_tokens=12)[0].text == first[1].text


def test_a_signal_waits_while_it_is_deferred():
    before = [signal.getsignal(number) for number in Interruption.SIGNALS]
    with Interruption() as interruption:
        interruption.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
        with pytest.raises(Stopped) as stopped:
            interruption.check()
        assert stopped.value.signum == signal.SIGTERM
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    with Interruption(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in Interruption.SIGNALS] == before


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "old").touch()

    def interrupted():
        with staging(output) as folder:
            (folder / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]
    with staging(output) as folder:
        (folder / "new").touch()
        publish(folder, output)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["new", "out"]


def test_other_people_s_folders_are_left_alone(tmp_path):
    require_replaceable(tmp_path, "retnet")
    require_replaceable(tmp_path / "new", "retnet")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="was not written by noria quickstart and is left alone"):
        require_replaceable(tmp_path, "retnet")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        require_replaceable(tmp_path / "thesis.tex", "retnet")
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"architecture": "roformer"}, "finished": True}))
    require_replaceable(tmp_path, "roformer")
    with pytest.raises(ValueError, match="holds a model of roformer, not of retnet"):
        require_replaceable(tmp_path, "retnet")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_record(tmp_path)
    with (
        pytest.raises(ValueError, match=r"cannot write beside --output .*No such file"),
        staging(tmp_path / "a" / "b"),
    ):
        pass


@pytest.mark.parametrize("architecture", causal_architectures())
def test_a_run_ends_with_a_folder_that_writes_the_same_poems(architecture, small_text, tmp_path):
    said = []
    output = tmp_path / "model"
    given = {**SMALL, "architecture": architecture, "steps": 3}
    quickstart(output, given, threads=1, say=said.append)
    text = "\n".join(said)
    for part in ("unigram baseline", "after training", "the same four poems", "bytes at 4,096 tokens", "import noria"):
        assert part in text
    assert {"config.json", "history.json", "loss.png", "model.safetensors", "run.json", "tokenizer.json"} <= {
        p.name for p in output.iterdir()
    }
    history = History(**json.loads((output / "history.json").read_text(encoding="utf-8")))
    assert losses(history) in text
    assert history.steps == 3
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert AutoModelForCausalLM.from_pretrained(output).config.use_cache
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ValueError, match="is finished"):
        plan(output, {}, resume=True)


def test_without_matplotlib_the_run_says_so(small_text, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(noria.training.quickstart, "show", lambda *arguments: None)
    said = []
    quickstart(tmp_path / "model", {**SMALL, "steps": 1}, threads=1, say=said.append)
    assert sum("matplotlib is not installed" in line for line in said) == 1
    assert not (tmp_path / "model" / "loss.png").exists()


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(small_text, tmp_path):
    torch.set_num_threads(1)
    settings = Settings(**SMALL, steps=24)
    whole = prepare(settings)
    whole.fit(tmp_path / "whole", None, lambda: False)
    first = prepare(settings)
    first.fit(tmp_path / "first", None, lambda: first.budget.step >= 11)
    assert not first.finished
    assert first.budget.step == 11
    second = prepare(settings, first.history)
    second.fit(tmp_path / "second", checkpoint_of(tmp_path / "first"), lambda: False)
    assert second.finished
    assert second.budget.step == 24
    assert second.history.after == whole.history.after
    assert len(second.history.curve) == len(whole.history.curve)
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, second.model.state_dict()[name]), name


def test_a_run_goes_on_with_the_settings_it_began_with(tmp_path):
    stored = {"settings": {"architecture": "retnet", "seed": 3}, "finished": False, "history": {}}
    (tmp_path / "run.json").write_text(json.dumps(stored))
    (tmp_path / "checkpoint-5").mkdir()
    settings, record = plan(tmp_path, {"seconds": 9.0, "seed": 3}, resume=True)
    assert settings == replace(Settings(), seed=3, seconds=9.0)
    assert record["finished"] is False
    with pytest.raises(ValueError, match=r"--seed 4 does not fit the run in .*, which has 3"):
        plan(tmp_path, {"seed": 4}, resume=True)
    with pytest.raises(ValueError, match="there is no run to resume"):
        plan(tmp_path / "checkpoint-5", {}, resume=True)


def run_cli(*arguments, **options):
    command = [sys.executable, "-m", "noria.cli", "quickstart", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, encoding="utf-8", **pipes, **options)


def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    shape = ("--hidden-size", 16, "--layers", 1, "--length", 32, "--batch", 2)
    process = run_cli("--output", "m", "--seconds", 600, *shape, cwd=tmp_path)
    begun = next(line for line in process.stderr if "training" in line)
    assert "0%" in begun
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "noria quickstart --resume --output m" in out
    assert err.strip().splitlines()[-1] == "noria: interrupted"
    assert checkpoint_of(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert model.generate(**tokenizer("唐诗", return_tensors="pt"), max_new_tokens=3).shape[1] == 6

    process = run_cli("--output", "m", "--resume", "--seconds", 3, cwd=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "going on after" in out
    assert "the same four poems" in out
    assert checkpoint_of(tmp_path / "m") is None
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
