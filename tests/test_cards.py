"""Model cards: metadata that the Hub accepts, the sections that every card has, and the facts of one model."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from architectures import CAUSAL
from golden.agreement import GOLDEN, measure
from hub_server import TOKEN, connected
from huggingface_hub import ModelCard

from noria import ARCHITECTURES, NoriaRoFormerConfig, convert, export, hub
from noria.cards import CARDS, PIPELINES, ROFORMER, VARIANTS, pictures
from noria.conversion.formats import FORMATS
from noria.modeling.position.table import ENCODINGS
from noria.registry import AUTO_CLASSES
from noria.tokenization.roformer import write_tokenizer

ROOT = Path(__file__).parents[1]
SECTIONS = ["Equation", "Use", "Sizes", "Provenance", "What differs from the original", "Limits", "Licence"]
# Spelled as the Hub lists them; anything else in these fields is refused at upload.
LICENCES = {"apache-2.0", "mit", "unknown"}
TASKS = set(PIPELINES.values()) | {"image-to-image", "sentence-similarity", "unconditional-image-generation"}
OF_VARIANTS = ["Conversion", "Agreement", "What differs from transformers' RoFormer"]
# The recorded checkpoint of each published variant that has one.
RECORDED = {"v1": "roformer_v1", "gpt": "roformer_gpt", "sim": "roformer_sim", "v2": "roformer_v2"}
RECORDED = {f"roformer-{name}": case for name, case in RECORDED.items()}
ARCHIVE = re.compile(r"chinese_roformer[\w-]*_L-\d+_H-\d+_A-\d+")


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def tabled(text: str) -> list[dict[str, str]]:
    """The rows of the first table, by the heads of its columns."""
    lines = re.search(r"^\|.*?(?=\n[^|]|\Z)", text, re.MULTILINE | re.DOTALL)[0].strip().splitlines()
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, line, strict=True)) for line in body]


def archives() -> list[tuple[str, str]]:
    """Every archive that is named on the card of a variant, with that variant."""
    found = {(name, card) for card in VARIANTS for name in ARCHIVE.findall(hub.card(card))}
    return sorted(found)


def rows(text: str) -> dict[str, str]:
    """The table of a model's card."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section(text, "This model"), re.MULTILINE))


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_every_architecture_has_a_valid_card(row):
    assert hub.card(row.name) == hub.card(row.config_class.model_type)
    check(hub.card(row.name), SECTIONS)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_a_valid_card(name):
    text = hub.card(name)
    assert text == hub.card(name.replace("-", "_").upper()) == hub.card(f"noria_{name}")
    check(text, SECTIONS + OF_VARIANTS)
    row = ARCHITECTURES[VARIANTS[name].fields["model_type"]]
    heads = set(re.findall(rf"\bNoria{row.name}(?:Model|For\w+)\b", text))
    assert heads
    assert heads <= {model.__name__ for model in row.models.values()}


def check(text: str, sections: list[str]) -> None:
    data = ModelCard(text).data
    assert data.library_name == "transformers"
    assert data.license in LICENCES
    assert data.pipeline_tag in TASKS
    assert "noria" in data.tags
    assert set(sections) <= set(re.findall(r"^## (.+)$", text, re.MULTILINE))
    assert [tag for tag in data.tags if re.fullmatch(r"arxiv:\d{4}\.\d{4,5}", tag)]
    for tag in data.tags:
        assert not tag.startswith("arxiv:") or tag.partition(":")[2] in text.partition("---\n\n")[2]
    # On the Hub a card stands alone, but for its pictures.
    shown = pictures(text)
    assert all(picture.is_file() for picture in shown)
    assert len(re.findall(r"\]\((?!https://)", text)) == len(shown)


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_a_card_names_the_heads_that_there_are(row):
    text = hub.card(row.name)
    assert set(re.findall(rf"\bNoria{row.name}(?:Model|For\w+)\b", text)) == {m.__name__ for m in row.models.values()}


@pytest.mark.parametrize("name", [*(row.name for row in ARCHITECTURES.values()), *VARIANTS])
def test_the_example_of_a_card_runs(name):
    code = re.search(r"## Use\n\n```python\n(.*?)```", hub.card(name), re.DOTALL)[1]
    scope = {}
    with torch.device("meta"):
        exec(code, scope)
    model = scope["model"]
    assert type(model) in ARCHITECTURES[model.config.model_type].models.values()
    if name in VARIANTS:
        assert section(hub.card(model), "Limits") == section(hub.card(name), "Limits")


def test_every_card_belongs_to_an_architecture_or_a_variant():
    names = {row.config_class.model_type.removeprefix("noria_") for row in ARCHITECTURES.values()}
    assert {path.stem for path in Path(CARDS).glob("*.md")} == names | set(VARIANTS)


