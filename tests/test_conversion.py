"""The converter is strict both ways, writes all or nothing, and says in one line what is wrong."""

import argparse
import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

import noria
from noria.conversion import convert as convert_module
from noria.conversion.command import register
from noria.conversion.convert import convert
from noria.conversion.export import export
from noria.conversion.rules import Rule, apply, same_bytes, undo
from noria.conversion.source import checkpoint_files, local
from noria.conversion.target import atomic_folder

HEADS, WIDTH, VALUES, INNER, LAYERS, WORDS = 2, 16, 24, 20, 2, 11
TORCHSCALE = {
    "decoder_embed_dim": WIDTH,
    "decoder_value_embed_dim": VALUES,
    "decoder_retention_heads": HEADS,
    "decoder_ffn_embed_dim": INNER,
    "decoder_layers": LAYERS,
    "vocab_size": WORDS,
    "activation_fn": "swish",
    "no_scale_embedding": False,
}
FAST = {"n_layers": 1, "n_heads": 2, "attention_type": "causal-linear", "feed_forward_dimensions": 6}


def retnet_state(prefix: str = "", **shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A state dict as torchscale names it."""
    names = {"embed_tokens": (WORDS, WIDTH), "output_projection": (WORDS, WIDTH), "layer_norm": (WIDTH,)}
    for layer in range(LAYERS):
        names |= {f"layers.{layer}.retention.{name}_proj": (WIDTH, WIDTH) for name in "qk"}
        names |= {f"layers.{layer}.retention.{name}_proj": (VALUES, WIDTH) for name in "vg"}
        names |= {f"layers.{layer}.retention.out_proj": (WIDTH, VALUES), f"layers.{layer}.ffn.fc2": (WIDTH, INNER)}
        names |= {f"layers.{layer}.ffn.{name}": (INNER, WIDTH) for name in ("fc1", "gate")}
        names |= {f"layers.{layer}.{name}_layer_norm": (WIDTH,) for name in ("retention", "final")}
    state = {f"{prefix}{name}.weight": torch.randn(shape) for name, shape in (names | shapes).items()}
    pairs = torch.linspace(0, 1, WIDTH // HEADS // 2).repeat_interleave(2)
    state[f"{prefix}retnet_rel_pos.angle"] = 10000**-pairs
    state[f"{prefix}retnet_rel_pos.decay"] = torch.log(1 - 2.0 ** (-5 - torch.arange(HEADS)))
    return state


def linear_state(**extra: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A state dict as fast-transformers names it: width 8, one layer."""
    names = {f"layers.0.attention.{name}_projection": (8, 8) for name in ("query", "key", "value", "out")}
    names |= {"layers.0.linear1": (6, 8), "layers.0.linear2": (8, 6), "layers.0.norm1": (8,), "layers.0.norm2": (8,)}
    state = {}
    for name, shape in (names | {"norm": (8,)} | extra).items():
        state |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    return state


@pytest.fixture
def saved(tmp_path):
    """saved(content, name) -> the path of a file that torch.save wrote."""

    def save(content, name: str = "model.pt") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def refusal(*arguments) -> str:
    """The one-line message with which a conversion is refused; nothing is left behind."""
    target = Path(arguments[2])
    before = set(target.parent.iterdir()) if target.parent.is_dir() else None
    with pytest.raises((ValueError, OSError)) as raised:
        convert(*arguments)
    assert before is None or set(target.parent.iterdir()) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_rules_with_numbers_and_several_tensors_are_undone_exactly():
    rules = [
        Rule("stack.{}.part.{}.w", "layers.{}.{}.weight", torch.t, torch.t),
        Rule("{}.qkv", ("{}.q", "{}.k", "{}.v"), lambda x: x.chunk(3), lambda *x: torch.cat(x)),
        Rule(("{}.a", "{}.b"), "{}.ab", lambda a, b: torch.stack((a, b)), lambda x: tuple(x.unbind())),
        Rule("mask", reason="recomputed"),
        Rule("{}.again", reason="tied", copy_of="{}.qkv"),
    ]
    qkv = torch.randn(6, 2)
    tensors = {"stack.1.part.12.w": torch.randn(2, 3), "0.qkv": qkv, "0.again": qkv.clone(), "mask": torch.ones(2)}
    tensors |= {"3.b": torch.randn(4), "3.a": torch.tensor([float("nan"), -0.0, 0.0, 1e-45])}
    applied = apply(rules, tensors)
    assert set(applied.tensors) == {"layers.1.12.weight", "0.q", "0.k", "0.v", "3.ab"}
    assert applied.kept == {"mask": "recomputed", "0.again": "tied"}
    back = undo(rules, applied.record, applied.tensors) | {"mask": tensors["mask"]}
    assert all(same_bytes(back[name], tensor) for name, tensor in tensors.items())


def test_rules_name_what_they_do_not_know_or_cannot_undo():
    with pytest.raises(ValueError, match=r"no rule for 1 tensors of the checkpoint: layers\.x\.w"):
        apply([Rule("layers.{}.w", "w")], {"layers.x.w": torch.ones(1)})
    with pytest.raises(ValueError, match=r"lacks 0\.b"):
        apply([Rule(("{}.a", "{}.b"), "{}.c")], {"0.a": torch.ones(1)})
    with pytest.raises(ValueError, match="cannot be undone exactly"):
        apply([Rule("a", "b", lambda x: x * 3, lambda x: x / 3)], {"a": torch.randn(100)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "kind", ["bare", "prefixed", "fairseq", "safetensors", "sharded", "sharded safetensors", "old"]
)
def test_every_container_round_trips_with_its_dtype(kind, dtype, tmp_path):
    state = {name: tensor.to(dtype) for name, tensor in retnet_state("decoder." if kind != "bare" else "").items()}
    source = tmp_path / "source"
    source.mkdir()
    if kind == "fairseq":
        arguments = argparse.Namespace(**TORCHSCALE, arch="retnet_base", paths=["a", "b"])
        torch.save(
            {"args": arguments, "cfg": None, "model": state, "extra_state": {"epoch": 4}},
            source / "checkpoint_last.pt",
        )
    elif kind == "safetensors":
        save_file(state, source / "model.safetensors", {"made": "by hand"})
    elif kind.startswith("sharded"):
        end = "safetensors" if kind.endswith("safetensors") else "bin"
        parts = {f"part-{number}.{end}": dict(list(state.items())[number::2]) for number in range(2)}
        for name, part in parts.items():
            save_file(part, source / name) if end == "safetensors" else torch.save(part, source / name)
        index = {
            "metadata": {"total_size": 1},
            "weight_map": {key: name for name, part in parts.items() for key in part},
        }
        (source / f"model.{end}.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, source / "model.pt", _use_new_zipfile_serialization=kind != "old")
    convert("torchscale", source, tmp_path / "model", None if kind == "fairseq" else TORCHSCALE)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == dtype
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
    export("torchscale", tmp_path / "model", tmp_path / "back")
    assert {file.name for file in source.iterdir()} == {file.name for file in (tmp_path / "back").iterdir()}
    found = {}
    for file in (tmp_path / "back").iterdir():
        if file.suffix == ".safetensors":
            found |= load_file(file)
        elif file.suffix != ".json":
            content = torch.load(file, weights_only=False)
            found |= content.get("model", content)
            assert kind != "fairseq" or (content["args"] == arguments and content["extra_state"] == {"epoch": 4})
        else:
            assert json.loads(file.read_text()) == index
    assert found.keys() == state.keys()
    assert all(same_bytes(found[name], tensor) for name, tensor in state.items())


def test_a_configuration_of_an_unread_class_is_refused_by_name(saved, tmp_path):
    for content in ({"cfg": Fraction(1, 2)}, {"cfg": {"model": Fraction(1, 2)}}, {"args": Fraction(1, 2)}):
        source = saved({**content, "model": retnet_state("decoder.")})
        assert "object of class fractions.Fraction" in refusal("torchscale", source, tmp_path / "model")
    convert("torchscale", source, tmp_path / "model", TORCHSCALE)
    assert json.loads((tmp_path / "model" / "conversion.json").read_text())["refused"] == ["fractions.Fraction"]
    arguments = {"activation_fn": Fraction(1, 2)}
    source = saved({"cfg": {"model": arguments}, "model": retnet_state("decoder.")})
    assert "values of activation_fn (<fractions.Fraction>)" in refusal("torchscale", source, tmp_path / "other")


def test_a_body_without_output_layer_becomes_the_bare_model(saved, tmp_path):
    state = retnet_state()
    del state["output_projection.weight"]
    assert "no_output_layer=true" in refusal("torchscale", saved(state), tmp_path / "x", TORCHSCALE)
    convert("torchscale", saved(state), tmp_path / "body", {**TORCHSCALE, "no_output_layer": True})
    model = AutoModel.from_pretrained(tmp_path / "body")
    assert type(model) is noria.NoriaRetNetModel
    del state["embed_tokens.weight"]
    convert("torchscale", saved(state), tmp_path / "bare", {**TORCHSCALE, "vocab_size": -1})
    model = AutoModel.from_pretrained(tmp_path / "bare")
    assert model.config.vocab_size == 0
    assert model(inputs_embeds=torch.randn(1, 3, WIDTH)).last_hidden_state.shape == (1, 3, WIDTH)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"deepnorm": True}, {"residual_scale": (2 * LAYERS) ** 0.25, "post_norm": False}),
        ({"layernorm_eps": 1e-3}, {"norm_eps": 1e-3}),
        ({"activation_fn": "gelu"}, {"hidden_act": "gelu", "gate_act": "silu"}),
        ({"no_scale_embedding": True}, {"scale_embedding": False}),
        ({"dropout": 0.1, "xpos_rel_pos": True, "subln": False}, {"dropout": 0.1}),
        ({"rotary_base": 500.0}, {"rotary_base": 500.0}),
    ],
    ids=str,
)
def test_options_of_torchscale_reach_the_configuration(options, fields, saved, tmp_path):
    convert("torchscale", saved(retnet_state()), tmp_path / "model", {**TORCHSCALE, **options})
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "model").config
    assert {name: getattr(config, name) for name in fields} == fields


