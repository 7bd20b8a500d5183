"""The stages of a verification, a line each, and what a reader wants to know first of each."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.report.console import print_entries
from coreai_recipes.report.weights import print_storage
from coreai_recipes.report.words import count, decibels, percent, weights_in_words

# what no stage proves of a package, by its format
NOT_COVERED = {
    "coreml": "Core ML's own compiler and loader, placement, the hardware's accumulation",
    "coreai": "specialisation for a device, placement, Apple's native kernels, speed",
}


def print_report(report: Mapping[str, Any]) -> None:
    """The stages of a report with their figures."""
    rows = []
    for stage in report["stages"]:
        if stage["name"] == "compressed" and stage["passed"] is None:
            continue  # nothing compresses
        verdict = {True: "passed", False: "FAILED", None: "skipped"}[stage["passed"]]
        rows.append(
            (
                (stage["name"], verdict, *(decibels(stage[key]) for key in ("psnr_db", "snr_min_db", "floor_db"))),
                _explain(stage),
            )
        )
    if rows:
        print_entries(("stage", "verdict", ">PSNR dB", ">SNR_min dB", ">floor dB"), rows)
    for stage in report["stages"]:
        if "by_tensor" in stage["detail"]:
            if any(row["form"] != "float16" for row in stage["detail"]["by_tensor"]):
                print_storage(stage["detail"]["by_tensor"])
            for row in stage["detail"].get("for_host", ()):
                bits = f"{row['bits_per_weight']:.2f} bits a weight"
                print(f"{row['name']}, for the host: {row['form']}, {bits}, {decibels(row['psnr_db'])} dB")
    ran = [stage for stage in report["stages"] if stage["passed"] is not None]
    if not ran:
        reasons = {str(stage["detail"].get("skipped", "skipped")) for stage in report["stages"]}
        print(f"nothing was verified: {'; '.join(sorted(reasons)) or 'no stage was requested'}")
        return  # so that all is not covered, whatever the format
    if any("coreml" in stage["detail"] for stage in ran):
        print("not covered: placement")
    elif any(stage["detail"].get("runtime") == "coreai" for stage in ran):
        print(f"not covered: {NOT_COVERED['coreai']}")
    else:
        print(f"not covered: {NOT_COVERED['coreml']}")


# how a package may be run in float16, the hardware first
RUN = ("coreml", "coreai", "rounded")


def _explain(stage: Mapping[str, Any]) -> str:
    """The first things that a reader wants of a stage's detail."""
    detail = stage["detail"]
    if "skipped" in detail:
        return str(detail["skipped"])
    words = []
    if "first_below" in detail:
        words.append(f"first below its floor: {_figures(detail['first_below'])}")
    words += [f"set {each['text']}" if each["field"] else str(each["text"]) for each in detail.get("remedies", ())]
    if "kinds" in detail:
        words += [f"{kind}: {verdict}" for kind, verdict in detail["kinds"].items()]
        words.append(f"{detail['sampled']} positions")
    if "worst_psnr" in detail:
        words.append(f"{detail['tensors']} tensors at {detail['positions']} positions, lowest {detail['worst_psnr']}")
    if "weights_compared" in detail:
        words.append(count(detail["weights_compared"], "compressed weight"))
        words.append(f"{detail['program']} and its dense twin: {detail['calls']}; outputs and states to the bit")
    if detail.get("decompressed") == "once":
        words.append("of weights that were decompressed before, once")
    if "probes" in detail:
        words.append(f"{sum(detail['probes'].values())} texts and conversations")
        if "different" in detail:
            found = detail["different"]
            words.append(f"{found['probe']}: {found['ours']} here, {found['transformers']} by transformers")
        words.append(detail.get("endless") or ("ids NOT equal" if "different" in detail else "ids equal"))
    if "greedy" in detail:
        greedy, ties = detail["greedy"], detail["greedy"].get("ties")
        verdict = greedy.get("skipped") or ("equal" if greedy["equal"] else f"NOT equal: {greedy['not_equal']}")
        words.append(f"greedy tokens {verdict}" + (f", {count(len(ties), 'tie')}" if ties else ""))
    if "tied_experts" in detail:
        words.append(f"{detail['tied_experts']['choices']} choices among tied experts")
    if detail.get("caches") == "random":
        words.append(f"on random caches; rounds {detail['rounds']}")
    if "accepted_per_round" in detail:
        unequal = [name for name, equal in detail["equal"].items() if not equal]
        verdict = f"rounds NOT equal: {detail['not_equal'][0]}" if unequal else "rounds equal, token for token"
        words.append(f"{verdict}; {detail['accepted_per_round']} drafted tokens accepted per round")
    if detail.keys() & {*RUN}:
        theirs, strict = detail["transformers_float16"], detail.get("strict")
        if "coreai" in detail:
            words.append(f"by Core AI's runtime: {detail['coreai']['calls']}")
        if "coreml" in detail:
            words.append(f"on Core ML ({detail['compute_units']}): {detail['coreml']['calls']}")
        words.append(f"top-1 {percent(next(detail[mode] for mode in RUN if mode in detail))}")
        words.append(_their_halves(theirs, detail.get("transformers_bfloat16"), bool(detail.get("sums_in_float16"))))
        words += _state_words(detail.get("states"))
        if strict:
            words.append(f"sums in float16 too {decibels(strict['psnr_db'])} dB, top-1 {percent(strict)}")
        words += [f"overflow in {name}" for name in detail["overflowed"][:1]]
    words += [f"{name}: {_adapter_words(each)}" for name, each in detail.get("adapters", {}).items()]
    if "with_tables" in detail:
        words.append(f"top-1 {percent(detail['engine'])} of package_float16's")
        words += [count(len(detail["ties"]), "tie")] if detail["ties"] else []
        tables = detail["with_tables"]
        words.append(f"with our tables {decibels(tables['psnr_db'])} dB, top-1 {percent(tables)}")
    if "kl" in detail:
        storage, perplexity = detail["storage"], detail["perplexity"]
        words.append(f"KL {detail['kl']['mean']:.4f} nats at {detail['positions']} positions, top-1 {percent(detail)}")
        words.append(f"perplexity {perplexity['compressed']:.2f}, {perplexity['transformers']:.2f} without")
        words.append(weights_in_words(storage))
        words += [over.partition("\n")[0] for over in detail.get("over_budget", ())]
    words += _reference_words(detail)
    if "weights" in detail:
        words.append(f"{detail['weights']}: {detail['layers']}")
    return "; ".join(words)


