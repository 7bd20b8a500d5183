"""The charts of a page as Vega-Lite, from the facts of a bundle: one mark for each datum, drawn elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]
Spec = dict[str, Any]

WIDTH = 560
BITS_SCALE = {"domain": [1, 16], "scheme": "viridis"}
FIGURES = (("psnr_db", "PSNR", "floor_db"), ("snr_min_db", "SNR_min", "snr_min_floor_db"))


def layers_chart(facts: Facts) -> Spec:
    """The stack of layers, a box each, by kind."""
    rows = [{"layer": index, "kind": kind} for index, kind in enumerate(facts["layers"])]
    mark = {"type": "rect", "stroke": "currentColor", "strokeOpacity": 0.4}
    encoding = {
        "x": {"field": "layer", "type": "ordinal", "axis": _every(len(rows), "layer")},
        "color": {"field": "kind", "type": "nominal", "sort": list(facts["kinds"]), "legend": _below("kind")},
    }
    return _chart(rows, mark, encoding, 34)


def turns_chart(turns: Sequence[Mapping[str, Any]]) -> Spec:
    """Which dimension of a head turns with which; one that passes is its own partner."""
    rows = [{**each, "is": "turned" if each["turns"] else "passes"} for each in turns]
    scale = {"domain": [0, len(rows)], "nice": False}
    encoding = {
        "x": {"field": "dimension", "type": "quantitative", "title": "dimension of a head", "scale": scale},
        "y": {"field": "with", "type": "quantitative", "title": "turned with", "scale": scale},
        "color": {"field": "is", "type": "nominal", "sort": ["turned", "passes"], "legend": _below(None)},
    }
    return _chart(rows, {"type": "point", "filled": True, "size": 14}, encoding, 160, 220)


def decibels_chart(facts: Facts, stage: str) -> Spec | None:
    """dB by layer of what a stage compared, above its floors; what is identical has none. None without figures."""
    rows = list(_decibels(facts, stage))
    if not rows:
        return None
    floors = {row["figure"]: row["floor"] for row in rows if row["floor"] is not None}
    encoding = {
        "x": {"field": "layer", "type": "quantitative", "axis": {"title": "layer", "tickMinStep": 1}},
        "y": {"field": "dB", "type": "quantitative", "scale": {"zero": False}},
        "color": {
            "field": "figure",
            "type": "nominal",
            "sort": [name for _, name, _ in FIGURES],
            "legend": _below(None),
        },
        "shape": {"field": "part", "type": "nominal", "legend": _below("tensor")},
        "description": {"field": "says", "type": "nominal"},
    }
    points = {"mark": {"type": "point", "size": 36}, "encoding": encoding, "data": {"values": rows}}
    lines = [{"dB": floor, "figure": name} for name, floor in floors.items()]
    return _layered([points, *([_floor_lines(lines, "dB")] if lines else [])], 220)


def _decibels(facts: Facts, stage: str) -> Iterator[dict[str, Any]]:
    for row in facts["figures"]:
        for key, name, floor in FIGURES:
            if row["stage"] == stage and isinstance(row[key], int | float):
                layer = len(facts["layers"]) if row["layer"] is None else row["layer"]
                says = f"{row['tensor']}: {name} {row[key]:.1f} dB"
                yield {
                    "layer": layer,
                    "part": row["part"],
                    "figure": name,
                    "dB": row[key],
                    "floor": row[floor],
                    "says": says,
                }


def ranges_chart(facts: Facts) -> Spec | None:
    """The largest value by layer and function, below the limits; None without an audit."""
    if not facts["ranges"]:
        return None
    end = len(facts["layers"])
    rows = [
        {
            **row,
            "layer": end if row["layer"] is None else row["layer"],
            "says": f"{row['function']}: {row['value']}: {row['largest']:,.5g}",
        }
        for row in facts["ranges"]
        if row["largest"] > 0
    ]
    encoding = {
        "x": {"field": "layer", "type": "quantitative", "axis": {"title": "layer", "tickMinStep": 1}},
        "y": {"field": "largest", "type": "quantitative", "scale": {"type": "log"}, "title": "largest magnitude"},
        "color": {"field": "function", "type": "nominal", "legend": _below(None)},
        "description": {"field": "says", "type": "nominal"},
    }
    points = {"mark": {"type": "point", "filled": True, "size": 40}, "encoding": encoding, "data": {"values": rows}}
    lines = [{"largest": size, "figure": name} for name, size in facts["limits"].items()]
    return _layered([points, _floor_lines(lines, "largest")], 220)


def tensors_chart(facts: Facts) -> Spec:
    """Bits a weight of every parameter, by layer: a box each."""
    rows = [
        {
            "layer": "-" if row["layer"] is None else str(row["layer"]),
            "part": row["part"],
            "bits": row["bits_per_weight"],
            "says": _tensor_words(row),
        }
        for row in facts["by_tensor"]
    ]
    layers = [*map(str, range(len(facts["layers"]))), "-"]
    encoding = {
        "x": {"field": "layer", "type": "ordinal", "sort": layers, "axis": _every(len(layers), "layer")},
        "y": {"field": "part", "type": "nominal", "title": None, "sort": None},
        "color": {"field": "bits", "type": "quantitative", "scale": BITS_SCALE, "legend": _below("bits")},
        "description": {"field": "says", "type": "nominal"},
    }
    return _chart(rows, {"type": "rect"}, encoding, {"step": 13})


def loss_chart(facts: Facts) -> Spec | None:
    """dB of every compressed parameter against its checkpoint's, by its bytes; None where nothing was compressed."""
    rows = [
        {"bytes": row["bytes"], "dB": row["psnr_db"], "form": row["form"], "says": _tensor_words(row)}
        for row in facts["by_tensor"]
        if isinstance(row["psnr_db"], int | float)
    ]
    if not rows:
        return None
    encoding = {
        "x": {"field": "bytes", "type": "quantitative", "scale": {"type": "log"}},
        "y": {"field": "dB", "type": "quantitative", "scale": {"zero": False}, "title": "PSNR dB"},
        "color": {"field": "form", "type": "nominal", "legend": _below(None)},
        "description": {"field": "says", "type": "nominal"},
    }
    return _chart(rows, {"type": "point", "filled": True, "size": 36}, encoding, 200)


