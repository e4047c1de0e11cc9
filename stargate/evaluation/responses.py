"""The record of one final response."""

from dataclasses import dataclass

from stargate.records.schemas import Row


@dataclass(frozen=True, slots=True)
class Response:
    """What m_`responder_version` finally said after a dialogue."""

    dialogue_id: str
    pair_id: str
    responder_version: int
    text: str
    num_tokens: int
    stop: str


def response_from_row(row: Row) -> Response:
    """The record of one row of `responses`."""
    return Response(**row)
