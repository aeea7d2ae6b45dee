"""Rows of values of features, in which each pair of values meets at least once."""

import inspect
import itertools
import random


def covering_array(features, constraints):
    """Returns rows {feature: value} that contain each possible pair of values.

    Each row starts with a pair that no row has. The other features get the values that make most
    new pairs, at random among the best, with a fixed seed.

    Args:
      features: dictionary of tuples of values.
      constraints: functions that return whether values of features may meet. Their parameters are
        names of features.
    """
    rules = [(rule, tuple(inspect.signature(rule).parameters)) for rule in constraints]
    rules_of = {name: [rule for rule in rules if name in rule[1]] for name in features}
    rng = random.Random(0)

    def allowed_values(row, name):
        """Returns the values of a feature that may meet all values of a row."""
        known = [rule for rule in rules_of[name] if row.keys() | {name} >= {*rule[1]}]
        return [
            value
            for value in features[name]
            if all(rule(*({**row, name: value}[n] for n in names)) for rule, names in known)
        ]

    def completed(row):
        """Returns the row with a value of each feature, or `None` if that is impossible."""
        left = {name: allowed_values(row, name) for name in features if name not in row}
        if not left:
            return row
        # Features with constraints come first, and of these the one with the fewest values.
        name = min(left, key=lambda name: (not rules_of[name], len(left[name])))

        def rank(value):
            gain = sum(frozenset([(name, value), item]) in missing for item in row.items())
            return -gain, rng.random()

        rows = ({**row, name: value} for value in sorted(left[name], key=rank))
        return next(filter(None, map(completed, rows)), None)

    values = ([(name, value) for value in values] for name, values in features.items())
    pairs = (itertools.product(*two) for two in itertools.combinations(values, 2))
    missing = dict.fromkeys(frozenset(pair) for pair in itertools.chain(*pairs))
    rows = []
    while missing:
        first = next(iter(missing))
        del missing[first]
        (name, value), (other, _) = sorted(first)
        row = dict(first)
        row = completed(row) if value in allowed_values({other: row[other]}, name) else None
        if row is not None:
            rows.append({name: row[name] for name in features})
            for pair in itertools.combinations(row.items(), 2):
                missing.pop(frozenset(pair), None)
    return rows
