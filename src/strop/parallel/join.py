"""Where a rank begins: it meets the others, if there are any."""

from strop.parallel.meeting import Meeting
from strop.parallel.place import Place


def meet(place: Place, resume: str) -> Meeting:
    """Meet the other ranks, if there are any.

    Args:
        place: This process's.
        resume: What to do next, for the message of a rank that finds another one lost.

    Raises:
        RankLost: There is no meeting point.
    """
    if place.ranks == 1:
        return Meeting()
    from strop.parallel.process_meeting import ProcessMeeting

    return ProcessMeeting(place, resume)