def _adapter_words(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What each of the comparisons with an adapter has found."""
    said = (
        f"{name} {decibels(each['psnr_db'])} dB" + ("" if each["passed"] else " FAILED") for name, each in found.items()
    )
    return ", ".join(said)


def _state_words(states: Mapping[str, Any] | None) -> Iterator[str]:
    """What the states of a recurrence lose, and transformers' float16 with its own states so."""
    if states is None:
        return
    theirs = states["transformers"]
    yield f"its states in float16, all else in float32: {decibels(states['psnr_db'])} dB"
    if "not_compared" in theirs:
        yield f"transformers' states stay in float32: {theirs['not_compared']}"
    else:
        yield f"transformers' float16 with float16 states {decibels(theirs['float16_psnr_db'])} dB"
    after = states.get("after", {})
    for each in after.get("lengths", ()):
        yield f"its states alone after {each['tokens']:,} tokens, one a call: {decibels(each['psnr_db'])} dB"
    if "not_measured" in after:
        lengths = " and ".join(f"{length:,}" for length in after["not_measured"])
        yield f"what they lose after {lengths} tokens was not measured, which takes long: --states does"


def _their_halves(float16: Mapping[str, Any], bfloat16: Mapping[str, Any] | None, sums: bool) -> str:
    """What transformers' own float16 is, or bfloat16 where float16 cannot hold the model."""
    found, name = (float16, "float16") if bfloat16 is None else (bfloat16, "float16 is not finite, bfloat16")
    if sums and bfloat16 is None:
        name = "float16, with this runtime's sums,"
    return f"transformers' own {name} {decibels(found['psnr_db'])} dB, top-1 {percent(found)}"


def _reference_words(detail: Mapping[str, Any]) -> Iterator[str]:
    """What the reference was made of, where that is not config.json as it is."""
    made_of = detail.get("reference", {})
    config = made_of.get("config", "config.json")
    if "config" in detail:
        yield str(detail["config"])
    elif config != "config.json" and not config.startswith("the recipe"):
        yield f"reference config: {config}"
    if made_of.get("written_as"):
        yield f"the file says {made_of['written_as']}, as which llama.cpp writes this family"
    if made_of.get("not_read_by_transformers"):
        yield f"of which it does not read {', '.join(made_of['not_read_by_transformers'])}"
    for field, values in made_of.get("disagreeing", {}).items():
        yield f"{field}: {', '.join(f'{who} {value}' for who, value in values.items())}"


def _figures(found: Any) -> str:
    if not isinstance(found, Mapping):
        return str(found)
    return f"{found['tensor']} ({decibels(found['psnr_db'])} / {decibels(found['snr_min_db'])} dB)"
