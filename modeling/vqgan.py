"""VQGAN: Esser, Rombach and Ommer 2021, Taming Transformers for High-Resolution Image Synthesis (arXiv:2012.09841)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss
from transformers.utils.generic import ModelOutput, can_return_tuple

from ..configuration.vqgan import NoriaVQGANConfig
from .checked_files import CheckedFiles
from .image.decoder import Decoder
from .image.encoder import Encoder
from .image.inputs import check_codes, check_latents, check_pixels
from .image.quantizers import QUANTIZERS
from .image.tiling import decode_tiles, encode_tiles

RECONSTRUCTION_LOSSES = {"image": l1_loss, "segmentation": binary_cross_entropy_with_logits}


@dataclass
class NoriaVQGANEncoderOutput(ModelOutput):
    """codes (b h w), int64; quantized (b d h w), what they stand for; latents (b d h w), before quantization.

    quantizer_loss and perplexity, of the batch's use of codes, are scalars in float32.
    """

    codes: Tensor | None = None
    quantized: Tensor | None = None
    latents: Tensor | None = None
    quantizer_loss: Tensor | None = None
    perplexity: Tensor | None = None


@dataclass
class NoriaVQGANOutput(ModelOutput):
    """loss = reconstruction_loss + `codebook_weight` quantizer_loss; reconstruction (b c h w); what encoding gave."""

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    codes: Tensor | None = None
    quantized: Tensor | None = None
    latents: Tensor | None = None
    reconstruction_loss: Tensor | None = None
    quantizer_loss: Tensor | None = None
    perplexity: Tensor | None = None


class NoriaVQGANModel(CheckedFiles):
    """An encoder from pixels to a map of codes, and a decoder from codes to pixels.

    Pixels are in [-1, 1]; the decoder's may pass these bounds. Images of segmentation models have a channel for each
    label, 1 where it holds, and the decoder returns logits.
    """

    config: NoriaVQGANConfig
    base_model_prefix = "vqgan"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    # The output's loss is a mean over pixels already.
    accepts_loss_kwargs = False
    _no_split_modules = ["ResidualBlock", "AttentionBlock", "LinearBlock"]
    # Searched for in names, as a pattern: neither pre_quantizer and post_quantizer nor integers are meant.
    _keep_in_fp32_modules_strict = [r"\bquantizer\.(?!used_codes|dead_codes)"]
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(self, config: NoriaVQGANConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = QUANTIZERS[config.quantizer](config)
        self.pre_quantizer = nn.Conv2d(self.encoder.conv_out.out_channels, config.code_size, 1)
        self.post_quantizer = nn.Conv2d(config.code_size, config.latent_channels, 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if std is None and isinstance(module, nn.Conv2d | nn.Embedding | nn.Linear):
            module.reset_parameters()
        else:
            super()._init_weights(module)
        initialize = getattr(module, "initialize", None)
        if initialize is not None:
            initialize(std)

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, at which VQGAN's losses are balanced."""
        return self.decoder.conv_out.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.conv_in

    @can_return_tuple
    def encode(self, pixel_values: Tensor) -> NoriaVQGANEncoderOutput:
        """pixel_values (b c h w) in [-1, 1] -> codes (b h/f w/f) with what belongs to them, f = `config.downsampling`.

        Raises ValueError for another number of channels, sides that f does not divide, and values that are not finite.
        """
        check_pixels(pixel_values, self.config.num_channels, self.config.downsampling)
        return self.quantize(self.latents(pixel_values.to(self.dtype)))

    @can_return_tuple
    def encode_tiled(
        self, pixel_values: Tensor, *, tile: int | None = None, overlap: int | None = None
    ) -> NoriaVQGANEncoderOutput:
        """`encode` in memory that does not grow with the image, tile by tile; near it, since norms see one tile each.

        tile: the side of a tile in pixels, by default `config.image_size`. overlap: what neighbours share, a quarter
        of it by default. Raises ValueError as `encode`, and for tiles that are not made of whole codes.
        """
        factor, size = self.config.downsampling, self.config.image_size
        check_pixels(pixel_values, self.config.num_channels, factor)
        return self.quantize(encode_tiles(self.latents, pixel_values.to(self.dtype), factor, size, tile, overlap))

    def latents(self, pixel_values: Tensor) -> Tensor:
        """pixel_values (b c h w), of the model's dtype -> what is quantized, (b d h/f w/f)."""
        # The weights alone choose the memory format: on the CPU torch's group norm loses two digits in channels_last.
        return self.pre_quantizer(self.encoder(pixel_values.contiguous()))

    def quantize(self, latents: Tensor) -> NoriaVQGANEncoderOutput:
        """latents (b d h w) -> their codes, with what belongs to them."""
        output = self.quantizer(latents)
        return NoriaVQGANEncoderOutput(
            codes=output.codes,
            quantized=output.quantized,
            latents=latents,
            quantizer_loss=output.loss,
            perplexity=output.perplexity,
        )

    def decode(self, quantized: Tensor) -> Tensor:
        """quantized (b d h w) -> pixels (b c fh fw), not clamped. Raises ValueError for another d than `code_size`."""
        check_latents(quantized, self.config.code_size)
        return self.pixels(quantized.to(self.dtype))

    def decode_tiled(self, quantized: Tensor, *, tile: int | None = None, overlap: int | None = None) -> Tensor:
        """`decode` in memory that grows with the pixels only, tile by tile; near it, since norms see one tile each.

        tile, overlap: in pixels, as in `encode_tiled`. Raises ValueError as `decode`, and for tiles that are not made
        of whole codes.
        """
        check_latents(quantized, self.config.code_size)
        factor, size = self.config.downsampling, self.config.image_size
        return decode_tiles(self.pixels, quantized.to(self.dtype), factor, size, tile, overlap)

    def pixels(self, quantized: Tensor) -> Tensor:
        """quantized (b d h w), of the model's dtype -> pixels (b c fh fw)."""
        return self.decoder(self.post_quantizer(quantized.contiguous()))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """codes (b h w), integers -> pixels (b c fh fw). Raises ValueError for codes that the model does not have."""
        check_codes(codes, self.config.num_codes)
        return self.decode(self.quantizer.lookup(codes.long()))

    @can_return_tuple
    def forward(self, pixel_values: Tensor) -> NoriaVQGANOutput:
        """pixel_values (b c h w) -> their reconstruction, and the loss that a plain Trainer minimises.

        VQGANTrainer adds the perceptual and adversarial terms. Raises ValueError as `encode`, and where the model
        writes another number of channels than it reads.
        """
        check_pixels(pixel_values, self.config.num_channels, self.config.downsampling)
        latents = self.latents(pixel_values.to(self.dtype))
        output = self.quantizer(latents)
        reconstruction = self.pixels(output.quantized)
        reconstruction_loss = self.reconstruction_loss(reconstruction, pixel_values)
        return NoriaVQGANOutput(
            loss=reconstruction_loss + self.config.codebook_weight * output.loss,
            reconstruction=reconstruction,
            codes=output.codes,
            quantized=output.quantized,
            latents=latents,
            reconstruction_loss=reconstruction_loss,
            quantizer_loss=output.loss,
            perplexity=output.perplexity,
        )

    def reconstruction_loss(self, reconstruction: Tensor, pixel_values: Tensor) -> Tensor:
        if self.config.output_channels != self.config.num_channels:
            raise ValueError(
                f"the model reads {self.config.num_channels} channels and writes {self.config.output_channels}: its "
                "output is no reconstruction. Use `encode` and `decode`."
            )
        wide = torch.promote_types(reconstruction.dtype, torch.float32)
        return RECONSTRUCTION_LOSSES[self.config.task](reconstruction.to(wide), pixel_values.to(wide))


__all__ = ["NoriaVQGANEncoderOutput", "NoriaVQGANModel", "NoriaVQGANOutput"]
