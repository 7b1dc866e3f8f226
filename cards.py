"""Model cards: the card of an architecture, and that card with the facts of one model, for the Hub."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from transformers import PreTrainedModel

from .model_folder import CONFIG, count_parameters, find_architecture, read_config
from .network import reaching_the_hub
from .registry import ARCHITECTURES, AUTO_CLASSES, Architecture

CARDS = Path(__file__).parent / "model_cards"
PIPELINES = {
    "Model": "feature-extraction",
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
# What a configuration may say about a model's size, in the words of the card.
SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "feed-forward width",
    "vocab_size": "vocabulary",
    "dtype": "dtype",
}


class Facts(NamedTuple):
    """What a card says of one model: its configuration, its size, and the format that it was converted from."""

    config: dict[str, Any]
    parameters: int
    origin: str | None = None


def card(source: PreTrainedModel | str | os.PathLike, *, name: str | None = None, license: str = "unknown") -> str:
    """The card, as README.md has it, of a model, a saved folder, a repository on the Hub, or an architecture.

    name: the title of a model's card and the name that it is loaded by. license: of the weights, as the Hub spells it;
    a card never guesses it. An architecture is named as in `noria_retnet`, `retnet` or `RetNet`, and its own card is
    returned as it is. Raises ValueError for anything else and for a model that is not noria's, OSError for a
    repository that cannot be read.
    """
    if isinstance(source, PreTrainedModel):
        return model_card(facts_of_model(source), name or source.name_or_path, license)
    if Path(source).is_dir():
        return model_card(facts_of_folder(Path(source)), name or Path(source).resolve().name, license)
    architecture = named(str(source))
    if architecture is not None:
        return str(architecture_card(architecture))
    if Path(source).exists() or str(source).count("/") != 1:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"{str(source)!r} is no folder, no user/name on the Hub and no architecture; known: {known}.")
    return model_card(facts_of_repository(str(source)), name or str(source), license)


def named(name: str) -> Architecture | None:
    """The architecture that is called so, whatever the case, with or without `noria`."""

    def plain(name: str) -> str:
        return name.lower().removeprefix("noria").replace("_", "")

    return next((row for row in ARCHITECTURES.values() if plain(row.name) == plain(name)), None)


def architecture_card(architecture: Architecture) -> ModelCard:
    """The card in model_cards/; raises ValueError where it is missing."""
    path = CARDS / f"{architecture.config_class.model_type.removeprefix('noria_')}.md"
    if not path.is_file():
        raise ValueError(f"there is no model card for {architecture.name}: {path} is missing.")
    return ModelCard(path.read_text(encoding="utf-8"))


def facts_of_model(model: PreTrainedModel) -> Facts:
    fields = {"architectures": [type(model).__name__], "dtype": str(model.dtype).removeprefix("torch.")}
    return Facts(model.config.to_dict() | fields, model.num_parameters())


def facts_of_folder(folder: Path) -> Facts:
    record, origin = folder / "conversion.json", None
    if record.is_file():
        origin = json.loads(record.read_text(encoding="utf-8")).get("format")
    return Facts(read_config(folder), count_parameters(folder), origin)


def facts_of_repository(repo: str) -> Facts:
    api = HfApi()
    try:
        with reaching_the_hub():
            config = read_config(Path(api.hf_hub_download(repo, CONFIG)).parent)
            weights = api.get_safetensors_metadata(repo)
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ValueError(f"{repo} has no weights as safetensors that can be read: {error}") from None
    return Facts(config, sum(weights.parameter_count.values()))


def model_card(facts: Facts, name: str, license: str) -> str:
    """The architecture's card under the model's name, with a section about the model in front of the others."""
    architecture = find_architecture(facts.config.get("model_type"))
    base = architecture_card(architecture)
    model_class = (facts.config.get("architectures") or [""])[0]
    head = next((head for head, model in architecture.models.items() if model.__name__ == model_class), "Model")
    base.data.license = license
    base.data.language = None
    base.data.pipeline_tag = PIPELINES.get(head)
    title, _, text = base.text.lstrip().partition("\n")
    intro, mark, rest = text.partition("\n## ")
    section = model_section(facts, architecture, head, name, license)
    body = f"# {name or title.removeprefix('# ')}\n{intro}\n{section}{mark}{rest}"
    return str(ModelCard(f"---\n{base.data.to_yaml()}\n---\n\n{body}"))


def model_section(facts: Facts, architecture: Architecture, head: str, name: str, license: str) -> str:
    """The facts as a table, and how the model is loaded."""
    auto = AUTO_CLASSES[head].__name__
    rows = {"architecture": architecture.name, "loaded by": f"`{auto}`", "parameters": facts.parameters}
    rows |= {word: facts.config[field] for field, word in SIZES.items() if facts.config.get(field) is not None}
    if facts.origin:
        rows["converted from"] = f"files of `{facts.origin}`; `conversion.json` lists their hashes and the rules"
    rows["licence of the weights"] = "not stated" if license == "unknown" else license
    table = "\n".join(f"| {word} | {f'{x:,}' if isinstance(x, int) else x} |" for word, x in rows.items())
    return f"""## This model

| | |
|---|---|
{table}

```python
from transformers import {auto}

model = {auto}.from_pretrained("{name or "folder"}", trust_remote_code=True)
```

Where noria is installed, `import noria` registers the architecture and `trust_remote_code` is not needed.
"""