def sizes_chart(rows: Sequence[Mapping[str, Any]]) -> Spec | None:
    """The sizes of each recipe in a line, by bits; where there is one device alone, beside each its tokens a second.
    None without a point."""
    if not rows:
        return None
    recipe = {"field": "recipe", "type": "nominal", "sort": None, "title": None, "axis": {"grid": True}}
    size = {"field": "MB", "type": "quantitative", "scale": {"type": "log"}, "title": "MB"}
    points = {
        "mark": {"type": "point", "filled": True, "size": 60},
        "encoding": {
            "y": recipe,
            "x": size,
            "color": {"field": "bits", "type": "nominal", "sort": None, "legend": _below("bits")},
            "shape": {"field": "where", "type": "nominal", "sort": None, "legend": _below(None)},
            "description": {"field": "says", "type": "nominal"},
        },
    }
    fast = [row for row in rows if row["tokens_per_second"]]
    layers = [points]
    if len({row["where"] for row in fast}) == 1:
        speeds = [{**row, "speed": f"{row['tokens_per_second']:,.0f}/s"} for row in fast]
        text = {"type": "text", "dy": -8, "fontSize": 9, "color": "currentColor", "aria": False}
        said = {"y": recipe, "x": size, "text": {"field": "speed", "type": "nominal"}}
        layers.append({"data": {"values": speeds}, "mark": text, "encoding": said})
    return {**_base({"step": 26}, WIDTH), "data": {"values": list(rows)}, "layer": layers}


