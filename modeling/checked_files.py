"""Reading and writing models where a file may be damaged or a target impossible: the error names it."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel


class CheckedFiles(PreTrainedModel):
    """A PreTrainedModel whose loading and saving fail by name."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As transformers has it. Raises OSError naming the safetensors file that is cut short or no such file."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        except SafetensorError as error:
            source = damaged_file(pretrained_model_name_or_path)
            raise OSError(f"{source} is damaged, or not a safetensors file: {error}.") from error

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As transformers has it. Raises NotADirectoryError where a file bears the folder's name."""
        if Path(save_directory).is_file():
            # transformers would log a line and save nothing.
            raise NotADirectoryError(f"cannot save a model to {save_directory}: it is a file, and a folder is wanted.")
        super().save_pretrained(save_directory, *args, **kwargs)


def damaged_file(source: str | os.PathLike) -> str:
    """The first safetensors file of the folder `source` that cannot be opened; else `source` itself."""
    for path in sorted(Path(source).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return str(path)
    return str(source)
