"""Published weights: found by name, downloaded once, verified by their digest."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from qdiff.errors import UserError

PUBLISHED = Path(__file__).with_name("published.json")  # section -> name -> url, file, digest by its algorithm
FOLDER = "diffusion_models_converted"  # below the cache, as in the published DDIM code, unless the entry names another
ALGORITHMS = ("sha256", "md5")
CHUNK = 1 << 16  # bytes; a broken connection loses at most one chunk


class Pin(NamedTuple):
    """The digest that a published file has, and the algorithm, of `ALGORITHMS`."""

    algorithm: str
    value: str

    def found(self, path: Path) -> str:
        """Return the digest of a file by this algorithm."""
        from pooch import file_hash

        return file_hash(path, alg=self.algorithm)


def pin_of(name: str) -> Pin:
    """Return the digest of published weights. Raises UserError if the name is unknown."""
    entry = _entry(name)
    algorithm = next(algorithm for algorithm in ALGORITHMS if algorithm in entry)
    return Pin(algorithm, entry[algorithm])


def cache_folder() -> Path:
    """Return the folder for what can be had again: `$XDG_CACHE_HOME`, else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


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


def location(name: str, cache: Path | None = None) -> Path:
    """Return the path at which `fetch` keeps published weights. Raises UserError if the name is unknown."""
    entry = _entry(name)
    return (cache or cache_folder()) / entry.get("folder", FOLDER) / entry["file"]


def fetch(name: str, cache: Path | None = None, flag: str = "--ckpt") -> Path:
    """Return the path of published weights, `<cache>/diffusion_models_converted/<file>`; download them on first use.

    The file appears complete and with the right digest, or not at all. An interrupted download resumes from its `.part`
    file if the server supports it. The digest is checked on every use, unless a `.verified` file next to it records
    that a file of this size and modification time has it. Several processes may call this at the same time.

    Args:
        name: in `published.json`, such as `name_for` returns it.
        cache: folder; None means `cache_folder()`.
        flag: the flag that gives the file otherwise, for error messages.

    Raises:
        UserError: the name is unknown, the download fails, the cache cannot be written, or the digest is wrong.
    """
    from filelock import FileLock

    entry, pin = _entry(name), pin_of(name)
    url, path = entry["url"], location(name, cache)
    try:
        if _is_verified(path, pin):  # without the lock, so that a cache may be read-only
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                _download(url, path, pin, flag)
            elif not _is_verified(path, pin):  # another process may have done it meanwhile
                _verify(path, pin)
    except OSError as e:  # requests' errors are OSErrors too
        reason = " ".join(str(e).split())
        raise UserError(
            f"cannot get {url} ({reason}): run it again to resume, or put the file at '{path}' by hand, "
            f"or give one with {flag} FILE"
        ) from e
    return path


def _entry(name: str) -> dict[str, str]:
    weights = {name: entry for section in json.loads(PUBLISHED.read_text()).values() for name, entry in section.items()}
    if name not in weights:
        raise UserError(
            f"no weights are published as '{name}', only {', '.join(weights)}: give your own with --ckpt FILE"
        )
    return weights[name]


def _download(url: str, path: Path, pin: Pin, flag: str) -> None:
    """Complete `<path>.part`, and move it to `path` if its digest is right."""
    part = Path(f"{path}.part")
    resumed = part.exists()
    _append(url, part)
    found = pin.found(part)
    if found == pin.value:
        os.replace(part, path)
        _record(path, pin)
        return
    part.unlink()
    if not resumed:
        raise UserError(
            f"{url} sent a file with {pin.algorithm} {found} instead of {pin.value}, which was removed: try again "
            f"later, or put the right file at '{path}' by hand, or give one with {flag} FILE"
        )
    _download(url, path, pin, flag)  # the part of an earlier attempt belonged to another file


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


def _verify(path: Path, pin: Pin) -> None:
    """Record that the file has this digest; otherwise move it aside. Raises UserError then."""
    if (found := pin.found(path)) != pin.value:
        aside = Path(f"{path}.bad")
        os.replace(path, aside)
        raise UserError(
            f"'{path}' has {pin.algorithm} {found} instead of {pin.value} and was moved to '{aside.name}': run it "
            "again to download it"
        )
    _record(path, pin)


def _stamp(path: Path, pin: Pin) -> bytes:
    """Return a record of the file's state, which any write changes."""
    stat = path.stat()
    return json.dumps({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, pin.algorithm: pin.value}).encode()


def _record(path: Path, pin: Pin) -> None:
    Path(f"{path}.verified").write_bytes(_stamp(path, pin))


def _is_verified(path: Path, pin: Pin) -> bool:
    record = Path(f"{path}.verified")
    return path.exists() and record.exists() and record.read_bytes() == _stamp(path, pin)
