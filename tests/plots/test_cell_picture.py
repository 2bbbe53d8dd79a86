"""The pictures of cells: legible whatever the cell, honest about what is not built, always the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import combinations
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ssfnas_cli.artifacts.genotype import Cell, Edge, Genotype
from ssfnas_cli.plots import cell_picture, figure
from ssfnas_cli.plots.cell_layout import Box, Layout, Wire, layout
from ssfnas_cli.plots.cell_picture import CELLS, FORMATS, draw, render

OPS = (
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
)
EPS = 1e-6


def cell(*edges: tuple[str, int, int], concat: tuple[int, ...] = (2, 3, 4, 5)) -> Cell:
    """A cell from (op, from, to) triples."""
    return Cell(edges=tuple(Edge(op=op, source=a, target=b) for op, a, b in edges), concat=concat)


def random_cell(seed: int) -> Cell:
    """Any number of nodes and edges, dead and unused ones among them."""
    draw_one = random.Random(seed)
    last = draw_one.randint(3, 9)
    edges = [("sep_conv_3x3", 0, 2)]
    for _ in range(draw_one.randint(0, 3 * last)):
        target = draw_one.randint(2, last)
        edges.append((draw_one.choice([*OPS, "none", "conv_7x1_1x7"]), draw_one.randrange(target), target))
    concat = [node for node in range(2, last + 1) if draw_one.random() < 0.6]
    return cell(*edges, concat=tuple({2, *concat}))


DARTS_V2 = cell(
    *[("sep_conv_3x3", source, target) for target in (2, 3) for source in (0, 1)],
    *[("sep_conv_3x3", 1, 4), ("skip_connect", 0, 4), ("skip_connect", 0, 5), ("dil_conv_3x3", 2, 5)],
)
SHARED = {
    "darts_v2": DARTS_V2,
    "nasnet_reduce": cell(
        *[("sep_conv_5x5", 1, 2), ("sep_conv_7x7", 0, 2), ("max_pool_3x3", 1, 3), ("sep_conv_7x7", 0, 3)],
        *[("avg_pool_3x3", 1, 4), ("sep_conv_5x5", 0, 4), ("skip_connect", 3, 5), ("avg_pool_3x3", 2, 5)],
        *[("sep_conv_3x3", 2, 6), ("max_pool_3x3", 1, 6)],
        concat=(4, 5, 6),
    ),
    "dense": cell(*[(OPS[(3 * a + 5 * b + k) % 7], a, b) for b in range(2, 6) for a in range(b) for k in range(2)]),
    "chain": cell(*[("sep_conv_5x5", node - 1, node) for node in range(2, 12)], concat=(11,)),
    "one_edge": cell(("skip_connect", 1, 2)),
    "dead": cell(
        *[("sep_conv_3x3", 0, 2), ("max_pool_3x3", 3, 4), ("skip_connect", 2, 4), ("skip_connect", 4, 6)],
        *[("none", 0, 3), ("dil_conv_5x5", 7, 8), ("dil_conv_5x5", 3, 5), ("sep_conv_5x5", 3, 8)],
        concat=(2, 4, 5, 8),
    ),
    "same_op_twice": cell(("sep_conv_3x3", 0, 2), ("sep_conv_3x3", 0, 2), ("skip_connect", 0, 2)),
}
ALL = {**SHARED, **{f"random_{seed}": random_cell(seed) for seed in range(15)}}
on_every_cell = pytest.mark.parametrize("name", list(ALL))


@pytest.fixture(scope="module")
def genotype() -> Genotype:
    return Genotype(name="mine", normal=SHARED["dense"], reduce=SHARED["dead"])


@cache
def picture_of(name: str) -> Layout:
    return layout(ALL[name])


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two (left, top, right, bottom) share more than a border."""
    across = min(a[2], b[2]) - max(a[0], b[0])
    return across > EPS and min(a[3], b[3]) - max(a[1], b[1]) > EPS


def extent(box: Box) -> tuple[float, float, float, float]:
    half_width, half_height = box.width / 2, box.height / 2
    return box.x - half_width, box.y - half_height, box.x + half_width, box.y + half_height


