"""What of personal data is found, and what is taken for it: python benchmarks/personal_data.py.

Three hundred sentences, half of them with a datum, half with something that looks like one. Prints precision and recall by
kind as a table in Markdown, and every error.
"""

import random
import string
from collections.abc import Callable, Iterator

from tasks.text.filters.replace_personal_data import ReplacePersonalData

_SENTENCES = ("Write to {} please.", "({})", "contact: {}, or later", "{}", "It was {} that they used.")
_chooser = random.Random(7)


def _digits(count: int) -> str:
    return "".join(_chooser.choices(string.digits, k=count))


def _letters(count: int, of: str = string.ascii_letters + string.digits) -> str:
    return "".join(_chooser.choices(of, k=count))


def _luhn(beginning: str, length: int) -> str:
    body = beginning + _digits(length - len(beginning) - 1)
    total = sum(
        sum(divmod(2 * int(digit), 10)) if position % 2 == 0 else int(digit)
        for position, digit in enumerate(reversed(body))
    )
    return body + str(-total % 10)


def _iban(country: str, account: str) -> str:
    number = int("".join(str(int(character, 36)) for character in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02d}{account}"


def _spaced(number: str, by: int = 4) -> str:
    return " ".join(number[start : start + by] for start in range(0, len(number), by))


def _global_ipv4() -> str:
    return f"{_chooser.choice([8, 23, 52, 81, 93, 151, 185])}." + ".".join(
        str(_chooser.randrange(256)) for _ in range(3)
    )


def _global_ipv6() -> str:
    groups = [f"{_chooser.randrange(1, 65536):x}" for _ in range(4)]
    return f"2a01:4f8:{groups[0]}:{groups[1]}::{groups[2]}"


WANTED: dict[str, list[Callable[[], str]]] = {
    "emails": [
        lambda: f"{_letters(6, string.ascii_lowercase)}@{_letters(5, string.ascii_lowercase)}.org",
        lambda: (
            f"o'{_letters(4, string.ascii_lowercase)}.x+tag@mail.{_letters(5, string.ascii_lowercase)}.co.uk"
        ),
        lambda: (
            f"{_letters(3, string.ascii_lowercase)}_{_digits(2)}@uni-{_letters(4, string.ascii_lowercase)}.de"
        ),
    ],
    "phones": [
        lambda: f"+49 {_chooser.choice(['30', '89', '171'])} {_chooser.randrange(10**6, 10**8)}",
        lambda: f"+1 ({_chooser.randrange(200, 999)}) {_chooser.randrange(200, 999)}-{_digits(4)}",
        lambda: f"({_chooser.randrange(200, 999)}) {_chooser.randrange(200, 999)}-{_digits(4)}",
        lambda: f"{_chooser.randrange(200, 999)}-{_chooser.randrange(200, 999)}-{_digits(4)}",
        lambda: f"0{_chooser.randrange(30, 900)}/{_chooser.randrange(10**5, 10**7)}",
        lambda: f"+33 {_chooser.randrange(1, 9)} {_spaced(_digits(8), 2)}",
    ],
    "ip_addresses": [_global_ipv4, _global_ipv4, _global_ipv6],
    "cards": [
        lambda: _luhn("4", 16),
        lambda: _spaced(_luhn("52", 16)),
        lambda: _luhn("37", 15),
        lambda: _spaced(_luhn("4", 16)).replace(" ", "-"),
    ],
    "ibans": [
        lambda: _iban("DE", _digits(18)),
        lambda: _spaced(_iban("DE", _digits(18))),
        lambda: _iban("GB", f"WEST{_digits(14)}"),
        lambda: _spaced(_iban("FR", _digits(23))),
    ],
    "keys": [
        lambda: f"AKIA{_letters(16, string.ascii_uppercase + string.digits)}",
        lambda: f"ghp_{_letters(36)}",
        lambda: f"sk-{_letters(40)}",
        lambda: f"hf_{_letters(34)}",
        lambda: (
            f"-----BEGIN RSA PRIVATE KEY-----\n{_letters(64)}\n{_letters(60)}==\n-----END RSA PRIVATE KEY-----"
        ),
    ],
}
"""What is to be found, 25 of each kind."""

ALIKE: dict[str, list[Callable[[], str]]] = {
    "emails": [
        lambda: "@decorator",
        lambda: "user@localhost",
        lambda: "a @ b",
        lambda: "x@y",
        lambda: "git@{sha}",
    ],
    "phones": [
        lambda: f"2024-{_chooser.randrange(10, 13)}-{_chooser.randrange(10, 29)}",
        lambda: f"{_chooser.randrange(10, 24)}:{_chooser.randrange(10, 60)}:{_chooser.randrange(10, 60)}",
        lambda: f"{_digits(4)} - {_digits(4)}",
        lambda: f"ISBN 978-{_chooser.randrange(0, 9)}-{_digits(4)}-{_digits(4)}-{_digits(1)}",
        lambda: f"${_chooser.randrange(1, 9)},{_digits(3)},{_digits(3)}.00",
        lambda: f"0x{_letters(8, '0123456789abcdef')}",
        lambda: f"+{_chooser.randrange(1, 9)}.{_digits(2)} percent",
    ],
    "ip_addresses": [
        lambda: f"v{_chooser.randrange(1, 9)}.2.3.4",
        lambda: f"version {_chooser.randrange(1, 9)}.8.0.{_chooser.randrange(9)}",
        lambda: f"10.0.{_chooser.randrange(256)}.1",
        lambda: f"192.168.{_chooser.randrange(256)}.{_chooser.randrange(256)}",
        lambda: f"1.2.3.4.{_chooser.randrange(9)}",
        lambda: f"{_chooser.randrange(300, 999)}.1.2.3",
        lambda: "std::chrono::seconds",
        lambda: f"12:{_chooser.randrange(10, 60)}:{_chooser.randrange(10, 60)}",
        lambda: "fe80::1",
    ],
    "cards": [
        lambda: f"1{_digits(15)}",
        lambda: _luhn("4", 16)[:-1] + str((int(_luhn("4", 16)[-1]) + 5) % 10) + "x",
        lambda: f"{_digits(8)}",
        lambda: f"0.{_digits(16)}",
        lambda: f"978{_digits(10)}",
    ],
    "ibans": [
        lambda: f"DE00{_digits(18)}",
        lambda: f"AB12 {_letters(4, string.ascii_uppercase)} {_digits(4)}",
        lambda: f"RFC 2616 AND {_digits(4)} {_digits(4)}",
        lambda: _letters(22, string.ascii_uppercase),
    ],
    "keys": [
        lambda: _letters(40, "0123456789abcdef"),
        lambda: "sk-learn",
        lambda: "AKIA",
        lambda: f"ghp_{_letters(5)}",
        lambda: "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
        lambda: "task-" + _letters(12, string.ascii_lowercase),
    ],
}
"""What is not, 25 for each kind."""

_EACH = 25


def _cases(makers: dict[str, list[Callable[[], str]]]) -> Iterator[tuple[str, str, str]]:
    for kind, makers_of_kind in makers.items():
        for number in range(_EACH):
            value = makers_of_kind[number % len(makers_of_kind)]()
            yield kind, value, _SENTENCES[number % len(_SENTENCES)].replace("{}", value)


def main() -> None:
    """Replace in every sentence, and count."""
    step = ReplacePersonalData(ip_addresses=True, phones=True)
    found, taken = dict.fromkeys(WANTED, 0), dict.fromkeys(WANTED, 0)
    errors = []
    for kind, value, sentence in _cases(WANTED):
        # Found is what is replaced as a whole, with nothing around it.
        after = step.mend(sentence)
        before, behind = sentence.split(value)
        is_whole = after.startswith(before) and after.endswith(behind) and value not in after
        found[kind] += is_whole
        if not is_whole:
            errors.append(f"- not found, {kind}: {sentence!r} -> {after!r}")
    for kind, _, sentence in _cases(ALIKE):
        after = step.mend(sentence)
        taken[kind] += after != sentence
        if after != sentence:
            errors.append(f"- taken for one, {kind}: {sentence!r} -> {after!r}")
    print("| kind | precision | recall |\n|---|---|---|")
    for kind in WANTED:
        print(
            f"| {kind} | {found[kind] / max(1, found[kind] + taken[kind]):.1%} | {found[kind] / _EACH:.1%} |"
        )
    total, wrong = sum(found.values()), sum(taken.values())
    print(
        f"| all {2 * _EACH * len(WANTED)} | {total / (total + wrong):.1%} | {total / _EACH / len(WANTED):.1%} |\n"
    )
    print("\n".join(errors))


if __name__ == "__main__":
    main()
