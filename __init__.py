"""noria: rotary, linear-attention, state-space and VQGAN architectures as Hugging Face Transformers models.

Importing this package registers every architecture with transformers' Auto classes:

    import noria
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("noria-quickstart")
"""

from .configuration.gan import NoriaGANConfig
from .configuration.hippo import NoriaHiPPOConfig
from .configuration.linear_transformer import NoriaLinearTransformerConfig
from .configuration.lru import NoriaLRUConfig
from .configuration.mamba import NoriaMambaConfig
from .configuration.mamba2 import NoriaMamba2Config
from .configuration.retnet import NoriaRetNetConfig
from .configuration.roformer import NoriaRoFormerConfig
from .configuration.rwkv import NoriaRWKVConfig
from .configuration.s4 import NoriaS4Config
from .configuration.vqgan import NoriaVQGANConfig
from .configuration.vqgan_prior import NoriaVQGANPriorConfig
from .image_processing.vqgan import NoriaVQGANImageProcessor
from .modeling.cache import NoriaCache
from .modeling.gan import NoriaGANModel
from .modeling.hippo import NoriaHiPPOForCausalLM, NoriaHiPPOForSequenceClassification, NoriaHiPPOModel
from .modeling.linear_transformer import (
    NoriaLinearTransformerForCausalLM,
    NoriaLinearTransformerForMaskedLM,
    NoriaLinearTransformerForSequenceClassification,
    NoriaLinearTransformerModel,
)
from .modeling.lru import NoriaLRUForCausalLM, NoriaLRUForSequenceClassification, NoriaLRUModel
from .modeling.mamba import (
    NoriaMambaForCausalLM,
    NoriaMambaForMaskedLM,
    NoriaMambaForSequenceClassification,
    NoriaMambaForTokenClassification,
    NoriaMambaModel,
)
from .modeling.mamba2 import (
    NoriaMamba2ForCausalLM,
    NoriaMamba2ForMaskedLM,
    NoriaMamba2ForSequenceClassification,
    NoriaMamba2ForTokenClassification,
    NoriaMamba2Model,
)
from .modeling.retnet import NoriaRetNetForCausalLM, NoriaRetNetForSequenceClassification, NoriaRetNetModel
from .modeling.roformer import (
    NoriaRoFormerForCausalLM,
    NoriaRoFormerForMaskedLM,
    NoriaRoFormerForMultipleChoice,
    NoriaRoFormerForQuestionAnswering,
    NoriaRoFormerForSequenceClassification,
    NoriaRoFormerForTokenClassification,
    NoriaRoFormerModel,
)
from .modeling.rwkv import NoriaRWKVForCausalLM, NoriaRWKVForSequenceClassification, NoriaRWKVModel
from .modeling.s4 import NoriaS4ForCausalLM, NoriaS4ForSequenceClassification, NoriaS4Model
from .modeling.vqgan import NoriaVQGANModel
from .modeling.vqgan_prior import NoriaVQGANPriorForImageGeneration
from .registry import ARCHITECTURES, register
from .tokenization.roformer_words import NoriaRoFormerTokenizer
from .tokenization.rwkv_world import NoriaRWKVTokenizer
from .training.param_groups import param_groups

__version__ = "0.1.0"

