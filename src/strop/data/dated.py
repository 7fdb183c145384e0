"""Chat templates that print today's date print one day instead.

Rows that change overnight cannot be cached, and a run could not resume on the next day. Servers and exports of a run
keep the day of its rows, too.
"""

import json
import re
from datetime import datetime

_DAY = datetime(2024, 7, 26)
_LLAMAS = "26 Jul 2024"
"""What Llama 3's templates print where they are given no `date_string`."""

_ASKED = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


def dated(source: str) -> str:
    """A template with its day set: `date_string`, which it may be given, and `strftime_now`, which it may call."""
    given = f"{{%- if date_string is not defined %}}{{%- set date_string = {json.dumps(_LLAMAS)} %}}{{%- endif %}}"
    begin = given if "date_string" in source else ""
    formats = {found[2] for found in _ASKED.finditer(source)}
    if formats:
        days = json.dumps({format: _DAY.strftime(format) for format in sorted(formats)})
        begin += f"{{%- macro strftime_now(format) %}}{{{{- {days}[format] }}}}{{%- endmacro %}}"
    return f"{begin}{{{{- '' }}}}{source}" if begin else source  # after an expression, Jinja keeps a newline