def along(wire: Wire, count: int = 30) -> list[tuple[float, float]]:
    """Points of a wire's Bezier curve."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = wire.control_points()
    points = []
    for t in (index / count for index in range(count + 1)):
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
        points.append((a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3))
    return points


def near(point: tuple[float, float]) -> tuple[float, float]:
    """A point as a key, without its rounding errors (the offset: round numbers are common here)."""
    return round(point[0] + 1.234e-5, 4), round(point[1] + 1.234e-5, 4)


@on_every_cell
def test_no_box_overlaps_another_and_all_are_inside_the_picture(name: str) -> None:
    picture = picture_of(name)
    for a, b in combinations(picture.boxes, 2):
        assert not overlap(extent(a), extent(b)), f"{a} and {b}"
    for box in picture.boxes:
        left, top, right, bottom = extent(box)
        assert left >= 0 and top >= 0 and right <= picture.width and bottom <= picture.height, box


@on_every_cell
def test_no_wire_runs_through_a_box(name: str) -> None:
    picture = picture_of(name)
    for wire in picture.wires:
        points = along(wire)
        for box in picture.boxes:
            tagged = box.kind == "tag" and wire.start[1] == wire.end[1] == box.y  # its own wire
            left, top, right, bottom = extent(box)
            inside = [(x, y) for x, y in points if left + EPS < x < right - EPS and top + EPS < y < bottom - EPS]
            assert tagged or not inside, f"{wire} through {box}"


@on_every_cell
def test_each_text_fits_its_box_and_is_no_smaller_than_8_points(name: str) -> None:
    picture = picture_of(name)
    figure = draw("", {"normal": ALL[name]})
    renderer = FigureCanvasAgg(figure).get_renderer()
    lines = [(box, line) for box in picture.boxes for line in box.text.split("\n")]
    drawn = figure.texts[2 : 2 + len(lines)]  # after the titles and before the caption
    assert [text.get_text() for text in drawn] == [line for _, line in lines]
    extents = []
    for text, (box, _) in zip(drawn, lines, strict=True):
        found = text.get_window_extent(renderer)
        left, right = found.x0 / figure.dpi, found.x1 / figure.dpi
        top, bottom = ((figure.bbox.height - y) / figure.dpi - cell_picture.TITLE_HEIGHT for y in (found.y1, found.y0))
        extents.append((left, top, right, bottom))
        around = extent(box)
        assert around[0] <= left + 0.02 and right <= around[2] + 0.02, f"{text} is wider than {box}"
        assert around[1] <= top + 0.03 and bottom <= around[3] + 0.03, f"{text} is higher than {box}"
        assert text.get_fontsize() >= 8
    assert not [pair for pair in combinations(extents, 2) if overlap(*pair)]


@on_every_cell
def test_every_op_is_joined_to_its_source_and_its_node(name: str) -> None:
    picture, edges = picture_of(name), [edge for edge in ALL[name].edges if edge.op != "none"]
    ops = [box for box in picture.boxes if box.kind == "op"]
    assert Counter(box.edge for box in ops) == Counter(edges)
    nodes = {box.text.split("\n")[0]: extent(box) for box in picture.boxes if box.kind in ("input", "node")}
    into = {(near(wire.end), wire.source): wire.start for wire in picture.wires if wire.kind == "edge"}
    arrows = {near(wire.start): wire.end for wire in picture.wires if wire.kind == "arrow"}
    for box in ops:
        assert box.edge is not None
        left, _, right, _ = extent(box)
        x, y = arrows[near((right, box.y))]
        target = nodes[str(box.edge.target)]
        assert x == pytest.approx(target[0]) and target[1] < y < target[3]
        x, y = left, box.y
        while (near((x, y)), box.edge.source) in into:
            x, y = into[near((x, y)), box.edge.source]
        source = nodes[str(box.edge.source)]
        assert x == pytest.approx(source[2]) and source[1] < y < source[3], f"{box.edge} dangles"


@on_every_cell
def test_the_concatenated_live_nodes_and_no_others_lead_to_the_output(name: str) -> None:
    picture = picture_of(name)
    nodes = {int(box.text): extent(box) for box in picture.boxes if box.kind == "node"}
    (output,) = (extent(box) for box in picture.boxes if box.kind == "output")
    onwards = {near(wire.start): wire.end for wire in picture.wires if wire.kind in ("concat", "output")}
    reached = set()
    for node, (_, top, right, bottom) in nodes.items():
        for x, y in [start for start in onwards if near((right, 0))[0] == start[0] and top < start[1] < bottom]:
            while near((x, y)) in onwards:
                x, y = onwards[near((x, y))]
            assert x == pytest.approx(output[0]) and output[1] < y < output[3]
            reached.add(node)
    assert reached == set(ALL[name].pruned().concat)


def states(drawn: Cell) -> dict[str, str]:
    boxes = layout(drawn).boxes
    return {box.text.split("\n")[0]: box.state for box in boxes if box.kind in ("input", "node")}


def test_nodes_without_input_and_nodes_without_way_out_are_told_apart() -> None:
    assert states(SHARED["dead"]) == {
        **{"0": "live", "1": "unused", "2": "live", "4": "live", "6": "unused"},
        **{"3": "dead", "5": "dead", "7": "dead", "8": "dead"},
    }
    assert states(DARTS_V2) == dict.fromkeys("012345", "live")


def test_edges_from_dead_nodes_are_dead_and_those_to_unused_nodes_unused() -> None:
    ops = {box.edge: box.state for box in layout(SHARED["dead"]).boxes if box.kind == "op"}
    for edge, state in ops.items():
        assert edge is not None
        expected = "dead" if edge.source in (3, 7) else "unused" if edge.target == 6 else "live"
        assert state == expected, edge


@on_every_cell
def test_a_caption_below_says_what_the_inputs_are_and_how_cells_stack(name: str) -> None:
    figure = draw("", {"normal": ALL[name]})
    renderer = FigureCanvasAgg(figure).get_renderer()
    titles_and_boxes = 2 + sum(len(box.text.split("\n")) for box in picture_of(name).boxes)
    above, caption = figure.texts[:titles_and_boxes], figure.texts[titles_and_boxes:]
    text = " ".join(line.get_text() for line in caption)
    assert text == " ".join(cell_picture.CAPTION) and "two cells before" in text and "a stack of normal cells" in text
    lowest = min(line.get_window_extent(renderer).y0 for line in above if line.get_text())
    for line in caption:
        found = line.get_window_extent(renderer)
        assert found.y1 <= lowest + 1 and found.y0 >= 0, f"'{line.get_text()}' is not below all else"
        assert found.x0 >= 0 and found.x1 <= figure.bbox.width, f"'{line.get_text()}' leaves the picture"
        lowest = found.y0 + 2


def svg_texts(data: bytes) -> Counter[str]:
    return Counter(node.text or "" for node in ElementTree.fromstring(data).iter("{http://www.w3.org/2000/svg}text"))


def test_dead_and_unused_nodes_are_dashed_and_captioned_in_the_picture() -> None:
    whole = Genotype(normal=DARTS_V2, reduce=SHARED["dead"])
    good, bad = (render(whole, [kind], "svg") for kind in CELLS)
    assert svg_texts(bad)["no input"] == 4 and svg_texts(bad)["unused"] == 2
    assert not {"no input", "unused"} & set(svg_texts(good))
    # Six nodes, four dead ops and an unused one have dashed outlines; wires from nodes 3, 4 and 7 are dashed.
    assert len(re.findall(r"fill: #ffffff; stroke-dasharray", bad.decode())) == 6 + 5
    assert len(re.findall(r"fill: none; stroke-dasharray", bad.decode())) == 3
    assert b"stroke-dasharray" not in good


@pytest.mark.parametrize("name", list(SHARED))
def test_svg_is_well_formed_and_holds_every_op_as_text(name: str) -> None:
    whole = Genotype(normal=DARTS_V2, reduce=SHARED[name])
    texts = svg_texts(render(whole, CELLS, "svg"))
    expected = Counter(edge.op for kind in whole.cells().values() for edge in kind.edges if edge.op != "none")
    assert {op: texts[op] for op in expected} == dict(expected)
    assert texts["Normal cell"] == texts["Reduction cell"] == 1


def test_only_the_asked_cell_is_drawn(genotype: Genotype) -> None:
    normal, both = (svg_texts(render(genotype, cells, "svg")) for cells in (["normal"], ["reduce", "normal"]))
    assert "Reduction cell" not in normal and normal["Normal cell"] == 1
    assert both == svg_texts(render(genotype, CELLS, "svg"))


def test_png_is_a_png_with_ink_and_colour_on_white(genotype: Genotype) -> None:
    data = render(genotype, CELLS, "png")
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(data)) as image:
        assert not image.info.get("Software")
        pixels = image.convert("RGB")
    counts = {colour: count for count, colour in pixels.getcolors(1 << 24)}
    total = pixels.width * pixels.height
    assert 0.5 < counts[255, 255, 255] / total < 0.95
    assert len([colour for colour, count in counts.items() if count > total / 2000]) >= 6  # tints, ink, grey


def test_a_huge_png_is_rendered_at_lower_resolution(genotype: Genotype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "MAX_PNG_PIXELS", 100_000)
    with Image.open(io.BytesIO(render(genotype, CELLS, "png"))) as image:
        assert 50_000 < image.width * image.height <= 101_000


def test_dot_has_every_edge_in_a_cluster_per_cell(genotype: Genotype) -> None:
    text = render(genotype, CELLS, "dot").decode()
    assert text.startswith("digraph ") and text.count("{") - text.count("c_{k") == text.count("}") - text.count("c_{k")
    assert re.findall(r"subgraph (cluster_\w+)", text) == ["cluster_normal", "cluster_reduce"]
    found = re.findall(r'^ +(\w+)_(\d+) -> \1_(\d+) \[label="(\w+)", (.*)\];$', text, re.MULTILINE)
    expected = [
        (kind, edge.source, edge.target, edge.op, edge in drawn.pruned().dead_edges)
        for kind, drawn in genotype.cells().items()
        for edge in drawn.edges
        if edge.op != "none"
    ]
    assert Counter((kind, int(a), int(b), op) for kind, a, b, op, _ in found) == Counter(e[:4] for e in expected)
    dashed = {(kind, int(a), int(b), op) for kind, a, b, op, looks in found if "dashed" in looks}
    assert {edge[:4] for edge in expected if edge[4]} <= dashed
    concat = re.findall(r"(\w+)_(\d+) -> \1_out", text)
    assert concat == [(kind, str(n)) for kind, drawn in genotype.cells().items() for n in drawn.pruned().concat]
    assert 'label="c_{k-2} and c_{k-1} are the outputs of the two cells before this one' in text
    declared = set(re.findall(r"^ +(\w+_\w+) \[label", text, re.MULTILINE))
    assert {end for pair in re.findall(r"(\w+) -> (\w+)", text) for end in pair} <= declared
    assert 'reduce_3 [label="3 (no input)", style="rounded,dashed"' in text


def test_a_hostile_name_breaks_neither_xml_nor_dot() -> None:
    name = 'a\x00<&>"\\ $x_2$ \ud800\n' + "long " * 50
    whole = Genotype(name=name, normal=DARTS_V2, reduce=DARTS_V2)
    (title,) = [text for text in svg_texts(render(whole, ["normal"], "svg")) if text.startswith("a<&>")]
    assert "$x_2$" in title and len(title) <= 60
    label = re.search(r'label="((?:[^"\\]|\\.)*)";', render(whole, ["normal"], "dot").decode())
    assert label and r"\"\\ $x_2$" in label.group(1)


RENDER_ALL = """
import hashlib, sys
from ssfnas_cli.artifacts.genotype import parse_genotype
from ssfnas_cli.plots.cell_picture import CELLS, FORMATS, render
genotype = parse_genotype(sys.stdin.buffer.read(), "stdin")
for fmt in FORMATS:
    print(hashlib.sha256(render(genotype, CELLS, fmt)).hexdigest())
