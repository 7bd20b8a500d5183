"""Stage `adapters`: the functions with each adapter that is not merged, against the model that peft makes of it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.decoder.filling import low_rank_factors
from coreai_recipes.decoder.low_rank import Pair, as_stored
from coreai_recipes.recipe.schema import MODEL
from coreai_recipes.verification.answers import Asked, ask
from coreai_recipes.verification.figures import psnr
from coreai_recipes.verification.report import StageResult, judge, number
from coreai_recipes.verification.stages import package
from coreai_recipes.verification.stages import torch as decoder
from coreai_recipes.verification.streamed import StreamedDecoder
from coreai_recipes.verification.subject import Subject

NAME = "adapters"


def run(subject: Subject) -> StageResult:
    """Of each adapter our Decoder as in stage `torch` and the package's calls as in stage `package`, with the floors of
    these; and what the package loses in float16, where nothing may overflow."""
    found, of_each = list[tuple[str, StageResult]](), dict[str, Any]()
    for name, adapter in subject.adapters.items():
        factors = low_rank_factors(subject.recipe, subject.weights, adapter)
        theirs = replace(subject, sources={MODEL: adapter.merged}, reference_logits=None)
        of_adapter = [_of_decoder(subject, theirs, factors)]
        if subject.package is not None and subject.runtime == "evaluator":
            of_adapter += [_of_package(subject, name, factors), _in_float16(subject, name, theirs.reference())]
        of_each[name] = {each.name: _said(each) for each in of_adapter}
        found += ((name, each) for each in of_adapter)
    judged = [each for _, each in found if each.floor_db is not None]
    lowest = min(judged, key=lambda each: (each.psnr_db or 0.0) - (each.floor_db or 0.0))
    detail: dict[str, Any] = {"adapters": of_each, "positions": len(subject.tokens.sequence)}
    failed = next((f"{name}: {each.name}" for name, each in found if not each.passed), None)
    if failed is not None:
        detail["failed"] = failed
    return replace(lowest, name=NAME, passed=failed is None, detail=detail)


def _said(found: StageResult) -> dict[str, Any]:
    figures = {"passed": found.passed, "psnr_db": number(found.psnr_db), "snr_min_db": number(found.snr_min_db)}
    return {**figures, **{key: value for key, value in found.detail.items() if key != "figures"}}


def _of_decoder(subject: Subject, theirs: Subject, factors: dict[str, Pair]) -> StageResult:
    """Our Decoder with the products, against transformers' model into which peft has merged the adapter."""
    ties: list[str] = []
    ours = StreamedDecoder(subject.recipe, subject.weights, low_rank=factors)
    figures = decoder.compare_layers(theirs, ties, ours)
    detail = {"tied_experts": len(ties)} if ties else {}
    return judge("torch", figures, decoder.PSNR_FLOOR, decoder.SNR_MIN_FLOOR, detail)


def _of_package(subject: Subject, name: str, factors: dict[str, Pair]) -> StageResult:
    """The package's calls with an adapter in float32, against our Decoder with what is stored of both."""
    (asked,) = package.asks(subject)
    answers = ask(subject, replace(asked, peaks=None, adapter=name), NAME).answers
    figures = package.compare_answers(answers, package.expected_of(subject, answers, [], as_stored(factors)))
    return judge("package", figures, package.PSNR_FLOOR, package.SNR_MIN_FLOOR, {})


def _in_float16(subject: Subject, name: str, reference: Tensor) -> StageResult:
    """The package's calls with an adapter in float16, against peft's model in float32: stated."""
    (asked,) = package.asks(subject)
    found = ask(subject, Asked("rounded", asked.calls, adapter=name), NAME)
    rows = [reference[each.first_row : each.first_row + len(each.logits)] for each in found.answers]
    logits = torch.cat([each.logits for each in found.answers])
    beyond = [*found.overflowed, *found.nans]
    return StageResult(
        "package_float16", not beyond, psnr(torch.cat(rows), logits), detail={"beyond": beyond[:10]} if beyond else {}
    )
