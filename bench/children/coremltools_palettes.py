"""What coremltools takes for palettes of 4 bits of a package's `decode`: one JSON line.

python -m bench.children.coremltools_palettes PACKAGE OUT

It refuses packages of several functions, so that the others are left out first; all share the same weights. Processor
seconds are of its `palettize_weights` alone: neither importing, reading nor writing counts.
"""

import json
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

FUNCTION = "decode"
GROUP, BITS = 16, 4


def main(package: Path, out: Path) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools as ct
    from coremltools.optimize.coreml import OpPalettizerConfig, OptimizationConfig, palettize_weights

    whole = ct.models.MLModel(str(package), skip_model_load=True)
    model = ct.models.MLModel(of_one_function(whole.get_spec()), weights_dir=whole.weights_dir, skip_model_load=True)
    config = OpPalettizerConfig(
        mode="kmeans", nbits=BITS, granularity="per_grouped_channel", group_size=GROUP, weight_threshold=65_536
    )
    started = time.process_time()
    made = palettize_weights(model, OptimizationConfig(global_config=config))
    seconds = time.process_time() - started
    made.save(str(out))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(json.dumps({"processor_seconds": seconds, "bytes": size}))


def of_one_function(spec: Any) -> Any:
    """The same with `decode` alone, as its main function."""
    for name in list(spec.mlProgram.functions):
        if name != FUNCTION:
            del spec.mlProgram.functions[name]
    spec.mlProgram.functions["main"].CopyFrom(spec.mlProgram.functions[FUNCTION])
    del spec.mlProgram.functions[FUNCTION]
    (described,) = (each for each in spec.description.functions if each.name == FUNCTION)
    for kind in ("input", "output", "state"):
        getattr(spec.description, kind).extend(getattr(described, kind))
    del spec.description.functions[:]
    spec.description.defaultFunctionName = ""
    return spec


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
