"""What the Apple Neural Engine wants, as rules in YAML, and what of it a saved program breaks. No weight is read.

`rules.yaml` says what each rule looks at and when it is broken, over the predicates in `predicates/`; `program` is a
saved program as they see it, `findings` holds the one against the other, `crossings` says where a call changes units.
"""
