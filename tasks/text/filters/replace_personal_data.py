"""replace_personal_data: puts fixed words in the place of personal data and of secrets.

Every pattern is matched in time linear in the text (RE2), then checked: checksums, allocated ranges, what stands before.
"""

import ipaddress
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Self

from pydantic import Field

from tasks.text.judging import Mender

_LOCAL = r"[\w!#$%&'*+=?^`{|}~-]"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = re.compile(
    rf"(?<!\w)(?=\w){_LOCAL}{{1,64}}(?:\.{_LOCAL}{{1,64}}){{0,8}}@(?:{_LABEL}\.){{1,8}}([^\W\d_]{{2,18}})(?![\w(])"
)
"""An address (RFC 5322, section 3.4.1; with letters of any script, RFC 6531) within the lengths of RFC 5321, section
4.5.3: so a match takes bounded time. datatrove's pattern takes quadratic time."""
_NO_DOMAINS = frozenset(
    ["png", "jpg", "jpeg", "gif", "svg", "webp", "js", "css", "html", "json", "txt", "git", "so", "dll"]
)
"""What ends the name of a file in code, not that of a host."""

_IPV4 = r"\b(?:\d{1,3}\.){3}\d{1,3}\b"
_IPV6 = r"\b[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}"
_PHONE = (
    r"(?:\+|\b00)[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d[\d ./-]{5,14}\d\b"  # with its country (ITU-T E.164)
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}\b|\b[2-9]\d{2}[ .-][2-9]\d{2}[ .-]\d{4}\b"  # North America
    r"|\b0\d{2,4}(?:[ ]?/[ ]?|-)\d{3,8}(?:[ -]\d{1,4})?\b"  # a code of an area, as in much of Europe
    r"|\b0[1-9](?: \d{2}){4}\b"  # France
    r"|(?i:\b(?:tel|phone|fax|mobile|telefon|tél)(?: (?:number|no|nr))?[.:]{0,2}[ ]{0,2})[(]?0[\d ()./-]{6,16}\d\b"
)
_CARD = r"\b\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}\b|\b3\d{3}[ -]\d{6}[ -]\d{4,5}\b|\b\d{13,19}\b"
_IBAN = r"\b[A-Z]{2}\d{2}(?:[ \x{a0}-]?[A-Z0-9]){11,30}"
_KEY = (
    r"(?:\b|_)(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[0-9A-Za-z_-]{35}"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{22,}|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bxox[abeprs]-[A-Za-z0-9-]{10,}|\bsk-[A-Za-z0-9_-]{20,}|\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}"
    r"|\bhf_[A-Za-z0-9]{30,}|\bnpm_[A-Za-z0-9]{36}|\bpypi-[A-Za-z0-9_-]{50,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)
