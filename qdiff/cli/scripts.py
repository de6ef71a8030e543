"""The sampling scripts: their files, their flags, and the runs that these describe."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdiff.cli import sample_ddim, sample_ldm, sample_txt2img
from qdiff.cli.ddim_flags import ddim_parser
from qdiff.cli.ldm_flags import ldm_parser
from qdiff.cli.parser import Parser, parse
from qdiff.cli.txt2img_flags import txt2img_parser
from qdiff.config.tables import Arguments

if TYPE_CHECKING:
    from qdiff.pipelines.run import Run


@dataclass(frozen=True)
class Script:
    """A sampling script.

    Attributes:
        file: below the root of the repository.
        parser: returns its parser.
        run: its flags -> the run that they describe, of which nothing is loaded.
        folder: argument that names the folder of the run.
        images: argument that gives the number of images; None if it has none, because they come from prompts.
    """

    file: str
    parser: Callable[[], Parser]
    run: "Callable[[Namespace], Run]"
    folder: str = "logdir"
    images: str | None = None

    def parse(self, arguments: Arguments) -> Namespace:
        """Return the flags of a row. Raises UserError if the script does not accept them."""
        return parse(self.parser(), words(arguments))


SCRIPTS = {
    "ddim": Script("scripts/sample_diffusion_ddim.py", ddim_parser, sample_ddim.run_of, images="max_images"),
    "ldm": Script("scripts/sample_diffusion_ldm.py", ldm_parser, sample_ldm.run_of, images="n_samples"),
    "txt2img": Script("scripts/txt2img.py", txt2img_parser, sample_txt2img.run_of, "outdir"),
}


def words(arguments: Arguments) -> list[str]:
    """Return the words of a command line: true stands for a flag alone, a list for values with commas."""
    found: list[str] = []
    for key, value in arguments.items():
        if value is False or value is None:
            continue
        found.append(f"--{key}")
        if isinstance(value, list):
            found.append(",".join(map(str, value)))
        elif value is not True:
            found.append(str(value))
    return found
