from xml.etree import ElementTree

from wan_train.tests.tools.nano.small import row
from wan_train.tools.nano.plot import plot


def test_the_plot_places_what_it_shows():
    rows = [row(learnt="1", kept="0", setting="a<b=1"), row(learnt="0", kept="1", kept_base="1", setting="c=2")]
    root = ElementTree.fromstring(plot(rows))
    texts = ["".join(node.itertext()) for node in root.iter() if node.tag.endswith("text")]
    assert {"star", "a<b=1", "c=2", "never"} <= set(texts)
    circles = [node for node in root.iter() if node.tag.endswith("circle") and node.get("r") == "5"]
    legend, marks = circles[:2], [(float(node.get("cx")), float(node.get("cy"))) for node in circles[2:]]
    assert len(legend) == 2
    (kept_a, learnt_a), (kept_c, learnt_c) = marks[:2], marks[2:]
    assert kept_a[0] == learnt_c[0] < learnt_a[0] == kept_c[0]
    assert kept_a[1] == learnt_a[1] < learnt_c[1]
    width, height = float(root.get("width")), float(root.get("height"))
    assert all(0 <= float(node.get("x")) < width and 0 < float(node.get("y")) <= height
               for node in root.iter() if node.tag.endswith("text"))  # fmt: skip