print("torch" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""


def test_bytes_depend_on_the_genotype_alone(genotype: Genotype, tmp_path) -> None:
    """Not on the call, the process, hash seeds, the clock or the user's matplotlibrc; no pyplot, no torch."""
    settings = tmp_path / "matplotlibrc"
    settings.write_text("font.size: 30\nsavefig.bbox: tight\nsvg.fonttype: path\nlines.linewidth: 9\nbackend: tkagg\n")
    env = {**os.environ, "MATPLOTLIBRC": str(settings), "PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "99"}
    command = [sys.executable, "-c", RENDER_ALL]
    run = subprocess.run(command, input=genotype.to_json(), env=env, capture_output=True, check=True, timeout=120)
    files = {fmt: render(genotype, CELLS, fmt) for fmt in FORMATS}
    here = [hashlib.sha256(data).hexdigest() for data in files.values()]
    assert run.stdout.decode().split() == [*here, "False", "False"]
    assert files["svg"] == render(genotype, CELLS, "svg")
    assert files["pdf"].startswith(b"%PDF-") and files["pdf"].rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize("fmt", ["svg", "dot"])
def test_different_genotypes_give_different_bytes(genotype: Genotype, fmt: str) -> None:
    other = genotype.model_copy(update={"normal": DARTS_V2})
    assert render(genotype, ["normal"], fmt) != render(other, ["normal"], fmt)


def test_the_users_matplotlib_settings_are_left_alone(genotype: Genotype) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render(genotype, ["normal"], "svg")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("cells", "fmt", "message"),
    [
        (["normal"], "gif", r"unknown picture format 'gif'. Available: svg, png, pdf, dot"),
        (["normal", "reduction"], "svg", r"unknown cell 'reduction'. Available: normal, reduce"),
        ([], "svg", r"no cell to draw. Available: normal, reduce"),
    ],
)
def test_an_unknown_format_or_cell_is_refused(genotype: Genotype, cells: list[str], fmt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(genotype, cells, fmt)
