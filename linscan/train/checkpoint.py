"""Everything a run needs to go on as if it had never stopped, in one file that is replaced in one move."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from linscan.train.storage import BadFile, decode, encode, write

NAME = "checkpoint.safetensors"
_VERSION = 1


@dataclass
class Progress:
    """The numbers of a run. Randomness and the place in the data follow from the seed and the step."""

    step: int = 0
    best: float | None = None  # the lowest test loss so far
    waited: int = 0  # evaluations since
    stopped: str = ""  # why the run is over, if it is
    scale: float = 1.0  # what the loss is multiplied by
    clean: int = 0  # steps since a scaled gradient overflowed
    loss: float = 0.0  # summed since the last evaluation
    counted: int = 0
    schedule: dict[str, float] = field(default_factory=dict)


def write_checkpoint(path: Path, who: str, params: Any, moments: Any, progress: Progress) -> None:
    """Save the run of which `who` describes model, data and settings."""
    about = {"version": _VERSION, "who": who, "progress": asdict(progress)}
    write(path, encode({"params": params, "moments": moments}, {"linscan": json.dumps(about)}))


def read_checkpoint(path: Path, who: str) -> tuple[Any, Any, Progress]:
    """Parameters, moments and progress; BadFile if the file is damaged, foreign, or of another run."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror}") from error
    tree, metadata = decode(data, str(path))
    if "linscan" not in metadata or "params" not in tree:
        raise BadFile(f"{path}: a safetensors file, but not a checkpoint of linscan")
    about = json.loads(metadata["linscan"])
    if about["version"] != _VERSION:
        raise BadFile(f"{path}: of version {about['version']}; this linscan reads {_VERSION}")
    if about["who"] != who:
        raise BadFile(f"{path}: of another run:\n  it is   {about['who']}\n  this is {who}")
    return tree["params"], tree.get("moments", {}), Progress(**about["progress"])