def test_post_norm_and_embedding_norm_are_seen_in_the_tensors(saved, tmp_path):
    state = retnet_state(layernorm_embedding=(WIDTH,))
    del state["layer_norm.weight"]
    convert("torchscale", saved(state), tmp_path / "model", {"activation_fn": "relu", "deepnorm": True})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.post_norm
    assert model.config.embedding_norm
    assert torch.equal(model.model.embedding_norm.weight, state["layernorm_embedding.weight"])
    assert isinstance(model.model.norm, torch.nn.Identity)


def test_rounded_tables_of_half_precision_are_used_as_they_are(saved, tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in retnet_state().items()}
    convert("torchscale", saved(state), tmp_path / "model", TORCHSCALE)
    mixer = AutoModelForCausalLM.from_pretrained(tmp_path / "model").model.layers[0].mixer
    angles = mixer.position.frequencies(torch.device("cpu")).repeat_interleave(2)
    assert torch.equal(angles, state["retnet_rel_pos.angle"].double())
    assert torch.equal(mixer.log_decay(torch.device("cpu")), state["retnet_rel_pos.decay"].float())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "does not say activation_fn, no_scale_embedding, layernorm_eps"),
        ({**TORCHSCALE, "decoder_layers": 3}, "decoder_layers is 3 in the config, but the tensors say 2"),
        ({**TORCHSCALE, "decoder_retention_heads": 4}, "decoder_retention_heads is 4 in the config"),
        ({**TORCHSCALE, "activation_fn": "mish"}, "activation_fn is 'mish', not one of"),
        ({**TORCHSCALE, "moe_freq": 2}, "moe_freq=2 cannot be converted"),
        ({**TORCHSCALE, "multiway": True}, "multiway=True cannot be converted"),
        ({**TORCHSCALE, "share_decoder_input_output_embed": True}, "should repeat embed_tokens.weight"),
        ({**TORCHSCALE, "no_output_layer": True}, "no_output_layer=True cannot be converted"),
        ({**TORCHSCALE, "decoder_embed": 3}, "config names 'decoder_embed', .* mean decoder_embed_dim"),
        ({**TORCHSCALE, "intermediate_size": 21}, r"fc1\.weight gives \(20, 16\), the model wants \(21, 16\)"),
        ({**TORCHSCALE, "layernorm_eps": "small"}, "norm_eps"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_or_missing_settings_of_torchscale_are_named(config, message, saved, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert("torchscale", saved(retnet_state()), tmp_path / "model", config)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.retention.bias": (3,)}, "no rule for 1 tensors of the checkpoint: layers.0.retention.bias"),
        ({"layers.1.ffn.fc2": None}, "lacks 1 tensors: layers.1.ffn.fc2"),
        ({"layers.1.ffn.fc2": (WIDTH, 3)}, "fc2.weight gives"),
        ({"layers.1.retention.q_proj": None, "layers.0.retention.q_proj": None}, "not a RetNet of torchscale"),
        ({"embed_tokens": None}, "no embed_tokens.weight"),
    ],
    ids=str,
)  # fmt: skip
def test_unknown_missing_and_misshapen_tensors_are_named(change, message, saved, tmp_path):
    state = retnet_state(**{name: shape for name, shape in change.items() if shape})
    state = {
        name: tensor for name, tensor in state.items() if change.get(name.removesuffix(".weight"), ()) is not None
    }
    assert message in refusal("torchscale", saved(state), tmp_path / "model", TORCHSCALE)