def cells_chart(rows: Sequence[Mapping[str, Any]], figure: str, title: str, log: bool) -> Spec | None:
    """A figure of a zoo's cells against their size, a point each: by recipe and device, the larger the more tokens a
    second. None without a point."""
    if not rows:
        return None
    scale = {"type": "log"} if log else {"zero": False}
    encoding = {
        "x": {"field": "MB", "type": "quantitative", "scale": {"type": "log"}, "title": "MB"},
        "y": {"field": figure, "type": "quantitative", "scale": scale, "title": title},
        "color": {"field": "recipe", "type": "nominal", "sort": None, "legend": _below(None)},
        "shape": {"field": "where", "type": "nominal", "sort": None, "legend": _below(None)},
        "description": {"field": "says", "type": "nominal"},
    }
    if any(row["tokens_per_second"] is not None for row in rows):
        size = {
            "field": "tokens_per_second",
            "type": "quantitative",
            "title": "tokens/s",
            "scale": {"range": [30, 300]},
        }
        encoding["size"] = {**size, "legend": _below("tokens/s, at most")}
    return _chart(rows, {"type": "point", "filled": True}, encoding, 300)


def _tensor_words(row: Mapping[str, Any]) -> str:
    loss = "" if row["psnr_db"] is None else f", {row['psnr_db']} dB"
    kl = "" if row["kl"] is None else f", KL {row['kl']:.2g}"
    return f"{row['name']}: {row['form']}, {row['bits_per_weight']:.2f} bits, {row['bytes']:,} bytes{loss}{kl}"


def _floor_lines(rows: Sequence[Mapping[str, Any]], field: str) -> Spec:
    rule = {"type": "rule", "strokeDash": [5, 4], "color": "currentColor", "opacity": 0.6, "aria": False}
    text = {
        "type": "text",
        "align": "left",
        "dx": 2,
        "dy": -5,
        "x": 0,
        "color": "currentColor",
        "fontSize": 10,
        "aria": False,
    }
    y = {"field": field, "type": "quantitative"}
    text_of = {"y": y, "text": {"field": "figure", "type": "nominal"}}
    return {
        "data": {"values": list(rows)},
        "layer": [{"mark": rule, "encoding": {"y": y}}, {"mark": text, "encoding": text_of}],
    }


def _chart(rows: Sequence[Mapping[str, Any]], mark: Spec, encoding: Spec, height: Any, width: int = WIDTH) -> Spec:
    return {**_base(height, width), "data": {"values": list(rows)}, "mark": mark, "encoding": encoding}


def _layered(parts: Sequence[Spec], height: int) -> Spec:
    return {**_base(height, WIDTH), "layer": list(parts)}


def _base(height: Any, width: int) -> Spec:
    axis = dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor", "gridColor"), "currentColor")
    legend = {"labelColor": "currentColor", "titleColor": "currentColor", "columns": 4, "labelLimit": 260}
    config = {
        "font": "system-ui, sans-serif",
        "background": None,
        "padding": {"left": 24, "top": 8, "right": 8, "bottom": 4},  # names are measured without the reader's font
        "view": {"stroke": None},
        "axis": {**axis, "gridOpacity": 0.12, "labelLimit": 200},
        "legend": legend,
        "range": {"category": ["#4c9be8", "#f08c2e", "#3fae6a", "#d95f77", "#9a7fd1", "#b58a3c", "#5fb7c4", "#8a8f98"]},
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": width,
        "height": height,
        "config": config,
    }


def _below(title: str | None) -> Spec:
    return {"orient": "bottom", "title": title}


def _every(count: int, title: str) -> Spec:
    """An axis of so many boxes, of which few enough are named to be read."""
    step = max(1, count // 16)
    return {
        "title": title,
        "labelAngle": 0,
        "labelExpr": f"datum.index * {count} % {step} < 1 ? datum.label : ''" if step > 1 else "datum.label",
    }