register(NoriaGANConfig, NoriaGANModel)
register(NoriaHiPPOConfig, NoriaHiPPOModel, NoriaHiPPOForCausalLM, NoriaHiPPOForSequenceClassification)
register(
    NoriaLinearTransformerConfig,
    NoriaLinearTransformerModel,
    NoriaLinearTransformerForCausalLM,
    NoriaLinearTransformerForMaskedLM,
    NoriaLinearTransformerForSequenceClassification,
)
register(NoriaLRUConfig, NoriaLRUModel, NoriaLRUForCausalLM, NoriaLRUForSequenceClassification)
register(
    NoriaMambaConfig,
    NoriaMambaModel,
    NoriaMambaForCausalLM,
    NoriaMambaForMaskedLM,
    NoriaMambaForSequenceClassification,
    NoriaMambaForTokenClassification,
)
register(
    NoriaMamba2Config,
    NoriaMamba2Model,
    NoriaMamba2ForCausalLM,
    NoriaMamba2ForMaskedLM,
    NoriaMamba2ForSequenceClassification,
    NoriaMamba2ForTokenClassification,
)
register(NoriaRetNetConfig, NoriaRetNetModel, NoriaRetNetForCausalLM, NoriaRetNetForSequenceClassification)
register(
    NoriaRoFormerConfig,
    NoriaRoFormerModel,
    NoriaRoFormerForMaskedLM,
    NoriaRoFormerForCausalLM,
    NoriaRoFormerForSequenceClassification,
    NoriaRoFormerForTokenClassification,
    NoriaRoFormerForQuestionAnswering,
    NoriaRoFormerForMultipleChoice,
)
register(NoriaRWKVConfig, NoriaRWKVModel, NoriaRWKVForCausalLM, NoriaRWKVForSequenceClassification)
register(NoriaS4Config, NoriaS4Model, NoriaS4ForCausalLM, NoriaS4ForSequenceClassification)
register(NoriaVQGANConfig, NoriaVQGANModel)
register(NoriaVQGANPriorConfig, NoriaVQGANPriorForImageGeneration)

__all__ = [
    "ARCHITECTURES",
    "NoriaCache",
    "NoriaGANConfig",
    "NoriaGANModel",
    "NoriaHiPPOConfig",
    "NoriaHiPPOForCausalLM",
    "NoriaHiPPOForSequenceClassification",
    "NoriaHiPPOModel",
    "NoriaLRUConfig",
    "NoriaLRUForCausalLM",
    "NoriaLRUForSequenceClassification",
    "NoriaLRUModel",
    "NoriaLinearTransformerConfig",
    "NoriaLinearTransformerForCausalLM",
    "NoriaLinearTransformerForMaskedLM",
    "NoriaLinearTransformerForSequenceClassification",
    "NoriaLinearTransformerModel",
    "NoriaMamba2Config",
    "NoriaMamba2ForCausalLM",
    "NoriaMamba2ForMaskedLM",
    "NoriaMamba2ForSequenceClassification",
    "NoriaMamba2ForTokenClassification",
    "NoriaMamba2Model",
    "NoriaMambaConfig",
    "NoriaMambaForCausalLM",
    "NoriaMambaForMaskedLM",
    "NoriaMambaForSequenceClassification",
    "NoriaMambaForTokenClassification",
    "NoriaMambaModel",
    "NoriaRWKVConfig",
    "NoriaRWKVForCausalLM",
    "NoriaRWKVForSequenceClassification",
    "NoriaRWKVModel",
    "NoriaRWKVTokenizer",
    "NoriaRetNetConfig",
    "NoriaRetNetForCausalLM",
    "NoriaRetNetForSequenceClassification",
    "NoriaRetNetModel",
    "NoriaRoFormerConfig",
    "NoriaRoFormerForCausalLM",
    "NoriaRoFormerForMaskedLM",
    "NoriaRoFormerForMultipleChoice",
    "NoriaRoFormerForQuestionAnswering",
    "NoriaRoFormerForSequenceClassification",
    "NoriaRoFormerForTokenClassification",
    "NoriaRoFormerModel",
    "NoriaRoFormerTokenizer",
    "NoriaS4Config",
    "NoriaS4ForCausalLM",
    "NoriaS4ForSequenceClassification",
    "NoriaS4Model",
    "NoriaVQGANConfig",
    "NoriaVQGANImageProcessor",
    "NoriaVQGANModel",
    "NoriaVQGANPriorConfig",
    "NoriaVQGANPriorForImageGeneration",
    "convert",
    "export",
    "param_groups",
]


def __getattr__(name: str):
    # Conversion is imported when it is first asked for: most sessions never do.
    if name == "convert":
        from .conversion.convert import convert

        return convert
    if name == "export":
        from .conversion.export import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