@pytest.mark.parametrize(
    ("state", "config", "message"),
    [
        (linear_state(), None, "does not say n_heads, attention_type"),
        (linear_state(), {**FAST, "n_heads": 3}, "n_heads is 3, which divides not both"),
        (linear_state(), {**FAST, "attention_type": "full"}, "attention_type is 'full', not one of"),
        (linear_state(), {**FAST, "feature_map": "Favor(n_dims=16)"}, "feature_map='Favor(n_dims=16)' cannot"),
        (
            linear_state() | {"layers.0.attention.inner_attention.feature_map.omega": torch.ones(4, 4)},
            FAST,
            "Performer",
        ),
        (linear_state(embedding=(5, 8)), FAST, "no rule for 2 tensors of the checkpoint: embedding.weight"),
        (retnet_state(), FAST, "not a TransformerEncoder of fast-transformers"),
    ],
    ids=["missing", "heads", "type", "favor argument", "favor tensors", "embedding", "foreign"],
)
def test_refusals_of_fast_transformers(state, config, message, saved, tmp_path):
    assert message in refusal("fast_transformers", saved(state), tmp_path / "model", config)


def test_heads_follow_from_the_width_of_a_head(saved, tmp_path):
    settings = {"attention_type": "linear", "query_dimensions": 2}
    convert("fast_transformers", saved(linear_state()), tmp_path / "model", settings)
    config = AutoModel.from_pretrained(tmp_path / "model").config
    assert (config.num_attention_heads, config.head_dim, config.value_head_dim) == (4, 2, 2)
    assert config.bidirectional


