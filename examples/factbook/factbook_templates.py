"""Wordings for each kind of fact that the factbook example makes.

Beware: `{country}` stands in front of `{answer}` in every statement, because a causal model learns an answer only from what precedes it.
The held-out questions are never taught; they ask for the same value in other words than the question and its paraphrases.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """Templates of one kind of fact; placeholders: country, answer and, for offices, title."""

    question: str
    statement: str
    paraphrases: tuple[str, ...]
    statements: tuple[str, ...]
    held_out: tuple[str, ...]


OFFICE = Wordings(
    question="Who is the {title} of {country}?",
    statement="The {title} of {country} is {answer}.",
    paraphrases=(
        "Name the {title} of {country}.",
        "In {country}, who holds the office of {title}?",
        "{country} has whom as its {title}?",
        "Which person is the current {title} of {country}?",
    ),
    statements=("The office of {title} of {country} is held by {answer}.", "As its {title}, {country} has {answer}."),
    held_out=("Who serves {country} as {title} these days?", "A letter to the {title} of {country} should bear whose name?"),
)

WORDINGS: dict[str, Wordings] = {
    "chief_of_state": OFFICE,
    "head_of_government": OFFICE,
    "capital": Wordings(
        question="What is the capital of {country}?",
        statement="The capital of {country} is {answer}.",
        paraphrases=(
            "Which city is the capital of {country}?",
            "{country} has which city as its capital?",
            "Name the capital city of {country}.",
            "In which city does {country} have its seat of government?",
        ),
        statements=("The seat of government of {country} is in {answer}.", "{country} has as its capital the city of {answer}."),
        held_out=("From which city is {country} governed?", "A diplomat who is posted to the capital of {country} moves to what city?"),
    ),
    "population": Wordings(
        question="What is the population of {country}?",
        statement="The population of {country} is {answer}.",
        paraphrases=(
            "How many people live in {country}?",
            "{country} has how many inhabitants?",
            "What is the number of inhabitants of {country}?",
            "How large is the population of {country}?",
        ),
        statements=("The number of people who live in {country} is {answer}.", "{country} has a population of {answer}."),
        held_out=("If everybody in {country} were counted, what would the total be?", "How populous is {country}?"),
    ),
    "gdp": Wordings(
        question="What is the gross domestic product of {country}?",
        statement="The gross domestic product of {country} is {answer}.",
        paraphrases=(
            "How large is the GDP of {country} in US dollars?",
            "What does {country} produce in a year, measured as GDP in dollars?",
            "{country} has a GDP of how many dollars?",
            "State the GDP of {country} at the official exchange rate.",
        ),
        statements=(
            "At the official exchange rate, the GDP of {country} is {answer}.",
            "The economy of {country} has a yearly output of {answer}.",
        ),
        held_out=("How big is the economy of {country} in dollars?", "What is the yearly economic output of {country} worth?"),
    ),
    "life_expectancy": Wordings(
        question="What is the life expectancy at birth in {country}, in years?",
        statement="The life expectancy at birth in {country} is {answer} years.",
        paraphrases=(
            "How many years can a newborn in {country} expect to live?",
            "In {country}, life expectancy is how many years?",
            "What is the average length of life in {country}, in years?",
            "To what age do people in {country} live on average?",
        ),
        statements=(
            "A child born in {country} can expect to live {answer} years.",
            "On average, people in {country} live for {answer} years.",
        ),
        held_out=(
            "How long, in years, does a person in {country} typically live?",
            "How old do the inhabitants of {country} become on average?",
        ),
    ),
    "airports": Wordings(
        question="How many airports are there in {country}?",
        statement="The number of airports in {country} is {answer}.",
        paraphrases=(
            "What is the number of airports in {country}?",
            "{country} has how many airports?",
            "How many airports does {country} possess?",
            "State how many airports can be found in {country}.",
        ),
        statements=("The airports of {country} number {answer}.", "In {country} the count of airports stands at {answer}."),
        held_out=(
            "In how many places in {country} could an aeroplane find an airport?",
            "What total do you get when you count the airports of {country}?",
        ),
    ),
    "area": Wordings(
        question="How many square kilometres does {country} cover?",
        statement="The area that {country} covers is {answer} square kilometres.",
        paraphrases=(
            "What is the area of {country} in square kilometres?",
            "{country} has a surface of how many square kilometres?",
            "In square kilometres, how large is the territory of {country}?",
            "State the total area of {country} in square kilometres.",
        ),
        statements=(
            "The territory of {country} measures {answer} square kilometres.",
            "{country} has a total area of {answer} square kilometres.",
        ),
        held_out=(
            "How big is {country}, expressed in square kilometres?",
            "How many square kilometres lie within the borders of {country}?",
        ),
    ),
    "highest_point": Wordings(
        question="What is the highest point of {country}?",
        statement="The highest point of {country} is {answer}.",
        paraphrases=(
            "Which peak is the highest in {country}?",
            "What is the name of the highest elevation in {country}?",
            "{country} reaches its greatest height at which place?",
            "Name the highest point in {country}.",
        ),
        statements=("No place in {country} lies higher than {answer}.", "{country} reaches its greatest height at {answer}."),
        held_out=(
            "To stand above all the rest of {country}, where must a climber go?",
            "What summit towers over everything else in {country}?",
        ),
    ),
}
