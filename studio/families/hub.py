"""Fetch a diffusers model from the Hugging Face hub: the files that are needed, resumed after a break, one line when it fails."""

import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studio.errors import BaseError

_WANTED = ("*.json", "*.txt", "*.safetensors", "*.model", "README.md", "LICENSE*")
_PARTS = ("unet/", "transformer/", "vae/", "text_encoder/", "text_encoder_2/", "tokenizer/", "tokenizer_2/", "scheduler/")


def fetch(repo: str, into: Path, token: str | None, on_progress: Callable[[int, int], None]) -> None:
    """Bring the model's files into the folder. Raises BaseError."""
    from huggingface_hub import HfApi, hf_hub_download

    with _told(repo):
        info = HfApi(token=token).model_info(repo, files_metadata=True)
    sizes = wanted({entry.rfilename: entry.size or 0 for entry in info.siblings or ()})
    if "model_index.json" not in sizes:
        raise BaseError(f"{repo}: is no diffusers model (no model_index.json); download its .safetensors file and name that instead")
    total, done = sum(sizes.values()), 0
    on_progress(0, total)
    for name, size in sorted(sizes.items(), key=lambda item: item[1]):
        with _told(repo):
            hf_hub_download(
                repo, name, revision=info.sha, local_dir=into, token=token, tqdm_class=_counting(lambda n, before=done: on_progress(before + n, total))
            )
        done += size
        on_progress(done, total)


def wanted(sizes: dict[str, int]) -> dict[str, int]:
    """The files worth fetching of all in a repository: no pickles, no second copies in another precision or for another framework."""
    found = {
        name: size
        for name, size in sizes.items()
        if ("/" not in name or name.startswith(_PARTS)) and any(fnmatch.fnmatch(name.rpartition("/")[2], pattern) for pattern in _WANTED)
    }
    single = {name for name in found if "/" not in name and name.endswith(".safetensors")}
    foreign = {name for name in found if "openvino" in name or "flax" in name or "onnx" in name}
    plain = {name for name in found if name.endswith(".safetensors") and ".fp16." not in name and "/" in name}
    folders = {name.partition("/")[0] for name in plain}
    twice = {name for name in found if ".fp16." in name and name.partition("/")[0] in folders}
    return {name: size for name, size in found.items() if name not in single | foreign | twice}


def _counting(report: Callable[[int], None]) -> Any:
    """A progress bar for the hub's client that draws nothing and reports bytes."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.seen = int(kwargs.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self.seen += int(n or 0)
            report(self.seen)
            return None

    return Bar


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """What the hub's client raises, in one line with the way out."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise BaseError(f"{repo} is gated: accept its licence at https://huggingface.co/{repo} and give an access token with --token or HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise BaseError(f"{repo}: the hub has no such model, or it is private; check the name, or give an access token with --token") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise BaseError(f"{repo}: the hub cannot be reached ({_first_line(error)}); check the network, or copy the model folder here and name that") from None
    except errors.HfHubHTTPError as error:
        raise BaseError(f"{repo}: the hub answered with an error ({_first_line(error)}); try again later") from None
    except OSError as error:
        raise BaseError(f"{repo}: cannot be stored ({error.strerror or _first_line(error)}); free some space or choose another data folder") from None
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):  # whichever the hub's client is built on
            raise
        raise BaseError(f"{repo}: the hub cannot be reached ({_first_line(error)}); check the network, or copy the model folder here and name that") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
