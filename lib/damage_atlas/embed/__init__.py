"""Embed: a vector for every image that has none yet; equal bytes are embedded once.

plan.py   who embeds what, from what is stored
part.py   a part as an object that proves itself
work.py   decode, preprocess, forward one part
given.py  vectors that another model made, looked up instead
seal.py   every observation accounted for
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from damage_atlas.contracts import Artifact
from damage_atlas.embed.given import adopt_vectors, look_up_parts
from damage_atlas.embed.plan import EmbedPlan, VectorPart, plan_embedding
from damage_atlas.embed.seal import seal_embedding
from damage_atlas.embed.work import DecodedPart, EmbedPart, ForwardPart, PartResult, decoder_of
from damage_atlas.parts import map_in_threads
from damage_atlas.progress import Progress
from damage_atlas.store import Run

__all__ = [
    "DecodedPart",
    "EmbedPart",
    "EmbedPlan",
    "ForwardPart",
    "PartResult",
    "VectorPart",
    "adopt_vectors",
    "decoder_of",
    "embed_archive",
]

# (run, parts) -> results in any order
EmbedParts = Callable[[Run, Sequence[VectorPart]], Iterable[PartResult]]


def embed_in_threads(run: Run, parts: Sequence[VectorPart]) -> Iterator[PartResult]:
    """Embed parts on threads of this process, one core each; what one process uses instead of Ray Data."""
    yield from map_in_threads(EmbedPart(run.uri), parts)


def embed_archive(run: Run, embed_parts: EmbedParts = embed_in_threads) -> Artifact:
    """Embed what the run's catalog lists and no earlier run has embedded with this model version.

    Raises:
        ContractError: a part did not come back, or the ledger does not add up.
    """
    if sealed := run.stage("embed").sealed:
        return sealed
    stage = run.stage("embed")
    plan = plan_embedding(run, stage)
    if plan.card.is_given:
        embed_parts = look_up_parts  # no work to spread
    results = []
    with Progress("embed", "images", len(plan.new_ids)) as progress:
        for result in embed_parts(run, plan.parts):
            results.append(result)
            rows = 0 if result.output is None else result.output.rows or 0
            progress.add(rows + len(result.failed), len(result.failed))
    return seal_embedding(run, stage, plan, results)
