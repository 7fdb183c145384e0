"""A pytest plugin that notes which lines of one file each test runs, and how long a test takes."""

import sys
import time
from collections import defaultdict
from types import FrameType
from typing import Any

import pytest


class Reach:
    """After a run, `tests[line]` holds the node ids that reached a line, and "" if importing the file did."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.tests: dict[int, set[str]] = defaultdict(set)
        self.seconds: dict[str, float] = {}
        self._test = ""

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Any:
        sys.settrace(self._on_call)
        try:
            return (yield)
        finally:
            sys.settrace(None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._test, began = item.nodeid, time.monotonic()
        sys.settrace(self._on_call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.monotonic() - began

    def quickest_first(self, first: int, last: int) -> list[str]:
        """The tests that reach one of these lines; every test if importing the file does."""
        reached = set().union(*(self.tests[line] for line in range(first, last + 1)))
        return sorted(self.seconds if reached == {""} else reached - {""}, key=lambda test: self.seconds[test])

    def _on_call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._on_line(frame, event, argument) if frame.f_code.co_filename == self.file else None

    def _on_line(self, frame: FrameType, event: str, argument: object) -> Any:
        self.tests[frame.f_lineno].add(self._test)
        return self._on_line
