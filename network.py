"""A Hub that cannot be reached, said in one line, whichever HTTP library huggingface_hub speaks through."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants


@contextmanager
def reaching_the_hub() -> Iterator[None]:
    """Raises ConnectionError naming the endpoint where the network fails; everything else passes through.

    huggingface_hub went from requests to httpx and on to httpx2, and re-raises their transport errors, which are
    neither OSError nor errors of its own.
    """
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("requests", "httpx", "httpx2"):
            raise
        raise ConnectionError(f"the Hub at {constants.ENDPOINT} cannot be reached: {error}") from error
