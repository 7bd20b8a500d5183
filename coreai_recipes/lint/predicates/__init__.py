"""What a rule's case may ask of an item, by name: one function each, registered where it stands.

A predicate is given the item and the parameter that the rule names, and answers with words for the message when it
holds, with None when it does not, and with UNKNOWN when that takes ranges that nobody knows.
"""

from coreai_recipes.lint.predicates import bundles, compression, operations, programs, states, values
from coreai_recipes.lint.predicates.predicate import PREDICATES, UNKNOWN, Answer, Item

__all__ = ["PREDICATES", "UNKNOWN", "Answer", "Item"]

del bundles, compression, operations, programs, states, values
