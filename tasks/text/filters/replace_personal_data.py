"""replace_personal_data: puts fixed words in the place of personal data and of secrets.

Every pattern is matched in time linear in the text (RE2), then checked: checksums, allocated ranges, what stands before.
"""

import ipaddress
import re
from collections.abc import Callable
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

_IPV4 = r"\b(?:\d{1,3}\.){3}\d{1,3}\b"
_IPV6 = r"\b[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}"
_PHONE = (
    r"\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d[\d ./-]{5,14}\d\b"  # with its country (ITU-T E.164)
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}\b|\b[2-9]\d{2}[ .-][2-9]\d{2}[ .-]\d{4}\b"  # North America
    r"|\b0\d{2,4}(?:[ ]?/[ ]?|-)\d{3,8}(?:[ -]\d{1,4})?\b"  # a code of an area, as in much of Europe
    r"|(?i:\b(?:tel|phone|fax|mobile|telefon|tél)[.:]?[ ]{0,2})[(]?0[\d ()./-]{6,16}\d\b"
)
_CARD = r"\b(?:\d[ -]?){12,18}\d\b"
_IBAN = r"\b[A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,3})?\b"
_KEY = (
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[A-Za-z0-9+/=\s:,-]*-----END [A-Z ]{0,30}PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[0-9A-Za-z_-]{35}"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bxox[abeprs]-[A-Za-z0-9-]{10,}|\bsk-[A-Za-z0-9_-]{20,}|\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}"
    r"|\bhf_[A-Za-z0-9]{30,}|\bnpm_[A-Za-z0-9]{36}|\bpypi-[A-Za-z0-9_-]{50,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)
"""Private keys (RFC 7468), and keys that say by their beginning whose they are."""

_LIKE_VERSION = re.compile(r"(?:version|release|ver\.?|rev\.?|v\.?)[ :=]*$", re.I)


def _is_address(found: str, before: str, after: str) -> bool:
    if after[:1].isdigit() or (after[:1] == "." and after[1:2].isdigit()) or before[-1:] in (".", "v", "-"):
        return False
    if _LIKE_VERSION.search(before):
        return False
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False


def _is_phone(found: str, before: str, after: str) -> bool:
    return 7 <= sum(map(str.isdigit, found)) <= 15 and before[-1:] not in (".", "/", "-", "=", "_", "$")


def _is_card(found: str, before: str, after: str) -> bool:
    """Luhn's checksum (ISO/IEC 7812-1), and the first digits of those who issue cards."""
    digits = [int(digit) for digit in found if digit.isdigit()]
    if not 13 <= len(digits) <= 19 or digits[0] not in (2, 3, 4, 5, 6) or len(set(digits)) < 2:
        return False
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and before[-1:] not in (".", "-", "_", "=")


def _is_iban(found: str, before: str, after: str) -> bool:
    """The remainder by 97 (ISO 13616)."""
    packed = found.replace(" ", "")
    if not 15 <= len(packed) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in packed[4:] + packed[:4])) % 97 == 1


def _always(found: str, before: str, after: str) -> bool:
    return True


@cache
def _compiled(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.never_capture = True
    return re2.compile(pattern, options)


def _replace(text: str, pattern: str, is_one: Callable[[str, str, str], bool], replacement: str) -> str:
    out: list[str] = []
    position = 0
    for match in _compiled(pattern).finditer(text):
        first, last = match.span()
        if is_one(text[first:last], text[max(0, first - 12) : first], text[last : last + 2]):
            out += (text[position:first], replacement)
            position = last
    return "".join((*out, text[position:])) if out else text


class ReplacePersonalData(Mender):
    """Replace personal data and secrets. What is left empty is done for sources with profile company only."""

    emails: bool = Field(True, description="Replace e-mail addresses.")
    secrets: bool = Field(True, description="Replace private keys, and keys of well-known services.")
    cards: bool = Field(True, description="Replace numbers of payment cards whose checksum is right.")
    ibans: bool = Field(True, description="Replace numbers of bank accounts (IBAN) whose checksum is right.")
    ip_addresses: bool | None = Field(None, description="Replace public IPv4 and IPv6 addresses.")
    phones: bool | None = Field(None, description="Replace telephone numbers.")
    email_replacement: str = Field("email@example.com", description="What stands for an e-mail address.")
    secret_replacement: str = Field("[key]", description="What stands for a key.")
    card_replacement: str = Field("[card number]", description="What stands for the number of a card.")
    iban_replacement: str = Field("[account number]", description="What stands for an IBAN.")
    ip_replacement: str = Field("192.0.2.1", description="What stands for an IPv4 address (RFC 5737).")
    ipv6_replacement: str = Field("2001:db8::1", description="What stands for an IPv6 address (RFC 3849).")
    phone_replacement: str = Field("[phone number]", description="What stands for a telephone number.")

    def of_profile(self, profile: str) -> "ReplacePersonalData":
        """The same, with what is left empty decided."""
        everything = profile == "company"
        decided = {name: everything for name in ("ip_addresses", "phones") if getattr(self, name) is None}
        return self.model_copy(update=decided)

    def mend(self, text: str) -> str:
        """The text with the replacements in place of what they stand for."""
        if self.emails and "@" in text:
            text = _EMAIL.sub(lambda _: self.email_replacement, text)
        if self.secrets:
            text = _replace(text, _KEY, _always, self.secret_replacement)
        if self.ibans:
            text = _replace(text, _IBAN, _is_iban, self.iban_replacement)
        if self.cards:
            text = _replace(text, _CARD, _is_card, self.card_replacement)
        if self.ip_addresses:
            text = _replace(text, _IPV4, _is_address, self.ip_replacement)
            if ":" in text:
                text = _replace(text, _IPV6, _is_address, self.ipv6_replacement)
        if self.phones:
            text = _replace(text, _PHONE, _is_phone, self.phone_replacement)
        return text
