"""Published full-precision weights: found by name, downloaded once, verified by md5."""

import json
import os
from pathlib import Path
from typing import Any

from qdiff.errors import UserError

PUBLISHED = Path(__file__).with_name("published.json")  # section -> name -> url, file below the cache, md5
FOLDER = "diffusion_models_converted"  # below the cache, as in the published DDIM code
CHUNK = 1 << 16  # bytes; a broken connection loses at most one chunk


def name_for(config: Any) -> str:
    """Return the name of the published EMA weights for a pixel-space configuration.

    Args:
        config: namespace or OmegaConf node with `data.dataset`, and for LSUN `data.category`; see `configs/`.

    Raises:
        UserError: no weights are published for the dataset.
    """
    data = config.data
    match data.dataset:
        case "CIFAR10":
            return "ema_cifar10"
        case "LSUN":
            name = f"ema_lsun_{data.category.removesuffix('_outdoor')}"  # of church_outdoor, as the dataset calls it
            _entry(name)
            return name
    raise UserError(f"no weights are published for data.dataset={data.dataset}: give your own with --ckpt FILE")


def fetch(name: str, cache: Path | None = None) -> Path:
    """Return the path of published weights, `<cache>/diffusion_models_converted/<file>`; download them on first use.

    The file appears complete and with the right md5, or not at all. An interrupted download resumes from its `.part`
    file if the server supports it. The md5 is checked on every use, unless a `.verified` file next to it records that
    a file of this size and modification time has it. Several processes may call this at the same time.

    Args:
        name: as returned by `name_for`.
        cache: folder; None means `$XDG_CACHE_HOME`, else `~/.cache`.

    Raises:
        UserError: the name is unknown, the download fails, the cache cannot be written, or the md5 is wrong.
    """
    from filelock import FileLock

    url, file, md5 = (_entry(name)[key] for key in ("url", "file", "md5"))
    path = (cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")) / FOLDER / file
    try:
        if _is_verified(path, md5):  # without the lock, so that a cache may be read-only
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _download(url, path, md5)
            elif not _is_verified(path, md5):  # another process may have done it meanwhile
                _verify(path, md5)
    except OSError as e:  # requests' errors are OSErrors too
        reason = " ".join(str(e).split())
        raise UserError(
            f"cannot get {url} ({reason}): run it again to resume, or put the file at '{path}' by hand, "
            "or give one with --ckpt FILE"
        ) from e
    return path


def _entry(name: str) -> dict[str, str]:
    weights = {name: entry for section in json.loads(PUBLISHED.read_text()).values() for name, entry in section.items()}
    if name not in weights:
        raise UserError(
            f"no weights are published as '{name}', only {', '.join(weights)}: give your own with --ckpt FILE"
        )
    return weights[name]


def _download(url: str, path: Path, md5: str) -> None:
    """Complete `<path>.part`, and move it to `path` if its md5 is right."""
    from pooch import file_hash

    part = Path(f"{path}.part")
    resumed = part.exists()
    _append(url, part)
    found = file_hash(part, alg="md5")
    if found == md5:
        os.replace(part, path)
        _record(path, md5)
        return
    part.unlink()
    if not resumed:
        raise UserError(
            f"{url} sent a file with md5 {found} instead of {md5}, which was removed: try again later, "
            f"or put the right file at '{path}' by hand, or give one with --ckpt FILE"
        )
    _download(url, path, md5)  # the part of an earlier attempt belonged to another file


def _append(url: str, part: Path) -> None:
    """Append the missing rest of `url` to `part`; start `part` again if the server sends the whole file."""
    from pooch import HTTPDownloader
    from requests import HTTPError, Response
    from tqdm import tqdm
    from tqdm.utils import CallbackIOWrapper

    with open(part, "ab") as file:
        have = file.tell()
        bar = tqdm(desc=f"downloading {part.stem}", initial=have, unit="B", unit_scale=True)

        def expect(response: Response, **_: object) -> None:
            if response.status_code == 200:
                file.truncate(0)
                bar.reset()
            bar.total = bar.n + int(response.headers.get("Content-Length", 0))

        headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"}
        get = HTTPDownloader(chunk_size=CHUNK, headers=headers, hooks={"response": expect})
        try:
            with bar:
                get(url, CallbackIOWrapper(bar.update, file, "write"), None)
        except HTTPError as e:
            if e.response.status_code != 416:  # 416: nothing is left to send, so `part` is whole or too long
                raise


def _verify(path: Path, md5: str) -> None:
    """Record that the file has this md5; otherwise move it aside. Raises UserError then."""
    from pooch import file_hash

    if (found := file_hash(path, alg="md5")) != md5:
        aside = Path(f"{path}.bad")
        os.replace(path, aside)
        raise UserError(
            f"'{path}' has md5 {found} instead of {md5} and was moved to '{aside.name}': run it again to download it"
        )
    _record(path, md5)


def _stamp(path: Path, md5: str) -> bytes:
    """Return a record of the file's state, which any write changes."""
    stat = path.stat()
    return json.dumps({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "md5": md5}).encode()


def _record(path: Path, md5: str) -> None:
    Path(f"{path}.verified").write_bytes(_stamp(path, md5))


def _is_verified(path: Path, md5: str) -> bool:
    record = Path(f"{path}.verified")
    return path.exists() and record.exists() and record.read_bytes() == _stamp(path, md5)
