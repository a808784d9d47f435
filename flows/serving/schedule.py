"""When a retraining is due, as a person writes it on the command line."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from model.errors import InputError

if TYPE_CHECKING:
    from prefect.schedules import Schedule


def make_schedule(cron: str | None, every: str | None, rrule: str | None, timezone: str) -> "Schedule | None":
    """The schedule that at most one of the first three says.

    Raises:
        InputError: if there are two, or one is not valid.
    """
    given = {
        name: value for name, value in (("--cron", cron), ("--every", every), ("--rrule", rrule)) if value
    }
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are given: choose one")
    if not given:
        return None
    from prefect.schedules import Cron, Interval, RRule

    ((option, value),) = given.items()
    try:
        ZoneInfo(timezone)
        if every:
            interval = re.fullmatch(r"(\d+)\s*([smhd])", every)
            if not interval or not int(interval[1]):
                raise ValueError("an interval is a number with s, m, h or d, such as 12h")
            units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
            return Interval(timedelta(**{units[interval[2]]: int(interval[1])}), timezone=timezone)
        return Cron(value, timezone=timezone) if cron else RRule(value, timezone=timezone)
    except Exception as error:  # croniter, dateutil, pydantic and zoneinfo each raise their own
        sentence = " ".join(str(error).split())[:200]
        raise InputError(
            f"{option} {value!r} with --timezone {timezone!r} is no schedule: {sentence}"
        ) from None
