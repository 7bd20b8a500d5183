"""A catalogue: one stage of verification a file, each with `run(subject) -> StageResult`."""
