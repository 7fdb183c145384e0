"""What every rank but the first does of `strop train`: the same, without a run folder and without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strop.commands.attempt import StopSignals
from strop.commands.prepare import prepare
from strop.commands.run import Run
from strop.commands.setup import join_in
from strop.errors import RankLost, StropError
from strop.parallel.meeting import RunIsOver, Stopped
from strop.run.reporter import Reporter

if TYPE_CHECKING:
    from strop.parallel.meeting import Meeting
    from strop.recipe import Recipe


def follow(recipe: Recipe, meeting: Meeting) -> Run:
    """Do what rank 0 says until the run has ended.

    Returns:
        The run; on another machine its folder need not be there.

    Raises:
        Stopped: It did not finish; rank 0 has said why.
    """
    ended = None
    try:
        ended = _follow(recipe, meeting)
    except RunIsOver:
        pass
    except Stopped as stopped:
        ended = stopped
    except RankLost:
        raise
    except StropError as error:
        if meeting.team.size == 1:  # rank 0 waits for this one
            meeting.failed(error)
            raise
        ended = Stopped(str(error), error.exit_code)  # raised on all ranks alike, and said by rank 0
    meeting.ended(ended)
    return Run(recipe.output_dir)


def _follow(recipe: Recipe, meeting: Meeting) -> Stopped | None:
    prepared = meeting.once_per_machine(lambda: prepare(recipe, Reporter()))
    prepared.report.refuse()
    team = meeting.form(prepared.facts)
    from strop.training.ranks import obey

    with StopSignals() as stop:
        member = join_in(prepared, team, lambda line: None)
        meeting.trains()
        return obey(
            team,
            member.engine,
            stop.check,
            evaluate=lambda: member.evaluate(stop.check),
            generate=lambda *asked: member.generate(stop.check)(*asked),
        )