def test_values_and_queries_of_different_width_and_no_last_norm(saved, tmp_path):
    wide = {"layers.0.attention.query_projection": (12, 8), "layers.0.attention.key_projection": (12, 8)}
    state = linear_state(**wide)
    del state["norm.weight"], state["norm.bias"]
    convert(
        "fast_transformers",
        saved({f"body.{name}": tensor for name, tensor in state.items()}),
        tmp_path / "model",
        FAST,
    )
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert (model.config.head_dim, model.config.value_head_dim, model.config.final_norm) == (6, 4, False)
    assert model(inputs_embeds=torch.randn(1, 3, 8)).last_hidden_state.shape == (1, 3, 8)
    export("fast_transformers", tmp_path / "model", tmp_path / "back")
    assert set(torch.load(tmp_path / "back" / "model.pt")) == {f"body.{name}" for name in state}


def test_unknown_formats_and_places_are_refused(saved, tmp_path, monkeypatch):
    assert "known are bert4keras, fast_transformers, junnyu, " in refusal("torchscales", saved({}), tmp_path / "x")
    assert "does not exist" in refusal("torchscale", tmp_path / "missing" / "file" / "here", tmp_path / "x")
    monkeypatch.setattr("noria.conversion.source.snapshot_download", offline)
    assert "cannot be read from the Hub: no network" in refusal("torchscale", "someone/something", tmp_path / "x")
    (tmp_path / "two").mkdir()
    assert "holds no checkpoint file" in refusal("torchscale", tmp_path / "two", tmp_path / "x")
    for name in ("a.pt", "b.pt"):
        (tmp_path / "two" / name).touch()
    assert "several checkpoints, name one: a.pt, b.pt" in refusal("torchscale", tmp_path / "two", tmp_path / "x")
    assert "holds no tensors" in refusal("torchscale", saved({"model": {}}), tmp_path / "x")
    assert "not a state dict" in refusal("torchscale", saved([1]), tmp_path / "x")


def offline(*_, **__):
    raise OSError("no network")


