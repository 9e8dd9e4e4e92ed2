"""Run inside the environment: are its packages whole, and what does torch find? One JSON line."""

import json
from importlib.metadata import Distribution, distributions


def broken() -> list[str]:
    """Names of packages of which a file is missing or has another size than its record says."""
    return sorted({name for package in distributions() if (name := package.metadata["Name"]) and not _is_whole(package)})


def _is_whole(package: Distribution) -> bool:
    try:
        files = package.files
    except OSError:
        return False
    if files is None:
        return False
    for file in files:
        if file.size is None:  # compiled files and the record itself
            continue
        path = file.locate()
        try:
            if path.stat().st_size != file.size:  # type: ignore[attr-defined]
                return False
        except OSError:
            return False
    return True


def describe_torch() -> dict[str, str]:
    import torch

    note = ""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name(0)
    elif torch.backends.mps.is_available():
        device = "Apple GPU"
    else:
        device = "CPU"
        if torch.version.cuda:
            note = f"torch finds no NVIDIA card. If there is one, its driver is too old for CUDA {torch.version.cuda}: update the driver."
    return {"torch": torch.__version__, "device": device, "note": note}


if __name__ == "__main__":
    found = broken()
    print(json.dumps({"broken": found, **(describe_torch() if not found else {"torch": "", "device": "", "note": ""})}))
