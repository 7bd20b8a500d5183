"""Which family's rules read a config.json, and which part of it."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from coreai_recipes.errors import CheckpointError
from coreai_recipes.recipe.importing.checking import find_config_problems, shown
from coreai_recipes.recipe.importing.family import Family, family_names, load_family, own_code_models, refused_models
from coreai_recipes.recipe.importing.known import family_of_class, is_model_type
from coreai_recipes.recipe.importing.spelling import spread
from coreai_recipes.recipe.yaml_reader import shorten

# what classes that give logits of a next token are called
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForMultimodalLM")
TIE = "tie_word_embeddings"
WINDOW = "sliding_window"
# without which nothing is said of a Llama
LLAMAS = {"hidden_size", "num_hidden_layers", "num_attention_heads"}
NO_FAMILY_FILE = "no family file reads its config.json yet; CONTRIBUTING.md explains how to write one"


def choose_family(config: Mapping[str, Any], chosen: str | None = None) -> tuple[Family, Mapping[str, Any]]:
    """The family of a config's model_type (or the `chosen` one) and the part of the config that it reads.

    Raises CheckpointError when there is no family: with what recipes lack, or the family whose fields these are.
    """
    place = "config.json"
    model_type = taken_as(config) if chosen is None else chosen
    if model_type is None:
        raise CheckpointError(
            f"{place}: model_type: missing, so the family is unknown\n"
            f"  name it with `--as FAMILY`: {', '.join(family_names())}"
        )
    if not isinstance(model_type, str):
        raise CheckpointError(f"{place}: model_type: {shown(model_type)} is not a word")
    if model_type not in family_names():
        raise CheckpointError(_why_unknown(config, model_type, chosen is not None))
    _check_architectures(config)
    family = load_family(model_type)
    if family.part is None:
        return family, config
    return _open_part(config, family)


def taken_as(config: Mapping[str, Any]) -> Any:
    """The model_type as whose transformers takes a config: AutoConfig makes a Ministral of a Mistral that lists its
    layers, whose own class would have all of them slide."""
    model_type = config.get("model_type")
    return "ministral" if model_type == "mistral" and "layer_types" in config else model_type


def _open_part(config: Mapping[str, Any], outer: Family) -> tuple[Family, Mapping[str, Any]]:
    """The text part of a config that has others; what stands around it must be known too."""
    name = outer.part or ""
    part = config.get(name)
    if part is None and outer.flat:
        flat = load_family(outer.family or "")
        around = {*outer.ignored, "model_type", "architectures"} - flat.fields.keys()
        return flat, {key: value for key, value in config.items() if key not in around}
    problems = list(find_config_problems(_without_copies(config, outer), outer))
    inner = None
    if not isinstance(part, Mapping):
        problems.append(f"{name}: {'missing' if part is None else shown(part) + ' is not a mapping'}")
    else:
        inner, problem = _inner_family(part, outer)
        problems += [f"{name}.model_type: {problem}"] if problem else []
        part = {**part, "model_type": inner}
        is_said = outer.either_ties and part.get(TIE) is True
        if config.get(TIE) is not None and not outer.draft and not is_said:
            part[TIE] = config[TIE]  # the head is the whole's, and so is the word about it
    CheckpointError.collect(f"config.json: {problem}" for problem in problems)
    return load_family(inner or ""), part or {}


def _without_copies(config: Mapping[str, Any], outer: Family) -> Mapping[str, Any]:
    """What stands around the part, without what stands in it too: where files of old were flat, some were saved with
    the text part's fields in both places, and transformers takes those of the part."""
    part = config.get(outer.part or "")
    if not outer.flat or not isinstance(part, Mapping):
        return config
    copies = {name: part[name] for name, value in config.items() if name in part and part[name] == value}
    # its class makes null of a window that is turned off, and around the part the size still stands
    if part.get(WINDOW, 0) is None and part.get(f"use_{WINDOW}") is False:
        copies[WINDOW] = None
    return {name: value for name, value in config.items() if name not in copies}


def _inner_family(part: Mapping[str, Any], outer: Family) -> tuple[str | None, str | None]:
    """The family whose rules read a part, or why there is none."""
    usual = outer.family or ""
    said = part.get("model_type", usual)
    said = outer.renamed.get(said, said) if isinstance(said, str) else said
    if said in (usual, *outer.families) or (outer.any and _is_whole(said)):
        return str(said), None
    if isinstance(said, str) and (said in refused_models() or is_model_type(said)) and said not in family_names():
        return None, f"{shown(said)}: {refused_models().get(said, NO_FAMILY_FILE)}"
    others = " nor another family" if outer.any else ""
    return None, f"{shown(said)} is not {', '.join((usual, *outer.families))}{others}"


def _is_whole(name: Any) -> bool:
    """Whether this is a family of a whole model, and not of a part alone."""
    return name in family_names() and not name.endswith("_text") and load_family(name).part is None


def _check_architectures(config: Mapping[str, Any]) -> None:
    names = config.get("architectures")
    if names and isinstance(names, list) and not any(str(name).endswith(LANGUAGE_MODELS) for name in names):
        raise CheckpointError(
            f"config.json: architectures: {shorten(', '.join(map(str, names)))} does not predict a next token"
        )


def _why_unknown(config: Mapping[str, Any], model_type: str, is_chosen: bool) -> str:
    name = shorten(model_type)
    if is_chosen:
        close = get_close_matches(model_type[:100], family_names(), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"available: {', '.join(family_names())}"
        return f"--as {name}: no such family\n  {hint}"
    lead = f"config.json: model_type: {name}"
    if model_type in refused_models():
        return f"{lead}: {refused_models()[model_type]}"
    if is_model_type(model_type):
        return f"{lead}: {NO_FAMILY_FILE}"
    if model_type in own_code_models():
        return f"{lead}: transformers has no such model: {own_code_models()[model_type]}"
    classes = config.get("architectures")
    classes = [str(entry) for entry in classes] if isinstance(classes, list) else []
    named = next((name for name in map(family_of_class, classes) if name), None)
    nearest = load_family(named or "llama")
    foreign = [problem.partition(":")[0] for problem in find_config_problems(spread(config, nearest), nearest)]
    if named and not foreign:
        return (
            f"{lead}: unknown, but architectures says {shorten(', '.join(classes))}\n"
            f"  to read it as that family's, add `--as {named}`"
        )
    if not foreign and config.keys() >= LLAMAS:
        return (
            f"{lead}: unknown, but every field is one of Llama's; config.json does not say whether its weights are\n"
            "  if it is a Llama by another name, add `--as llama`"
        )
    code = "; its code ships with the checkpoint and is never run" if config.get("auto_map") else ""
    return f"{lead}: transformers has no such model{code}" + _name_foreign(nearest.name, foreign)


def _name_foreign(family: str, fields: list[str]) -> str:
    """The fields by which a config is not a family's."""
    return f"; {family} has no {', '.join(fields[:8])}{' ...' if len(fields) > 8 else ''}" if fields else ""
