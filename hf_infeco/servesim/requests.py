"""A request on its way: what the trace says of it, and what has become of it."""

from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """
    One line of a trace.

    Args:
        arrival: seconds since the start of the trace, at the front end.
        input_tokens: of the prompt.
        output_tokens: that are made, no more and no less.
        hash_ids: a number for each whole block of the prompt, equal where the prompts are equal up to its end.
        hash_block: tokens of such a block.
        session: requests of one conversation or agent share it.
        delay: seconds that a tool or a person takes after the session's request before; it then arrives no earlier.
        number: its place in the trace.
    """

    arrival: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    hash_block: int = 16
    session: str | None = None
    delay: float | None = None
    number: int = 0


class Job:
    """A request in an instance, from its arrival to its last token. Times are seconds of the simulation's clock."""

    __slots__ = (
        "arrival",
        "blocks",
        "computed",
        "entered",
        "finishes",
        "first",
        "is_carried",
        "is_decoding",
        "last",
        "left",
        "offset",
        "preemptions",
        "prompt",
        "queued",
        "request",
        "reused",
        "scheduled",
        "units",
    )

    def __init__(self, request: Request, arrival: float, left: int | None = None):
        self.request = request
        self.arrival = arrival
        self.queued = self.scheduled = self.first = self.last = -1.0
        self.prompt = request.input_tokens  # tokens to prefill: the input, and after a preemption what was made since
        self.computed = 0  # of the prompt: chunks scheduled so far, and what the prefix cache had
        self.left = request.output_tokens if left is None else left  # tokens still to make
        self.blocks = 0
        self.units: tuple[int, ...] = ()  # of the prefix cache
        self.reused = 0  # tokens that the prefix cache had
        self.preemptions = 0
        self.is_decoding = False
        self.is_carried = False  # its KV was computed elsewhere and moved here
        self.offset = 0  # KV length minus the number of the batch, while decoding: it does not change
        self.entered = 0  # number of the batch with the last chunk of the prompt
        self.finishes = -1  # number of the batch that makes the last token