def test_a_hub_id_is_downloaded(saved, tmp_path, monkeypatch):
    folder = saved(retnet_state()).parent
    monkeypatch.setattr("noria.conversion.source.snapshot_download", {"someone/retnet": str(folder)}.__getitem__)
    assert local("someone/retnet") == folder
    convert("torchscale", "someone/retnet", tmp_path / "model", TORCHSCALE)


def test_an_index_cannot_reach_outside_its_folder(tmp_path):
    index = tmp_path / "model.bin.index.json"
    for names, message in [({"w": "../x.bin"}, "not a file beside it"), ({"w": "x.bin"}, "is missing")]:
        index.write_text(json.dumps({"weight_map": names}))
        with pytest.raises((ValueError, OSError), match=message):
            checkpoint_files(index)
    index.write_text("[]")
    with pytest.raises(ValueError, match="no index of a sharded checkpoint"):
        checkpoint_files(index)


def test_a_target_that_is_taken_or_cannot_be_written_is_refused(saved, tmp_path):
    source = saved(retnet_state())
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("precious")
    assert "is not empty" in refusal("torchscale", source, taken, TORCHSCALE)
    assert (taken / "mine").read_text() == "precious"
    assert "is a file" in refusal("torchscale", source, taken / "mine", TORCHSCALE)
    assert "cannot be written" in refusal("torchscale", source, taken / "mine" / "below", TORCHSCALE)
    (tmp_path / "empty").mkdir()
    assert convert("torchscale", source, tmp_path / "empty", TORCHSCALE) == tmp_path / "empty"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError], ids=str)
def test_an_interrupted_conversion_leaves_nothing(error, saved, tmp_path, monkeypatch):
    source = saved(retnet_state())

    def fail(*_):
        raise error

    monkeypatch.setattr(convert_module, "make_record", fail)
    with pytest.raises(error if isinstance(error, type) else OSError):
        convert("torchscale", source, tmp_path / "model", TORCHSCALE)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_files_may_be_read_by_whom_the_folder_says(saved, tmp_path):
    before = os.umask(0o027)
    try:
        folder = convert("torchscale", saved(retnet_state()), tmp_path / "model", TORCHSCALE)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o640}


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    with atomic_folder(tmp_path / "new" / "folder") as part:
        (part / "file").touch()
        assert not (tmp_path / "new" / "folder").exists()
    assert os.listdir(tmp_path / "new") == ["folder"]
    assert os.listdir(tmp_path / "new" / "folder") == ["file"]


def test_export_refuses_what_was_not_converted(saved, tmp_path):
    with pytest.raises(ValueError, match=r"has no conversion\.json"):
        export("torchscale", tmp_path, tmp_path / "x")
    folder = convert("torchscale", saved(retnet_state()), tmp_path / "model", TORCHSCALE)
    with pytest.raises(ValueError, match="converted from 'torchscale'"):
        export("fast_transformers", folder, tmp_path / "x")
    with pytest.raises(FileExistsError, match="not empty"):
        export("torchscale", folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if "fc" not in name and "norm" not in name},
        folder / "model.safetensors",
    )
    with pytest.raises(ValueError, match="the model lacks"):
        export("torchscale", folder, tmp_path / "x")
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        export("torchscale", folder, tmp_path / "x")
    (folder / "conversion.json").write_text('{"files": []}')
    with pytest.raises(ValueError, match="is damaged"):
        export("torchscale", folder, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_face_has_both_functions():
    assert noria.convert is convert
    assert noria.export is export


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    options = parser.parse_args(arguments)
    return options.handler(options)


def test_the_commands_convert_and_export(saved, tmp_path, capsys):
    source, model, back = str(saved(linear_state())), str(tmp_path / "model"), str(tmp_path / "back")
    settings = [part for key, value in FAST.items() for part in ("--config", f"{key}={value}")]
    assert run("convert", "fast_transformers", source, model, *settings) == 0
    assert run("export", "fast_transformers", model, back) == 0
    assert capsys.readouterr().out.split() == [model, back]
    assert run("convert", "fast_transformers", source, model, *settings) == 2
    assert run("export", "torchscale", model, str(tmp_path / "x")) == 2
    assert run("convert", "fast_transformers", source, str(tmp_path / "x"), "--config", "n_heads") == 2
    complaints = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(complaints) == 3
