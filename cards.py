"""Model cards: of an architecture, of its published variants, and either with the facts of one model, for the Hub."""

import json
import os
import re
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
    "ForMultipleChoice": "multiple-choice",
    "ForImageGeneration": "unconditional-image-generation",
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


class Variant(NamedTuple):
    """What has been published of an architecture and has a card: what its configurations say, and a head it is not."""

    fields: dict[str, Any]
    other_head: str = ""

    def has(self, config: dict[str, Any]) -> bool:
        """Whether a model with this configuration is such a variant."""
        heads = config.get("architectures") or [""]
        if self.other_head and heads[0].endswith(self.other_head):
            return False
        return all(config.get(field) == value for field, value in self.fields.items())


ROFORMER = {
    "model_type": "noria_roformer",
    "position_encoding": "rotary",
    "attention": "softmax",
    "log_scaling": False,
    "enhanced_mask_decoder": False,
}
ROFORMER_V1 = {**ROFORMER, "version": 1, "norm_type": "layer_norm", "use_bias": True, "head_transform": True}
ROFORMER_V2 = {**ROFORMER, "version": 2, "norm_type": "rms_norm", "use_bias": False, "head_transform": False}
ENCODER = {"bidirectional": True, "unilm": False}
# By the name of the card: the first that a configuration has is the model's, and its architecture's if it has none.
# A causal head makes a GPT of an encoder's tensors, and the encoder's card would not be about it.
VARIANTS = {
    "roformer-sim": Variant({**ROFORMER_V1, "unilm": True, "pooler": "linear", "rotary_value": False}),
    "roformer-gpt": Variant({**ROFORMER_V1, "bidirectional": False, "unilm": False, "rotary_value": False}),
    "roformer-small-english": Variant({**ROFORMER_V1, **ENCODER, "rotary_value": True}, other_head="ForCausalLM"),
    "roformer-v1": Variant({**ROFORMER_V1, **ENCODER, "rotary_value": False}, other_head="ForCausalLM"),
    "roformer-v2": Variant({**ROFORMER_V2, **ENCODER, "rotary_value": False}, other_head="ForCausalLM"),
}


class Facts(NamedTuple):
    """What a card says of one model: its configuration, its size, and the format that it was converted from."""

    config: dict[str, Any]
    parameters: int
    origin: str | None = None


def card(source: PreTrainedModel | str | os.PathLike, *, name: str | None = None, license: str = "unknown") -> str:
    """The card, as README.md has it, of a model, a saved folder, a Hub repository, an architecture or a variant.

    name: the title of a model's card and the name that it is loaded by. license: of the weights, as the Hub spells it;
    a card never guesses it. An architecture is named as in `noria_retnet`, `retnet` or `RetNet`, a published variant
    as in `roformer-sim`, and their own cards are returned as they are. Raises ValueError for anything else and for a
    model that is not noria's, OSError for a repository that cannot be read.
    """
    if isinstance(source, PreTrainedModel):
        return model_card(facts_of_model(source), name or source.name_or_path, license)
    if Path(source).is_dir():
        return model_card(facts_of_folder(Path(source)), name or Path(source).resolve().name, license)
    found = named(str(source))
    if found is not None:
        return str(read_card(found))
    if Path(source).exists() or str(source).count("/") != 1:
        known = ", ".join([*sorted(ARCHITECTURES), *sorted(VARIANTS)])
        raise ValueError(f"{str(source)!r} is no folder, no user/name on the Hub and no architecture; known: {known}.")
    return model_card(facts_of_repository(str(source)), name or str(source), license)


def named(name: str) -> str | None:
    """The card of the architecture or variant that is called so, whatever the case, with or without `noria`."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "").replace("-", "").removeprefix("noria")

    cards = {plain(row.name): card_name(row) for row in ARCHITECTURES.values()}
    cards |= {plain(variant): variant for variant in VARIANTS}
    return cards.get(plain(name))


def card_name(architecture: Architecture) -> str:
    return architecture.config_class.model_type.removeprefix("noria_")


def choose_card(config: dict[str, Any], architecture: Architecture) -> str:
    """The name of the card of a model: its variant's, or else its architecture's."""
    return next((name for name, variant in VARIANTS.items() if variant.has(config)), card_name(architecture))


def pictures(text: str) -> list[Path]:
    """The files in model_cards/ that a card shows: they go where the card goes."""
    return [CARDS / name for name in re.findall(r"!\[[^\]]*\]\(([\w.-]+)\)", text)]


def read_card(name: str) -> ModelCard:
    """The card in model_cards/; raises ValueError where it is missing."""
    path = CARDS / f"{name}.md"
    if not path.is_file():
        raise ValueError(f"there is no model card for {name}: {path} is missing.")
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
    """The variant's or architecture's card under the model's name, a section about the model before the others."""
    architecture = find_architecture(facts.config.get("model_type"))
    base = read_card(choose_card(facts.config, architecture))
    model_class = (facts.config.get("architectures") or [""])[0]
    head = next((head for head, model in architecture.models.items() if model.__name__ == model_class), "Model")
    base.data.license = license
    base.data.language = None
    if len(architecture.models) > 1:  # else its own card says what its one model is for
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
