"""The catalog task: a shop of 20,480 items with semantic ids, and users who buy one item after another.

    <bos> 12 405 530 991  17 405 612 830  ...  ->  the 4 tokens of the next item

Everything is invented, and nothing but the history tells the next item. Items released after the training data ends
are never part of it: they are what a catalogue knows and a model does not.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

PAD, BOS, FIRST_TOKEN = 0, 1, 2
LEVELS, CODES = 4, 256  # a semantic id: category, taste (style and price), and two codes without a meaning
VOCAB_SIZE = FIRST_TOKEN + LEVELS * CODES
CATEGORIES, ITEMS_PER_CATEGORY = 256, 80
STYLES = 16  # a taste is a style and one of 16 prices: 256 tastes
LAST_TRAINING_DAY, LAST_DAY = 100.0, 104.0  # items of the days between are fresh

# What a user does next: buys in the same category, in one that goes with it, or anywhere.
STAY, FOLLOW = 0.45, 0.45
GOES_WITH = (37, 91, 150)  # category c is followed by c + each of these
STYLE_WEIGHT, PRICE_WEIGHT = 3.0, 0.5  # log-weights lost with another style, and per step of price
FRESHNESS_DAYS = 40.0  # an item's appeal fades by 1/e in as many days


@dataclass
class Catalogue:
    """
    Attributes:
        codes (`Tensor` of int64, `[items, 4]`): semantic ids, category after category; the token of code c at level l
            is `2 + 256 * l + c`.
        popularity (`Tensor` of float32, `[items]`): log-weight of each item among its category's.
        released (`Tensor` of float32, `[items]`): day on which it came.
    """

    codes: Tensor
    popularity: Tensor
    released: Tensor

    @classmethod
    def invent(cls, seed: int = 0) -> Self:
        """A catalogue of its own for every seed. 4 % of the items are fresh."""
        generator = torch.Generator().manual_seed(seed)
        items = CATEGORIES * ITEMS_PER_CATEGORY
        codes = torch.randint(CODES, (items, LEVELS), generator=generator)
        codes[:, 0] = torch.arange(items) // ITEMS_PER_CATEGORY
        released = 200 * torch.rand(items, generator=generator) - 100
        fresh = torch.randperm(items, generator=generator)[: items // 25]
        days = LAST_DAY - LAST_TRAINING_DAY
        released[fresh] = LAST_TRAINING_DAY + days * (1 - torch.rand(len(fresh), generator=generator))
        # Rounded, so that what is read from a file is what was invented.
        popularity = 0.8 * torch.randn(items, generator=generator)
        return cls(codes, popularity.round(decimals=3), released.round(decimals=2))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The catalogue that `write` wrote."""
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        tokens = torch.tensor([[int(token) for token in row["tokens"].split()] for row in rows])
        popularity, released = (
            torch.tensor([float(row[name]) for row in rows]) for name in ("popularity", "released")
        )
        return cls(tokens - FIRST_TOKEN - CODES * torch.arange(LEVELS), popularity, released)

    def write(self, path: Path) -> None:
        """As CSV, one item a row, with its tokens as `hf-infeco index build` reads them."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["id", "tokens", "popularity", "released"])
            for name, tokens, popularity, released in zip(
                self.ids, self.tokens.tolist(), self.popularity.tolist(), self.released.tolist()
            ):
                rows.writerow([name, " ".join(map(str, tokens)), round(popularity, 3), round(released, 2)])

    @property
    def tokens(self) -> Tensor:
        """Semantic ids in the model's vocabulary, int64 `[items, 4]`: each level has tokens of its own."""
        return self.codes + FIRST_TOKEN + CODES * torch.arange(LEVELS)

    @property
    def ids(self) -> list[str]:
        """A readable id for each item: category, style, price and number."""
        category, taste = self.codes[:, 0].tolist(), self.codes[:, 1].tolist()
        return [
            f"category-{c}/style-{t // STYLES}/price-{t % STYLES}/{number % ITEMS_PER_CATEGORY}"
            for number, (c, t) in enumerate(zip(category, taste))
        ]

    @property
    def is_fresh(self) -> Tensor:
        """Which items came after the training data, bool `[items]`."""
        return self.released > LAST_TRAINING_DAY

    def sample_histories(
        self, users: int, events: int, generator: torch.Generator, day: float | None = None
    ) -> Tensor:
        """
        What users buy one after another, never the same item twice; numbers of items, int64 `[users, events]`.

        Args:
            day (`float`, *optional*): when they buy; by default a random day of the training data for each user.
        """

        def random(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator)

        taste = torch.randint(CODES, (users,), generator=generator)
        category = torch.randint(CATEGORIES, (users,), generator=generator)
        days = LAST_TRAINING_DAY * random(users) if day is None else torch.full((users,), day)
        bought = torch.zeros(users, CATEGORIES, ITEMS_PER_CATEGORY, dtype=torch.bool)
        rows, history = torch.arange(users), []
        for _ in range(events):
            weights = self._log_weights(category, taste, days).masked_fill(bought[rows, category], float("-inf"))
            place = torch.multinomial(weights.softmax(1), 1, generator=generator)[:, 0]
            bought[rows, category, place] = True
            history.append(category * ITEMS_PER_CATEGORY + place)

            draw, step = random(users), torch.randint(len(GOES_WITH), (users,), generator=generator)
            follows = (category + torch.tensor(GOES_WITH)[step]) % CATEGORIES
            anywhere = torch.randint(CATEGORIES, (users,), generator=generator)
            category = torch.where(draw < STAY, category, torch.where(draw < STAY + FOLLOW, follows, anywhere))
        return torch.stack(history, 1)

    def _log_weights(self, category: Tensor, taste: Tensor, day: Tensor) -> Tensor:
        """How much each user `[U]` on each day `[U]` wants each item of a category, `[U, items of it]`."""
        shape = (CATEGORIES, ITEMS_PER_CATEGORY)
        item_taste, popularity, released = (
            values.view(shape)[category] for values in (self.codes[:, 1], self.popularity, self.released)
        )
        age = day[:, None] - released
        other_style = item_taste // STYLES != (taste // STYLES)[:, None]
        price_steps = (item_taste % STYLES - (taste % STYLES)[:, None]).abs()
        wanted = popularity - STYLE_WEIGHT * other_style - PRICE_WEIGHT * price_steps - age / FRESHNESS_DAYS
        return wanted.masked_fill(age < 0, float("-inf"))


def encode_histories(catalogue: Catalogue, histories: Tensor) -> Tensor:
    """Histories `[users, events]` as input ids `[users, 1 + 4 * events]`, `<bos>` first."""
    tokens = catalogue.tokens[histories].flatten(1)
    return torch.cat([torch.full((len(histories), 1), BOS), tokens], 1)
