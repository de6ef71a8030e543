"""Strict command lines on top of argparse: errors of one line, stated ranges, flags that need or exclude others."""

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from qdiff.errors import UserError, suggestion

_ABSENT = object()


@dataclass(frozen=True)
class Flag:
    """A declared flag, and the flags that it needs or excludes.

    Attributes:
        action: argparse's own record of the flag.
        required: whether the command line must have it.
        needs: flags that it needs, all of them; an entry may name alternatives, `"--a or --b"`.
        excludes: flags that it excludes.
    """

    action: argparse.Action
    required: bool
    needs: tuple[str, ...]
    excludes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.action.option_strings[-1]

    def check(self, given: set[str]) -> None:
        """Raise UserError unless this flag fits the flags of the command line, `given`."""
        if self.name not in given:
            if self.required:
                raise UserError(f"{self.name} is missing: add {self.name} {self.action.metavar}")
            return
        missing = [need for need in self.needs if given.isdisjoint(need.split(" or "))]
        if missing:
            wanted = " and ".join(missing)
            raise UserError(f"{self.name} needs {wanted}: add what is missing, or leave {self.name} out")
        for other in self.excludes:
            if other in given:
                raise UserError(f"{self.name} and {other} exclude each other: leave one of them out")


class Parser(argparse.ArgumentParser):
    """An argparse parser that accepts no abbreviations and reports errors as UserError.

    Args:
        overrides: also accept words `key=value` between the flags, as the list `overrides` of the namespace.
        options: arguments of `argparse.ArgumentParser`.

    Attributes:
        flags: the declared flags.
        checks: functions of the parsed namespace, which they may complete, and of the names of the given flags, which
            raise UserError; `parse` calls them last.
    """

    def __init__(self, *, overrides: bool = False, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.overrides = overrides
        self.flags: list[Flag] = []
        self.checks: list[Callable[[argparse.Namespace, set[str]], None]] = []

    def group(self, title: str, **common: Any) -> Callable[..., None]:
        """Add a heading to `--help`, and return the function that declares a flag under it.

        Args:
            title: the heading.
            common: defaults of `required`, `needs` and `excludes` in this group.

        Returns:
            a function of the flag's spellings (errors show the last one), `required`, `needs` and `excludes` of `Flag`,
            and the options of argparse's `add_argument`. It adds the default to the help text.
        """
        return partial(self._declare, self.add_argument_group(title), **common)

    def _declare(self, group, *names, help, required=False, needs=(), excludes=(), **options):
        if options.get("default") is not None:
            help += " (default %(default)s)"
        self.flags.append(Flag(group.add_argument(*names, help=help, **options), required, needs, excludes))

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def refuse(self, surplus: Sequence[str]) -> NoReturn:
        """Raise UserError about words that belong to no flag."""
        unknown = next((word for word in surplus if word.startswith("-")), None)
        if unknown is None:
            self.error(f"unexpected word {surplus[0]!r}: leave it out, or put it after the flag that it belongs to")
        name = unknown.partition("=")[0]
        known = [spelling for flag in self.flags for spelling in flag.action.option_strings]
        self.error(f"unknown flag {name}: {suggestion(name, known) or 'see --help'}")


def parse(parser: Parser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read a command line and check its flags one by one and against each other.

    Args:
        parser: the flags.
        argv: the words after the program's name; None reads `sys.argv`.

    Returns:
        one attribute per flag, with its default if it was not given.

    Raises:
        UserError: a flag is unknown or missing, a value is out of range, or flags exclude each other.
    """
    absent = argparse.Namespace(**{flag.action.dest: _ABSENT for flag in parser.flags})
    args, surplus = parser.parse_known_args(argv, absent)
    if parser.overrides:
        args.overrides = [word for word in surplus if "=" in word and not word.startswith("-")]
        surplus = [word for word in surplus if word not in args.overrides]
    if surplus:
        parser.refuse(surplus)
    given = {flag.name for flag in parser.flags if getattr(args, flag.action.dest) is not _ABSENT}
    for flag in parser.flags:
        flag.check(given)
        if flag.name not in given:
            setattr(args, flag.action.dest, flag.action.default)
    for check in parser.checks:
        check(args, given)
    return args


def number(kind: type[int] | type[float], low: float, high: float = math.inf) -> dict[str, Any]:
    """Return the options of a flag whose value is a number in [low, high]."""
    span = f"{low}.." if high == math.inf else f"{low}..{high}"
    noun = "a whole number" if kind is int else "a number"

    def convert(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} in {span}")
        return value

    return {"type": convert, "metavar": span}


def choice(*values: str) -> dict[str, Any]:
    """Return the options of a flag whose value is one of `values`."""

    def convert(text: str) -> str:
        if text not in values:
            hint = suggestion(text, values) or f"use {' or '.join(values)}"
            raise argparse.ArgumentTypeError(f"{text!r} is unknown: {hint}")
        return text

    return {"type": convert, "metavar": "|".join(values)}


def run(main: Callable[[], None]) -> None:
    """Call `main` as a program: a UserError ends it with one line and exit status 2, Ctrl-C with status 130.

    Characters that the terminal's encoding lacks are escaped. On a CPU under Linux, torch allocates its memory in large
    pages: with pages of 4 KiB, Stable Diffusion's forward spends a quarter of its time on page faults.
    THP_MEM_ALLOC_ENABLE=0 in the environment turns this off.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it when it first allocates
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _with_own_packages(main)
        sys.stdout.flush()
    except UserError as error:
        _refuse(str(error))
    except RuntimeError as error:
        # torch.OutOfMemoryError on a GPU; the CPU allocator raises a plain RuntimeError
        if type(error).__name__ != "OutOfMemoryError" and "can't allocate memory" not in str(error):
            raise
        _refuse(
            "out of memory: lower --batch_size (txt2img.py: --n_samples), or with --ptq also --cali_batch_size and "
            "--cali_range_n"
        )
    except BrokenPipeError:  # the reader, such as `| head`, is gone; Python's own flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        sys.exit(130)


def _with_own_packages(main: Callable[[], None]) -> None:
    """Call `main`; explain an import that fails because another package has the name of one of ours."""
    try:
        main()
    except ImportError:
        from qdiff.adapters import check_packages

        check_packages()
        raise


def _refuse(message: str) -> NoReturn:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)  # one line
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(2)
