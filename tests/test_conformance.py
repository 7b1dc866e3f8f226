"""transformers' own test mixins, run against every causal architecture.

Nothing is fetched: TRANSFORMERS_TESTS names the folder `tests` of a checkout of the release
installed.
`make conformance` runs this file and prints passed / failed / skipped for each class.
"""

import os
import sys
import unittest
from pathlib import Path

import pytest
from transformers.models.auto import modeling_auto

from noria import ARCHITECTURES

SOURCES = os.environ.get("TRANSFORMERS_TESTS")
if not SOURCES:
    pytest.skip("TRANSFORMERS_TESTS names no folder with transformers' tests", allow_module_level=True)

AUTO_NAMES = {
    "Model": modeling_auto.MODEL_MAPPING_NAMES,
    "ForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "ForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "ForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "ForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "ForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "ForMultipleChoice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "ForImageGeneration": modeling_auto.MODEL_MAPPING_NAMES,
}


def load_tester():
    """Import transformers' `tests.causal_lm_tester`, under the name by which its files import one another."""
    folder = Path(SOURCES).resolve()
    if not (folder / "causal_lm_tester.py").is_file():
        raise ValueError(f"TRANSFORMERS_TESTS is {SOURCES!r}, a path without causal_lm_tester.py")
    # The mixins choose labels and base models by these names, which transformers' registration does not fill.
    for model_type, architecture in ARCHITECTURES.items():
        for head, model_class in architecture.models.items():
            AUTO_NAMES.get(head, {})[model_type] = model_class.__name__
    # pytest may have named our own folder `tests` already.
    for name in [name for name in sys.modules if name == "tests" or name.startswith("tests.")]:
        if name != __name__:
            del sys.modules[name]
    sys.path.insert(0, str(folder.parent))
    from tests import causal_lm_tester

    return causal_lm_tester


tester = load_tester()


class RecurrentMixin(tester.CausalLMModelTest):
    """Where the mixins look for keys and values, a constant state has tensors with a row for each sequence."""

    has_attentions = False

    def _check_past_key_values_for_generate(self, batch_size, past_key_values, seq_length, config):
        assert len(past_key_values.layers) == config.num_hidden_layers
        for layer in past_key_values.layers:
            assert layer.state
            assert all(part.shape[0] == batch_size for part in layer.state)

    def test_left_padding_compatibility(self):
        # The mixin skips it for models without attention maps, though ours hide padding.
        self.has_attentions = True
        super().test_left_padding_compatibility()


def model_tester(architecture):
    models = architecture.models
    attributes = {
        "config_class": architecture.config_class,
        "base_model_class": models["Model"],
        "causal_lm_class": models["ForCausalLM"],
        "sequence_classification_class": models.get("ForSequenceClassification"),
        "token_classification_class": models.get("ForTokenClassification"),
        "question_answering_class": models.get("ForQuestionAnswering"),
    }
    return type(f"{architecture.name}Tester", (tester.CausalLMModelTester,), attributes)


def causal_class(architecture):
    grows = "full_attention" in architecture.config_class().layer_types
    mixin = tester.CausalLMModelTest if grows else RecurrentMixin
    attributes = {"model_tester_class": model_tester(architecture), "__module__": __name__}
    return type(f"{architecture.name}Test", (mixin, unittest.TestCase), attributes)


def masked_class(architecture):
    def set_up(self):
        self.model_tester = model_tester(architecture)(self)

    attributes = {
        "all_model_classes": (architecture.models["ForMaskedLM"],),
        "has_attentions": "full_attention" in architecture.config_class().layer_types,
        "setUp": set_up,
        "__module__": __name__,
    }
    return type(f"{architecture.name}MaskedTest", (tester.ModelTesterMixin, unittest.TestCase), attributes)


for architecture in ARCHITECTURES.values():
    if "ForCausalLM" in architecture.models:
        globals()[f"{architecture.name}Test"] = causal_class(architecture)
    if "ForMaskedLM" in architecture.models:
        globals()[f"{architecture.name}MaskedTest"] = masked_class(architecture)
