"""Model cards: metadata that the Hub accepts, the sections that every card has, and the facts of one model."""

import json
import re
from pathlib import Path

import pytest
import torch
from architectures import CAUSAL
from hub_server import TOKEN, connected
from huggingface_hub import ModelCard

from noria import ARCHITECTURES, hub
from noria.cards import CARDS, PIPELINES
from noria.registry import AUTO_CLASSES

SECTIONS = ["Equation", "Use", "Sizes", "Provenance", "What differs from the original", "Limits", "Licence"]
# Spelled as the Hub lists them; anything else in these fields is refused at upload.
LICENCES = {"apache-2.0", "mit", "unknown"}
TASKS = set(PIPELINES.values()) | {"image-to-image", "unconditional-image-generation"}


def rows(text: str) -> dict[str, str]:
    """The table of a model's card."""
    section = text.partition("## This model")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE))


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_every_architecture_has_a_valid_card(row):
    text = hub.card(row.name)
    assert text == hub.card(row.config_class.model_type)
    data = ModelCard(text).data
    assert data.library_name == "transformers"
    assert data.license in LICENCES
    assert data.pipeline_tag in TASKS
    assert "noria" in data.tags
    assert set(SECTIONS) <= set(re.findall(r"^## (.+)$", text, re.MULTILINE))
    assert [tag for tag in data.tags if re.fullmatch(r"arxiv:\d{4}\.\d{4,5}", tag)]
    for tag in data.tags:
        assert not tag.startswith("arxiv:") or tag.partition(":")[2] in text.partition("---\n\n")[2]


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_a_card_names_the_heads_that_there_are(row):
    text = hub.card(row.name)
    assert set(re.findall(rf"\bNoria{row.name}(?:Model|For\w+)\b", text)) == {m.__name__ for m in row.models.values()}


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=lambda row: row.name)
def test_the_example_of_a_card_runs(row):
    code = re.search(r"## Use\n\n```python\n(.*?)```", hub.card(row.name), re.DOTALL)[1]
    scope = {}
    with torch.device("meta"):
        exec(code, scope)
    assert type(scope["model"]) in row.models.values()


def test_every_card_belongs_to_an_architecture():
    names = {row.config_class.model_type.removeprefix("noria_") for row in ARCHITECTURES.values()}
    assert {path.stem for path in Path(CARDS).glob("*.md")} == names


def test_sizes_are_what_the_code_has():
    """Each row of the sizes in millions, counted on the meta device."""
    for row in ARCHITECTURES.values():
        table = hub.card(row.name).partition("## Sizes")[2].partition("\n## ")[0]
        head, *lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
        for line in lines[1:]:
            values = dict(zip(head, line, strict=True))
            fields = {f: int(x) for name, x in values.items() for f in re.findall(r"`(\w+)`", name)}
            config = row.config_class(**{"vocab_size": 32000} | fields)
            with torch.device("meta"):
                model = row.models["ForCausalLM"](config)
            assert values["parameters"] == f"{model.num_parameters() / 1e6:,.1f} M", line


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
    with pytest.raises(ValueError, match=r"no folder.*noria_retnet"):
        hub.card(source)


def test_a_folder_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        hub.card(tmp_path)
