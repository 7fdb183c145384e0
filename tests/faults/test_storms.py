"""Signals at any instant of a run, one or several, again and again: it ends as one that was left alone.

`make soak` goes on for SOAK_MINUTES.
"""

import random
import signal
from collections import Counter
from pathlib import Path

from fault_sweep import COMMANDS, Sweep
from fault_trials import fresh
from fault_verdicts import wrong_at_end
from soaking import rounds

STORMS = 4
SIGNALS = {
    signal.SIGKILL: {-signal.SIGKILL},
    signal.SIGTERM: {75, 128 + signal.SIGTERM, -signal.SIGTERM},
    signal.SIGINT: {75, 128 + signal.SIGINT, -signal.SIGINT},
    signal.SIGHUP: {75, 128 + signal.SIGHUP, -signal.SIGHUP},
}
"""What a process may end with that gets one: resumable, or ended by it while there was nothing to resume yet."""


def test_a_run_that_is_signalled_again_and_again_ends_as_any_other(sweep: Sweep, tmp_path: Path) -> None:
    want, train = sweep.want("train"), COMMANDS["train"]
    usual = sweep.server.run(fresh(tmp_path / "timed", sweep.begin("nothing")), train.arguments).seconds
    draw, ended = random.Random(0), Counter[int | str]()
    for storm in rounds(STORMS):
        folder = fresh(tmp_path / "storm", sweep.begin("nothing"))
        for _ in range(draw.randint(1, 5)):
            numbers = draw.choices(list(SIGNALS), k=draw.choice((1, 1, 2)))
            storms = [(draw.uniform(0, usual / len(numbers)), int(number)) for number in numbers]
            answer = sweep.server.run(folder, train.arguments, signals=storms)
            allowed = {0}.union(*(SIGNALS[number] for number in numbers))
            assert answer.status in allowed, f"storm {storm}, {storms}: exit {answer.status}\n{answer.output}"
            assert "Traceback" not in answer.output, answer.output
            ended[answer.status] += 1
        last = sweep.server.run(folder, train.arguments)
        assert last.status == 0, last.output
        assert wrong_at_end(folder, want) == [], f"storm {storm}"
    assert ended[-signal.SIGKILL] or ended[75], f"no signal struck a run: {ended}"
