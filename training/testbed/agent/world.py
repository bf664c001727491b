"""
An invented world of people, companies and cities, whose pages say how they are related, and the tools that read it.

A page is called by its title and two words ("Clara Fox / river tiger"): titles have near twins in every world, words
do not. What a tool returns is mostly noise: other titles, remarks without use, lines around the one that was found.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

# Each word is one token of SmolLM2 wherever it stands; a small model copies those without mistakes.
NAMES = {
    "person": (
        "Ann Anna Adam Alex Andrew Arthur Ben Bill Bob Charles Chris Daniel David Edward Frank Fred George Henry Jack "
        "James Jane Jean Jim John Ken Lee Louis Luke Maria Mark Martin Mary Matt Max Michael Nick Paul Peter Phil "
        "Richard Robert Sam Sarah Scott Simon Thomas Tim Tom Victor William",
        "Fox Lane Hill Brook Wood Snow Rivers Marsh Cook Baker Fisher Hunter Mason Potter Ward Knight Page Porter "
        "Price Reed Sharp Short Swift Young Bell Bishop Smith Jones Taylor Davis Evans Lewis Clark Walker Allen "
        "Adams Nelson Carter Parker Collins Morgan Murphy Cooper Ross Howard Ford Grant Webb Hunt Palmer",
    ),
    "company": (
        "Silver Golden Iron Red Blue Green Black White Northern Southern Western Eastern Royal Grand Pacific Atlantic "
        "American Central United Modern Prime National Global Digital Smart Rapid Fresh Clear Star Sun Moon Sky Delta "
        "Alpha Apple Ocean",
        "Motors Foods Energy Paper Glass Steel Media Travel Press Books Clothing Coffee Systems Labs Bank Insurance "
        "Airlines Tools Bread Cars Music Films Water Milk Ships",
    ),
    "city": (
        "Spring Winter Summer Rock Sand Mill Stone River Lake Forest Field High Long Deep New Old Upper Lower North "
        "South East West Salt Sugar Honey Cold Wind Rain Fire Ash Rose Bird Fish King Queen Church Market",
        "Falls Valley Springs Point Bay Ridge Grove Creek Heights Park Beach Crossing Island Hills Port Bridge Town "
        "Mountain Gate Harbor Coast",
    ),
}
# What a page of each kind tells: a relation, and the kind of page that it leads to.
RELATIONS = {
    "person": {
        "employer": "company",
        "hometown": "city",
        "mentor": "person",
        "doctor": "person",
        "neighbor": "person",
    },
    "company": {
        "founder": "person",
        "headquarters": "city",
        "supplier": "company",
        "lawyer": "person",
        "rival": "company",
    },
    "city": {"mayor": "person", "capital": "city", "sponsor": "company", "architect": "person", "port": "city"},
}
WORDS = (
    "river tiger maple stone cloud apple lemon piano eagle garden candle silver window tower bridge rabbit forest "
    "button copper desert engine falcon guitar hammer island jacket kettle ladder mirror needle orange pencil "
    "ribbon saddle temple velvet walnut anchor basket camera dragon flower helmet jungle lantern marble oyster "
    "parrot quartz rocket salmon tunnel violin wagon yellow zebra beacon harvest meadow spoon table chair glass "
    "paper metal sugar coffee bread horse whale snake mouse sheep ocean beach plant grass fruit onion pepper "
    "butter cotton"
)
REMARKS = {
    "person": (
        "{} enjoys long walks and old maps.",
        "{} has won two local prizes.",
        "{} plays chess on Sundays.",
        "Friends say that {} is patient and quiet.",
        "{} once lived near the coast.",
        "A short film about {} was shown last year.",
        "{} wrote a book on birds.",
    ),
    "company": (
        "{} sells goods in many countries.",
        "{} changed its logo last year.",
        "Reviewers praise {} for good service.",
        "{} has about two hundred workers.",
        "{} pays for a music festival.",
        "Some say that {} is too careful.",
        "{} opened a new shop in May.",
    ),
    "city": (
        "{} is known for its old market.",
        "Visitors to {} like the clock tower.",
        "{} has a small museum.",
        "Winters in {} are mild.",
        "A train line crosses {}.",
        "Every June there is a fair in {}.",
        "The oldest house of {} is a mill.",
    ),
}
SNIPPETS = (
    "a page about {} and its story",
    "news and notes, {}",
    "profile, facts and {}",
    "short entry on {}",
    "from the archive, {}",
)
TOPICS = "history weather music trade sports art food travel law science"
CUT = "(The page goes on. Use find.)"
LONG_ONE_IN = 7  # pages that show no relation before they are cut off
ENTITIES = 14  # of each kind


@dataclass(frozen=True)
class Page:
    """
    Attributes:
        title: unique in its world.
        kind: person, company or city.
        address: what `open` takes.
        relations: relation -> title of the page that it leads to.
        lines: the whole text.
        shown: so many lines are what `open` returns.
    """

    title: str
    kind: str
    address: str
    relations: dict[str, str]
    lines: list[str]
    shown: int

    def states(self, relation: str) -> str:
        """The words in which the page tells a relation."""
        return f"{relation} of {self.title} is {self.relations[relation]}"

    def shows(self, relation: str) -> bool:
        """Whether `open` is enough to read a relation, or `find` is needed."""
        return any(self.states(relation) in line for line in self.lines[: self.shown])


class World:
    """Pages under their titles; everything follows from `seed`."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        titles = {kind: _titles(*names, draw) for kind, names in NAMES.items()}
        addresses = draw.sample([f"{a} {b}" for a in WORDS.split() for b in WORDS.split() if a != b], 3 * ENTITIES)
        self.seed = seed
        self.pages: dict[str, Page] = {}
        for kind, known in titles.items():
            for title in known:
                relations = {
                    relation: draw.choice([other for other in titles[to] if other != title])
                    for relation, to in RELATIONS[kind].items()
                }
                address = f"{title} / {addresses.pop()}"
                self.pages[title] = Page(title, kind, address, relations, *_lines(kind, title, relations, draw))
        self.by_address = {page.address: page for page in self.pages.values()}

    def tools(self) -> list[Callable[..., str]]:
        """The tools over this world, as plain functions for `transformers.utils.get_json_schema`."""
        return [self.search, self.open, self.find]

    def search(self, query: str) -> str:
        """
        Searches the titles of all pages.

        Args:
            query: a title, or words of it.
        """
        draw = random.Random(f"{self.seed} {query}")
        words = set(query.split())
        near = [title for title in self.pages if words & set(title.split()) and title != query]
        far = [title for title in self.pages if title != query and title not in near]
        hits = draw.sample(near, min(len(near), 3)) + draw.sample(far, draw.choice((3, 4, 5, 8)))
        hits += [query] if query in self.pages else []
        draw.shuffle(hits)
        return "\n".join(
            f"{self.pages[title].address}: {draw.choice(SNIPPETS).format(draw.choice(TOPICS.split()))}"
            for title in hits
        )

    def open(self, page: str, cursor: int) -> str:
        """
        Shows the first part of a page.

        Args:
            page: the page's full name, as search shows it.
            cursor: number of the result that names the page.
        """
        found = self._page(page)
        return "\n".join(
            [found.address, *found.lines[: found.shown], *([CUT] if found.shown < len(found.lines) else [])]
        )

    def find(self, page: str, text: str, cursor: int) -> str:
        """
        Shows the lines of a page that hold a text, and the lines around them.

        Args:
            page: the page's full name, as search shows it.
            text: what to look for.
            cursor: number of the result that shows the page.
        """
        found = self._page(page)
        at = {near for n, line in enumerate(found.lines) if text in line for near in range(n - 3, n + 4)}
        lines = [line for n, line in enumerate(found.lines) if n in at]
        return "\n".join([found.address, *(lines or [f"No line of the page holds {text!r}."])])

    def _page(self, address: str) -> Page:
        if address not in self.by_address:
            raise ValueError(f"There is no page {address!r}; search shows the full names.")
        return self.by_address[address]


def _titles(first: str, last: str, draw: random.Random) -> list[str]:
    """Titles out of so few words that most share one with another."""
    firsts, lasts = draw.sample(first.split(), ENTITIES // 2), draw.sample(last.split(), ENTITIES // 2)
    return draw.sample([f"{a} {b}" for a in firsts for b in lasts], ENTITIES)


def _lines(kind: str, title: str, relations: dict[str, str], draw: random.Random) -> tuple[list[str], int]:
    """A page's lines, and how many of them are shown at once."""
    facts = [f"The {relation} of {title} is {other}." for relation, other in relations.items()]
    remarks = draw.choices(REMARKS[kind], k=draw.choice((4, 8, 12, 16, 24)))
    lines = [remark.format(title) for remark in remarks]
    if draw.randrange(LONG_ONE_IN):
        lines += facts
        draw.shuffle(lines)
        return lines, len(lines)
    hidden = facts + [draw.choice(REMARKS[kind]).format(title) for _ in range(8)]
    draw.shuffle(hidden)
    return lines + hidden, len(lines)
