"""replace_personal_data: puts fixed words in the place of personal data."""

import re
from functools import cache
from typing import Any

from pydantic import Field

from tasks.text.judging import Mender

_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = re.compile(
    rf"(?<![A-Za-z0-9_])(?=[A-Za-z0-9_]){_LOCAL}{{1,64}}(?:\.{_LOCAL}{{1,64}}){{0,8}}@(?:{_LABEL}\.){{1,8}}{_LABEL}"
)
"""An address (RFC 5322, section 3.4.1) within the lengths of RFC 5321, section 4.5.3: so a match takes bounded time.
datatrove's pattern takes quadratic time."""


@cache
def _addresses(replacement: str) -> Any:
    """What replaces public IPv4 addresses; one replacement: of several datatrove takes one after the other, so that a
    text would depend on its neighbours."""
    from datatrove.pipeline.formatters.pii import PIIFormatter

    return PIIFormatter(remove_emails=False, ip_replacement=(replacement,))


class ReplacePersonalData(Mender):
    """Replace e-mail addresses and public IPv4 addresses."""

    emails: bool = Field(True, description="Replace e-mail addresses.")
    ip_addresses: bool = Field(
        False, description="Replace public IPv4 addresses; takes four-part version numbers for addresses too."
    )
    email_replacement: str = Field("email@example.com", description="What stands for an e-mail address.")
    ip_replacement: str = Field("192.0.2.1", description="What stands for an address (RFC 5737).")

    def mend(self, text: str) -> str:
        """The text with the replacements in place of what they stand for."""
        if self.emails and "@" in text:
            text = _EMAIL.sub(lambda _: self.email_replacement, text)
        return str(_addresses(self.ip_replacement).format(text)) if self.ip_addresses else text
