"""Wrong edits, one at a time: do the tests of their room notice?

    python tests/mutants                                       every edit of the list (make test-mutants)
    python tests/mutants --sample 6 --seed 1                   some of them
    python tests/mutants --only training/optim.py              those of a file or folder
    python tests/mutants --list FOLDER                         another list
    python tests/mutants --generate training/optim.py unit/training/test_optim.py     edits made by rule

Exit 0: at least 95% were killed. 1: more survived. 2: an edit's old text is not in its file exactly once, tests fail
without any edit, or there is no such edit.
"""

import argparse
import multiprocessing
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import fork
import operators
from mutant import EDITS, SOURCE, Mutant, StaleError, listed
from reach import Reach

WANTED = 0.95
AT_MOST = 1200.0
"""Seconds for tests of the sound tree."""

Tests = tuple[str, ...]


def main() -> int:
    arguments = _parse()
    try:
        if arguments.generate:
            mutants, seconds = _generated(*arguments.generate)
            mutants = _chosen(mutants, arguments)
        else:
            mutants = _chosen(listed(arguments.list), arguments)
            seconds = _seconds_without({mutant.tests for mutant in mutants})
    except (StaleError, fork.FailingError) as error:
        print(error, file=sys.stderr)
        return 2
    if not mutants:
        print("no such edit: see --only and --list", file=sys.stderr)
        return 2
    return _report(mutants, seconds, arguments.jobs)


def _chosen(mutants: list[Mutant], arguments: argparse.Namespace) -> list[Mutant]:
    mutants = [mutant for mutant in mutants if mutant.file.startswith(arguments.only)]
    if arguments.sample is None:
        return mutants
    return random.Random(arguments.seed).sample(mutants, min(arguments.sample, len(mutants)))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="as many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", default="", help="a file or folder of src/strop")
    parser.add_argument("--list", type=Path, default=EDITS, help="a folder of lists")
    parser.add_argument("--generate", nargs="+", metavar=("FILE", "TESTS"), help="a file, and tests that reach it")
    return parser.parse_args()


def _seconds_without(groups: Iterable[Tests]) -> dict[Tests, float]:
    """How long each group of tests takes on the sound tree.

    Raises:
        FailingError: One fails there, so that its failing would say nothing of an edit.
    """
    seconds = {}
    fork.preload()
    with fork.copied_tree() as tree:
        for tests in sorted(groups):
            outcome = tree.test(tests, AT_MOST).sound()
            fork.preload(outcome.libraries)
            seconds[tests] = outcome.seconds
    return seconds


def _generated(file: str, *tests: str) -> tuple[list[Mutant], dict[Tests, float]]:
    """Edits by rule, each with the tests that reach its lines, none if no test does; and how long those take.

    Raises:
        FailingError: A test fails without any edit.
    """
    fork.preload()
    with fork.copied_tree() as tree:
        outcome = tree.test(tests, AT_MOST, Reach(str(tree.root / "src/strop" / file))).sound()
    fork.preload(outcome.libraries)
    text = (SOURCE / file).read_text("utf-8")
    mutants, seconds = [], {}
    for start, end, new in operators.edits(text):
        first, last = (text.count("\n", 0, offset) + 1 for offset in (start, end))
        reached = outcome.plugin.quickest_first(first, last)
        mutants.append(Mutant.of(file, text, start, end, new, (test.removeprefix("tests/") for test in reached)))
        seconds[mutants[-1].tests] = sum(outcome.plugin.seconds[test] for test in reached)
    return mutants, seconds


def _report(mutants: Sequence[Mutant], seconds: Mapping[Tests, float], jobs: int) -> int:
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        shares = [(mutants[number::jobs], seconds) for number in range(jobs)]
        survived = list(chain.from_iterable(pool.imap_unordered(_survivors, shares)))
    killed = len(mutants) - len(survived)
    for line in survived:
        print("survived:", line)
    print(f"{killed} of {len(mutants)} killed ({killed / len(mutants):.1%}); {WANTED:.0%} are wanted")
    return int(killed < WANTED * len(mutants))


def _survivors(share: tuple[Sequence[Mutant], Mapping[Tests, float]]) -> list[str]:
    mutants, seconds = share
    with fork.copied_tree() as tree:
        verdicts = [(mutant, _verdict(tree, mutant, 20 + 6 * seconds[mutant.tests])) for mutant in mutants]
    return [mutant.describe() for mutant, killed in verdicts if not killed]


def _verdict(tree: fork.Tree, mutant: Mutant, limit: float) -> bool:
    """Whether a mutant was killed; a line says so."""
    if not mutant.tests:
        print(f"survived, no test reaches it: {mutant.describe()}\n", end="", flush=True)
        return False
    with tree.edited(mutant):
        outcome = tree.test(mutant.tests, limit)
    said = "survived" if outcome.passed else "killed, by time" if outcome.code is None else "killed"
    print(
        f"{said}, {outcome.seconds:.1f} s: {mutant.describe()}\n", end="", flush=True
    )  # in one write: others print too
    return not outcome.judged().passed


if __name__ == "__main__":
    sys.exit(main())
