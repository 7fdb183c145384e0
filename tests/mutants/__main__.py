"""Wrong edits, one at a time: do the tests of their room notice?

    python tests/mutants                                       every edit of the list (make test-mutants)
    python tests/mutants --sample 6 --seed 1                   some of them
    python tests/mutants --only training/optim.py              those of a file
    python tests/mutants --generate training/optim.py unit/training/test_optim.py     edits made by rule

Exit 0: at least 95% were killed. 1: more survived. 2: an edit's old text is not in its file exactly once, or tests fail
without any edit.
"""

import argparse
import multiprocessing
import os
import random
import sys
from collections.abc import Iterator, Sequence
from itertools import chain

import fork
import operators
from mutant import SOURCE, Mutant, StaleError, listed
from reach import Reach

WANTED = 0.95
LIMIT = 300.0
"""Seconds for the tests of one mutant, on a busy machine."""


def main() -> int:
    arguments = _parse()
    fork.preload()
    try:
        mutants = _generated(arguments) if arguments.generate else listed()
    except (StaleError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.only:
        mutants = [mutant for mutant in mutants if mutant.file.startswith(arguments.only)]
    if arguments.sample:
        mutants = random.Random(arguments.seed).sample(mutants, min(arguments.sample, len(mutants)))
    if not arguments.generate and (failing := _failing_without(mutants)):
        print("these fail without any edit:", failing, sep="\n", file=sys.stderr)
        return 2
    return _report(mutants, arguments.jobs)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, help="as many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", help="a file or folder of src/strop")
    parser.add_argument("--generate", nargs="+", metavar=("FILE", "TESTS"), help="a file, and tests that reach it")
    return parser.parse_args()


def _failing_without(mutants: Sequence[Mutant]) -> str:
    """The end of what pytest prints if the tests do not pass on the sound tree; else nothing."""
    tests = sorted(set(chain.from_iterable(mutant.tests for mutant in mutants)))
    with fork.copied_tree() as tree:
        outcome = tree.test(tests, LIMIT * 4)
    fork.preload(outcome.libraries)
    return "" if outcome.passed else outcome.log[-3000:]


def _generated(arguments: argparse.Namespace) -> list[Mutant]:
    """Edits by rule, each with the tests that reach its lines; no tests if none does.

    Raises:
        RuntimeError: A test fails without any edit.
    """
    file, *tests = arguments.generate
    with fork.copied_tree() as tree:
        outcome = tree.test(tests, LIMIT * 4, Reach(str(tree.root / "src/strop" / file)))
    if not outcome.passed:
        raise RuntimeError(outcome.log[-3000:])
    fork.preload(outcome.libraries)
    text = (SOURCE / file).read_text("utf-8")
    found = []
    for start, end, new in operators.edits(text):
        first, last = (text.count("\n", 0, offset) + 1 for offset in (start, end))
        reached = outcome.plugin.quickest_first(first, last)
        found.append(Mutant(file, start, end, new, tuple(test.removeprefix("tests/") for test in reached)))
    return found


def _report(mutants: Sequence[Mutant], jobs: int) -> int:
    survived, killed = [], 0
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        shares = [(number, jobs, mutants) for number in range(jobs)]
        for line, verdict in chain.from_iterable(pool.imap_unordered(_run_share, shares)):
            killed += verdict != "survived"
            if verdict == "survived":
                survived.append(line)
    for line in survived:
        print("survived:", line)
    print(f"{killed} of {len(mutants)} killed ({killed / len(mutants):.1%}); {WANTED:.0%} are wanted")
    return int(killed < WANTED * len(mutants))


def _run_share(share: tuple[int, int, Sequence[Mutant]]) -> list[tuple[str, str]]:
    number, jobs, mutants = share
    with fork.copied_tree() as tree:
        return list(_verdicts(tree, mutants[number::jobs]))


def _verdicts(tree: fork.Tree, mutants: Sequence[Mutant]) -> Iterator[tuple[str, str]]:
    for mutant in mutants:
        line = mutant.describe((SOURCE / mutant.file).read_text("utf-8"))
        if not mutant.tests:
            yield line, "survived"
            print(f"survived, no test reaches it: {line}", flush=True)
            continue
        with tree.edited(mutant):
            outcome = tree.test(mutant.tests, LIMIT)
        if outcome.broke:
            raise RuntimeError(f"{line}\n{outcome.log[-3000:]}")
        verdict = "survived" if outcome.passed else "killed"
        print(f"{verdict}, {outcome.seconds:.1f} s: {line}", flush=True)
        yield line, verdict


if __name__ == "__main__":
    sys.exit(main())
