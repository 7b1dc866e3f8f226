"""A condition as its user has it, turned into the tokens that a prior over codes reads first."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from .checked_files import CheckedFiles
from .image.conditions import check_ids, class_ids, coordinate_ids, make_coordinates, map_codes, token_ids

logger = logging.get_logger(__name__)


class ImageCondition(CheckedFiles):
    """What a model needs of its configuration is `condition` and the fields that go with that kind."""

    config: Any

    @property
    def first_stage(self) -> Any:
        """What makes codes of images, and images of codes; or None."""
        raise AttributeError(f"{type(self).__name__} does not say what its first stage is.")

    @property
    def condition_stage(self) -> Any:
        """What makes codes of conditions; or None."""
        return self.first_stage

    @torch.no_grad()
    def condition_tokens(self, condition: Any, batch: int, size: tuple[int, int]) -> Tensor:
        """The condition of `batch` images of `size` codes, as the prior's ids: (b n), or (b h w) for a map.

        One condition serves all images. Raises ValueError for what the model's kind of condition is not.
        """
        ids = self.read_condition(condition, size)
        if ids.shape[0] == 1:
            ids = ids.expand(batch, *ids.shape[1:])
        if ids.shape[0] != batch:
            raise ValueError(f"{ids.shape[0]} conditions for {batch} images: give one for each, or one for all.")
        ids = ids + self.config.condition_offset
        check_ids(ids, self.config.prior_config.vocab_size, "the condition's tokens, which the prior must know,")
        return ids

    def read_condition(self, condition: Any, size: tuple[int, int]) -> Tensor:
        config, kind = self.config, self.config.condition
        if kind == "none":
            if condition is not None:
                logger.warning_once("this model has no condition: what is given as one tells the number of images.")
            count = 1 if condition is None else len(condition)
            return torch.full((count, 1), config.sos_token, device=self.device)
        if kind == "coordinates":
            return self.read_coordinates(condition, size)
        if condition is None:
            raise ValueError(f"this model needs a `condition` of the kind {kind!r}.")
        if kind == "class":
            names = {name: number for number, name in config.id2label.items()}
            return class_ids(condition, config.num_labels, names, self.device)
        if kind == "tokens":
            return token_ids(condition, config.condition_length, self.device)
        return self.read_map(torch.as_tensor(condition, device=self.device))

    def read_coordinates(self, condition: Any, size: tuple[int, int]) -> Tensor:
        config, pixels = self.config, self.config.coordinate_downsampling
        if condition is None:
            condition = make_coordinates(1, size[0] * pixels, size[1] * pixels, self.device)
        condition = torch.as_tensor(condition, device=self.device)
        if condition.is_floating_point():
            ids = coordinate_ids(condition, config.coordinate_levels, pixels)
        else:
            ids = map_codes(condition, config.coordinate_levels + 1)
        if tuple(ids.shape[1:]) != size:
            grid = "x".join(map(str, ids.shape[1:]))
            raise ValueError(f"coordinates for {grid} codes do not fit a map of {size[0]}x{size[1]}.")
        return ids

    def read_map(self, condition: Tensor) -> Tensor:
        """Pixels (b c h w) of a map, or its codes -> codes (b h w)."""
        stage = self.condition_stage
        if not condition.is_floating_point():
            return map_codes(condition, self.config.num_condition_ids)
        if stage is None:
            raise ValueError("this model has nothing to encode a condition with: give its codes, which are integers.")
        if side := self.config.condition_size:
            condition = F.interpolate(condition, size=(side, side))
        return stage.encode(condition).codes