"""Keys that say by their beginning whose they are."""
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_END = re.compile(r"-----END [A-Z ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_BODY = re.compile(r"(?:(?:\s|\\n|>)*[A-Za-z0-9+/=]{16,4096})*")
_MOST_KEY_CHARACTERS = 20_000

_LIKE_VERSION = re.compile(r"(?:version|release|ver\.?|rev\.?|v\.?)[ :=]*$", re.I)
_DATE = re.compile(r"\+?\d{4}[-./]\d{1,2}[-./]\d{1,2}")

Check = Callable[[str, str, str], int]
"""What was matched, what stands before and behind it -> how many of its characters are replaced; 0 for none."""


def _is_address(found: str, before: str, after: str) -> int:
    if after[:1].isdigit() or (after[:1] == "." and after[1:2].isdigit()) or before[-1:] in (".", "v", "-"):
        return 0
    if _LIKE_VERSION.search(before):
        return 0
    if "." in found and max(map(int, found.split("."))) < _SMALL:
        return 0  # the number of a section or a version; of addresses hardly any
    try:
        return len(found) * ipaddress.ip_address(found).is_global
    except ValueError:
        return 0


_SMALL = 20


def _is_phone(found: str, before: str, after: str) -> int:
    digits = "".join(filter(str.isdigit, found))
    if not 7 <= len(digits) <= 15 or before[-1:] in (".", "/", "-", "=", "_", "$"):
        return 0
    if found[0] == "+":
        is_decimal = found.count(".") == 1 and not set(found) & set(" -/(")
        is_no_plan = digits[0] == "1" and digits[1] in "01"  # North America has no such area
        return 0 if is_decimal or is_no_plan or _DATE.match(found) else len(found)
    # Numbers of journals and of authors are groups of four, postal codes of the United States of five and four.
    is_other = (found[4:5] == "-" and (len(digits) == 8 or after[:1] == "-")) or re.fullmatch(
        r"\d{5}-\d{4}", found
    )
    return 0 if is_other else len(found)


_CARDS = (
    (r"4", (13, 16, 19)),
    (r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),
    (r"3[47]", (15,)),
    (r"36|38|30[0-5]", (14,)),
    (r"6011|65|64[4-9]|35(?:2[89]|[3-8])", (16,)),
    (r"62", (16, 17, 18, 19)),
)
"""First digits of those who issue cards, and how many digits their numbers have (ISO/IEC 7812)."""


def _is_card(found: str, before: str, after: str) -> int:
    """Luhn's checksum (ISO/IEC 7812-1, annex B), and the numbers that are issued."""
    number = "".join(filter(str.isdigit, found))
    digits = list(map(int, number))
    issued = any(re.match(first, number) and len(number) in lengths for first, lengths in _CARDS)
    if not issued or before[-1:] in (".", "-", "_") or after[:1] in ("-", "_"):
        return 0
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return len(found) * ((sum(digits[-1::-2]) + sum(doubled)) % 10 == 0)


_IBAN_LENGTHS = {
    int(length): frozenset(countries.split())
    for length, countries in (
        entry.split(":")
        for entry in [
            "15:NO",
            "16:BE",
            "18:DK FI FO GL NL SD",
            "19:MK SI",
            "20:AT BA EE KZ LT LU MN XK",
            "21:CH HR LI LV",
            "22:BG BH CR DE GB GE IE ME RS VA",
            "23:AE GI IL IQ OM SO TL",
            "24:AD CZ DZ ES MD PK RO SA SE SK TN VG",
            "25:LY PT ST",
            "26:IS TR",
            "27:BI DJ FR GR IT MC MR SM",
            "28:AL AZ BY CY DO GT HN HU LB NI PL SV",
            "29:BR EG PS QA UA",
            "30:JO KW MU YE",
            "31:MT SC",
            "32:LC",
            "33:RU",
        ]
    )
}
"""Countries by the length of their numbers (IBAN registry of SWIFT)."""


def _is_iban(found: str, before: str, after: str) -> int:
    """The length of the country's numbers, and the remainder by 97 (ISO 13616)."""
    length = next((length for length, countries in _IBAN_LENGTHS.items() if found[:2] in countries), 0)
    at = [place for place, character in enumerate(found) if character.isalnum()]
    packed = "".join(found[place] for place in at[:length])
    end = at[length - 1] + 1 if length and len(at) >= length else 0
    if not end:
        return 0
    value = int("".join(str(int(character, 36)) for character in packed[4:] + packed[:4]))
    return end * (value % 97 == 1 and not (found[end : end + 1] or after[:1]).isalnum())


def _is_key(found: str, before: str, after: str) -> int:
    if not found.startswith("sk-"):
        return len(found)
    # Names of styles and of pages begin so, too; a key has letters of both cases and digits.
    return len(found) * all(any(map(test, found[3:])) for test in (str.isupper, str.islower, str.isdigit))


@cache
def _compiled(pattern: str) -> Any:
    import re2

    options = re2.Options()
    options.never_capture = True
    return re2.compile(pattern, options)


def _replace(text: str, pattern: str, check: Check, replacement: str) -> str:
    out: list[str] = []
    position = 0
    for match in _compiled(pattern).finditer(text):
        first, last = match.span()
        first += text[first] == "_"
        taken = check(text[first:last], text[max(0, first - 12) : first], text[last : last + 2])
        if taken:
            out += (text[position:first], replacement)
            position = first + taken
    return "".join((*out, text[position:])) if out else text


def _replace_private_keys(text: str, replacement: str) -> str:
    """Without private keys (RFC 7468); one whose end is missing goes as far as it looks like one."""
    out: list[str] = []
    position = 0
    for match in _PRIVATE_KEY.finditer(text):
        if match.start() < position:
            continue
        most = match.end() + _MOST_KEY_CHARACTERS
        following = _PRIVATE_KEY.search(text, match.end(), most)
        end = _END.search(text, match.end(), following.start() if following else most)
        found = end or _BODY.match(text, match.end(), most)
        out += (text[position : match.start()], replacement)
        position = found.end() if found else match.end()
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

    def of_profile(self, profile: str) -> Self:
        """The same, with what is left empty decided."""
        everything = profile == "company"
        decided = {name: everything for name in ("ip_addresses", "phones") if getattr(self, name) is None}
        return self.model_copy(update=decided)

    def _email(self, match: re.Match[str]) -> str:
        """What stands for a match: itself where it is a name in code, such as logo@2x.png or this@Main.findById."""
        end = match[1]
        is_one = end.lower() not in _NO_DOMAINS and (end.islower() or end.isupper() or not end.isascii())
        return self.email_replacement if is_one else match[0]

    def mend(self, text: str) -> str:
        """The text with the replacements in place of what they stand for."""
        if self.emails and "@" in text:
            text = _EMAIL.sub(self._email, text)
        if self.secrets:
            if "-----BEGIN" in text:
                text = _replace_private_keys(text, self.secret_replacement)
            text = _replace(text, _KEY, _is_key, self.secret_replacement)
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