@pytest.mark.parametrize("name", [*(row.name for row in ARCHITECTURES.values()), *VARIANTS])
def test_sizes_are_what_the_code_has(name):
    """Each row of the sizes in millions, counted on the meta device, with the class and the fields that are named."""
    text = section(hub.card(name), "Sizes")
    model_type = VARIANTS[name].fields["model_type"] if name in VARIANTS else None
    row = ARCHITECTURES.get(model_type) or next(row for row in ARCHITECTURES.values() if row.name == name)
    named = re.search(rf"`Noria{row.name}(\w+)`", text)
    with_fields = re.search(r"\bwith\s`([^`]+)`", text)
    calls = ast.parse(f"f({with_fields[1] if with_fields else ''})", mode="eval").body.keywords
    common = {"vocab_size": 32000} | {call.arg: ast.literal_eval(call.value) for call in calls}
    for values in tabled(text):
        fields = {f: int(x) for column, x in values.items() for f in re.findall(r"`(\w+)`", column)}
        with torch.device("meta"):
            model = row.models[named[1] if named else "ForCausalLM"](row.config_class(**common | fields))
        assert values["parameters"] == f"{model.num_parameters() / 1e6:,.1f} M", values


@pytest.mark.parametrize("case", RECORDED.values())
def test_figures_of_agreement_are_measured(case, tmp_path):
    """The same case has the same figures on every card, and no machine is far from them."""
    sections = [section(hub.card(name), "Agreement") for name in ("roformer", *VARIANTS)]
    lines = [line for text in sections if f"`{case}`" in text for line in tabled(text)]
    stated = [line for line in lines if line["checkpoint"].startswith(f"`{case}`")]
    assert len(stated) == 2
    assert stated[0] == stated[1]
    measured = measure(case, tmp_path / "model")
    assert float(stated[0]["largest logit"]) == round(measured.pop("largest logit"), 1)
    figures = {column.replace("pooler", "pooled"): x for column, x in stated[0].items() if x[:1].isdigit()}
    assert figures.keys() - {"largest logit"} == measured.keys()
    assert all(x <= 4 * float(figures[name]) for name, x in measured.items()), measured


@pytest.mark.parametrize(("archive", "variant"), archives(), ids=lambda value: value)
def test_a_published_archive_gets_the_card_that_names_it(archive, variant, tmp_path):
    source = recorded_folder(variant, tmp_path / (archive.partition("_L-")[0] + "_L-2_H-32_A-4"))
    (source / "vocab.txt").unlink()  # a dummy, without the words of a word model
    text = hub.card(convert("bert4keras", source, tmp_path / "model"))
    assert section(text, "Sizes") == section(hub.card(variant), "Sizes")
    assert section(text, "This model")
    assert "`bert4keras`" in rows(text)["converted from"]
    export("bert4keras", tmp_path / "model", tmp_path / "back")


def recorded_folder(variant: str, folder: Path) -> Path:
    """The recorded checkpoint of a variant as its archive holds it."""
    ignored = shutil.ignore_patterns("case.json", "inputs_outputs.safetensors")
    return shutil.copytree(GOLDEN / RECORDED[variant], folder, ignore=ignored)


@pytest.mark.parametrize("name", VARIANTS)
def test_commands_of_a_card_belong_together(name):
    commands = re.findall(r"^noria (\w+) (\S+) (\S+) (\S+)$", section(hub.card(name), "Conversion"), re.MULTILINE)
    assert commands
    for (verb, format, source, target), back in zip(commands[::2], commands[1::2], strict=True):
        assert verb == "convert"
        assert format in FORMATS
        assert back == ("export", format, target, "back")
        pattern = rf"{ARCHIVE.pattern}\.zip" if format == "bert4keras" else r"junnyu/roformer_\w+"
        assert re.fullmatch(pattern, source)
        assert f"| {source.removesuffix('.zip')} |" in section(hub.card(name), "Sizes")


@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_card_does_with_a_converted_model_runs(name, tmp_path, monkeypatch):
    text = section(hub.card(name), "Conversion")
    target = re.search(r"^noria convert \S+ (\S+) (\S+)$", text, re.MULTILINE)[2]
    if name in RECORDED:
        archive = next(archive for archive, variant in archives() if variant == name and "char" in archive)
        source = recorded_folder(name, tmp_path / (archive.partition("_L-")[0] + "_L-2_H-32_A-4"))
        zipped = shutil.make_archive(str(source), "zip", tmp_path, source.name)
        convert("bert4keras", zipped, tmp_path / target)
    else:
        sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
        config = NoriaRoFormerConfig(**sizes, embedding_size=16, rotary_value=True)
        ARCHITECTURES["noria_roformer"].models["Model"](config).save_pretrained(tmp_path / target)
        write_tokenizer(GOLDEN / "roformer_v1" / "vocab.txt", tmp_path / target, "characters")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})


SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("head", "fields", "card"),
    [
        ("ForMaskedLM", {}, "roformer-v1"),
        ("ForSequenceClassification", {}, "roformer-v1"),
        ("ForCausalLM", {}, "roformer"),
        ("ForCausalLM", {"bidirectional": False}, "roformer-gpt"),
        ("Model", {"unilm": True, "pooler": "linear"}, "roformer-sim"),
        ("ForMaskedLM", {"version": 2}, "roformer-v2"),
        ("ForMaskedLM", {"version": 2, "use_bias": True}, "roformer"),
        ("ForCausalLM", {"version": 2}, "roformer"),
        ("ForMaskedLM", {"rotary_value": True}, "roformer-small-english"),
        ("ForMaskedLM", {"position_encoding": "alibi"}, "roformer"),
        ("ForMaskedLM", {"attention": "linear"}, "roformer"),
        ("ForMaskedLM", {"log_scaling": True}, "roformer"),
    ],
    ids=str,
)
def test_a_model_gets_the_card_of_its_variant(head, fields, card, tmp_path):
    model = ARCHITECTURES["noria_roformer"].models[head](NoriaRoFormerConfig(**SMALL, **fields))
    model.save_pretrained(tmp_path / "model")
    for text in (hub.card(model, name="model"), hub.card(tmp_path / "model")):
        assert section(text, "Limits") == section(hub.card(card), "Limits")
        assert ModelCard(text).data.license == "unknown"
        assert rows(text)["architecture"] == "RoFormer"


def test_variants_are_told_by_fields_that_there_are():
    known = {"model_type", *NoriaRoFormerConfig().to_dict()}
    assert all(variant.fields.keys() <= known for variant in VARIANTS.values())
    assert all(ROFORMER.items() <= variant.fields.items() for variant in VARIANTS.values())


def test_the_card_of_roformer_lists_every_position_encoding():
    table = {
        line["`position_encoding`"].strip("`"): line for line in tabled(section(hub.card("RoFormer"), "Positions"))
    }
    assert list(table) == list(ENCODINGS)
    for name, line in table.items():
        path = ROOT / "modeling" / "position" / line["file"].strip("`")
        assert path.is_file(), name
        assert (
            name == "none" or re.findall(r"\d{4}\.\d{5}|archives/\d+|GPT-NeoX", line["source"])[0] in path.read_text()
        )


@pytest.mark.parametrize("head", ["ForCausalLM", "ForSequenceClassification"])
@pytest.mark.parametrize("entry", CAUSAL[:1] + CAUSAL[-1:], ids=str)
def test_a_model_and_its_folder_have_the_same_card(entry, head, tmp_path):
    model = entry.model(head, torch.float32)
    folder = hub.save(model, tmp_path / "model")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text == hub.card(folder) == hub.card(model, name="model")
    data, facts = ModelCard(text).data, rows(text)
    assert (data.license, data.pipeline_tag, data.language) == ("unknown", PIPELINES[head], None)
    assert text.splitlines()[text.splitlines().index("---", 1) + 2] == "# model"
    assert facts["parameters"] == f"{model.num_parameters():,}"
    assert facts["layers"] == str(model.config.num_hidden_layers)
    assert facts["vocabulary"] == "61"
    assert f'{AUTO_CLASSES[head].__name__}.from_pretrained("model", trust_remote_code=True)' in text


def test_shards_are_counted_together(tmp_path):
    model = CAUSAL[0].model(dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert rows(hub.card(tmp_path))["parameters"] == f"{model.num_parameters():,}"


def test_a_licence_and_a_conversion_are_told(tmp_path):
    folder = hub.save(CAUSAL[0].model(dtype=torch.float32), tmp_path / "model")
    (folder / "conversion.json").write_text(json.dumps({"format": "fast_transformers"}))
    text = hub.card(folder, name="reader/model", license="mit")
    assert ModelCard(text).data.license == rows(text)["licence of the weights"] == "mit"
    assert "`fast_transformers`" in rows(text)["converted from"]


def test_the_card_of_a_repository(tmp_path):
    folder = hub.save(CAUSAL[0].model(dtype=torch.float32), tmp_path / "model")
    with connected() as server:
        hub.push(folder, "reader/model", token=TOKEN)
        pushed = server.repositories["reader/model"].branches["main"]
        assert rows(hub.card("reader/model")) == rows(pushed["README.md"].decode())
        with pytest.raises(OSError, match="reader/absent"):
            hub.card("reader/absent")


@pytest.mark.parametrize("source", ["transformer", "a/b/c", "nowhere/at/all/"])
def test_a_name_that_is_nothing_is_refused(source):
    with pytest.raises(ValueError, match=r"no folder.*noria_retnet.*roformer-sim"):
        hub.card(source)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        hub.card(tmp_path)
