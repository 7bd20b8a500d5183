"""Where bits are best spent: a form for each matrix, and few rules to say it. A leaf."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LAYER = re.compile(r"(?<=\blayers\.)\d+")
STEPS = 100
RULE_SHARE = 0.0005  # of all nats: what an exception must save to be worth a rule


@dataclass(frozen=True)
class Option:
    """A form for a matrix: its number among all forms, the nats that it is predicted to cost, its bits in the file."""

    form: int
    kl: float
    bits: int


@dataclass(frozen=True)
class Matrix:
    """A matrix by the name that a rule knows it by, and what it can be stored as."""

    name: str
    weights: int
    options: tuple[Option, ...]

    @property
    def pattern(self) -> str:
        return LAYER.sub("*", self.name)

    def option(self, form: int) -> Option | None:
        return next((each for each in self.options if each.form == form), None)


Choice = dict[str, Option]  # by the matrix's name


def kl_of(choice: Mapping[str, Option]) -> float:
    return sum(option.kl for option in choice.values())


def bits_of(choice: Mapping[str, Option]) -> int:
    return sum(option.bits for option in choice.values())


def lowest(matrices: Sequence[Matrix], of: Callable[[Option], float]) -> Choice:
    """The choice that has least of bits, or of nats."""
    return {each.name: min(each.options, key=lambda o: (of(o), o.bits)) for each in matrices}


def within_bits(matrices: Sequence[Matrix], bits: float) -> Choice:
    """The least nats in at most so many bits, with few exceptions from what the same matrix of other layers has.

    Raises ValueError where no choice has so few.
    """
    if bits_of(lowest(matrices, lambda o: o.bits)) > bits:
        raise ValueError("no choice has that few bits")
    worth = RULE_SHARE * kl_of(_at(matrices, bits, 0.0))
    return _fill(matrices, _at(matrices, bits, worth), bits, worth)


def within_kl(matrices: Sequence[Matrix], kl: float) -> Choice:
    """The fewest bits at no more than so many nats. Raises ValueError where every choice has more."""
    if kl_of(lowest(matrices, lambda o: o.kl)) > kl:
        raise ValueError("every choice loses more nats")
    low, high = 0, max(bits_of({m.name: max(m.options, key=lambda o: o.bits) for m in matrices}), 1)
    low = bits_of(lowest(matrices, lambda o: o.bits))
    found = within_bits(matrices, high)
    if kl_of(found) > kl:
        return lowest(matrices, lambda o: o.kl)
    for _ in range(40):
        middle = (low + high) / 2
        tried = within_bits(matrices, middle)
        if kl_of(tried) <= kl:
            found, high = tried, int(middle)
        else:
            low = int(middle)
    return found


def _at(matrices: Sequence[Matrix], bits: float, worth: float) -> Choice:
    """By a price of bits in nats, bisected until so many are taken; an exception costs `worth` nats more."""
    low, high = 1e-30, 1.0  # at the highest price everything is smallest
    found = _priced(matrices, high, worth)
    while bits_of(found) > bits and high < 1e30:
        high *= 10
        found = _priced(matrices, high, worth)
    if bits_of(found) > bits:  # exceptions that nobody pays for
        return lowest(matrices, lambda o: o.bits)
    for _ in range(STEPS):
        price = (low * high) ** 0.5
        tried = _priced(matrices, price, worth)
        if bits_of(tried) <= bits:
            found, high = tried, price
        else:
            low = price
    return found


def _priced(matrices: Sequence[Matrix], price: float, worth: float) -> Choice:
    """For each pattern the form that is cheapest with the exceptions from it."""
    found: Choice = {}
    for group in by_pattern(matrices).values():
        forms = dict.fromkeys(option.form for each in group for option in each.options)
        tried = [_with_base(group, form, price, worth) for form in forms]
        found |= min(tried, key=lambda pair: pair[0])[1]
    return found


def _with_base(group: Sequence[Matrix], base: int, price: float, worth: float) -> tuple[float, Choice]:
    total, found = 0.0, {}
    for each in group:
        costs = [(o.kl + price * o.bits + (0.0 if o.form == base else worth), o.bits, o) for o in each.options]
        cost, _, option = min(costs, key=lambda cost: cost[:2])
        total += cost
        found[each.name] = option
    return total, found


def _fill(matrices: Sequence[Matrix], choice: Choice, bits: float, worth: float) -> Choice:
    """Spend what is left: all that are alike get the next form, or one of them does where that is worth a rule."""
    found = dict(choice)
    groups = [group for group in by_pattern(matrices).values() if len(group) > 1] + [[each] for each in matrices]
    while True:
        best: tuple[float, Choice] | None = None
        room = bits - bits_of(found)
        for group in groups:
            for form in dict.fromkeys(option.form for each in group for option in each.options):
                moved = {each.name: option for each in group if (option := each.option(form)) is not None}
                before = {name: found[name] for name in moved}
                more, gain = bits_of(moved) - bits_of(before), kl_of(before) - kl_of(moved)
                price = worth if len(group) == 1 and LAYER.search(group[0].name) else 0.0
                if 0 < more <= room and gain > price and (best is None or gain / more > best[0]):
                    best = gain / more, moved
        if best is None:
            return found
        found |= best[1]


def by_pattern(matrices: Sequence[Matrix]) -> dict[str, list[Matrix]]:
    found: dict[str, list[Matrix]] = defaultdict(list)
    for each in matrices:
        found[each.pattern].append(each)
    return found


def in_rules(matrices: Sequence[Matrix], choice: Mapping[str, Option]) -> tuple[int, list[tuple[str, int]]]:
    """The form of most matrices, and patterns with theirs for the others; of several that match, the last holds."""
    bases = {
        pattern: Counter(choice[each.name].form for each in group).most_common(1)[0][0]
        for pattern, group in by_pattern(matrices).items()
    }
    counted: Counter[int] = Counter()
    for each in matrices:
        counted[bases[each.pattern]] += each.weights
    default = counted.most_common(1)[0][0]
    rules = [(pattern, form) for pattern, form in bases.items() if form != default]
    for pattern, group in by_pattern(matrices).items():
        others: dict[int, list[int]] = defaultdict(list)
        for each in group:
            form = choice[each.name].form
            if form != bases[pattern]:
                others[form].append(int(LAYER.search(each.name)[0]))  # type: ignore[index]
        for form, layers in sorted(others.items()):
            rules += [(pattern.replace("*", digits, 1), form) for digits in patterns_of(layers)]
    return default, rules


def patterns_of(layers: Sequence[int]) -> list[str]:
    """Numbers of layers as patterns, one for those that differ in the last digit: `2`, `[0-4]`, `1[37]`."""
    tens: dict[int, list[int]] = defaultdict(list)
    for layer in sorted(layers):
        tens[layer // 10].append(layer % 10)
    return [f"{ten or ''}{_digits(last)}" for ten, last in tens.items()]


def _digits(digits: Sequence[int]) -> str:
    """A class of digits; a range stands alone in it, for `[0-29]` would be read as thirty layers."""
    if len(digits) == 1:
        return str(digits[0])
    is_run = len(digits) > 2 and digits[-1] - digits[0] == len(digits) - 1
    return f"[{digits[0]}-{digits[-1]}]" if is_run else f"[{''.join(map(str, digits))}]"
