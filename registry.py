"""Makes transformers' Auto classes know an architecture by its configuration, and lists those that are known."""

from __future__ import annotations

from typing import NamedTuple

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import is_vision_available

from .image_processing.vqgan import NoriaVQGANImageProcessor
from .tokenization.roformer_words import NoriaRoFormerTokenizer
from .tokenization.rwkv_world import NoriaRWKVTokenizer

AUTO_CLASSES = {
    "Model": AutoModel,
    "ForCausalLM": AutoModelForCausalLM,
    "ForMaskedLM": AutoModelForMaskedLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForMultipleChoice": AutoModelForMultipleChoice,
    "ForImageGeneration": AutoModel,
}


class Architecture(NamedTuple):
    """One row of the table: `name` as in Noria<name>Config, the configuration, and a model class for each head."""

    name: str
    config_class: type[PreTrainedConfig]
    models: dict[str, type[PreTrainedModel]]


ARCHITECTURES: dict[str, Architecture] = {}
# What AutoTokenizer makes of a model type whose folder has a vocabulary, but no tokenizer that says what it is.
TOKENIZERS: dict[str, type[PreTrainedTokenizerBase]] = {
    "noria_roformer": NoriaRoFormerTokenizer,
    "noria_rwkv": NoriaRWKVTokenizer,
}
# What AutoImageProcessor makes of a folder's preprocessor_config.json.
IMAGE_PROCESSORS: dict[str, type[BaseImageProcessor]] = {
    "noria_vqgan": NoriaVQGANImageProcessor,
    "noria_vqgan_prior": NoriaVQGANImageProcessor,
}


def register(config_class: type[PreTrainedConfig], *model_classes: type[PreTrainedModel]) -> None:
    """Register a configuration and its models, each under the Auto class that the end of its name tells."""
    prefix = config_class.__name__.removesuffix("Config")
    models = {model_class.__name__.removeprefix(prefix): model_class for model_class in model_classes}
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for head, model_class in models.items():
        AUTO_CLASSES[head].register(config_class, model_class, exist_ok=True)
    if config_class.model_type in TOKENIZERS:
        AutoTokenizer.register(config_class, tokenizer_class=TOKENIZERS[config_class.model_type], exist_ok=True)
    # Without Pillow AutoImageProcessor is a placeholder that only raises.
    if config_class.model_type in IMAGE_PROCESSORS and is_vision_available():
        processors = {"pil": IMAGE_PROCESSORS[config_class.model_type]}
        AutoImageProcessor.register(config_class, image_processor_classes=processors, exist_ok=True)
    ARCHITECTURES[config_class.model_type] = Architecture(prefix.removeprefix("Noria"), config_class, models)
