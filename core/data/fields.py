"""Interlaced clips: two half pictures a frame, of two moments, become one whole picture."""

from collections import deque
from collections.abc import Iterable, Iterator

from av.error import BlockingIOError as NotYetError
from av.error import EOFError as EndError
from av.filter import Graph
from av.video.frame import VideoFrame

from .media import decoding

_FILTER = "bwdif"  # Bob Weaver: it looks at the frames before and after
_SETTINGS = "mode=send_frame:parity=auto:deint=interlaced"  # as many frames as before; others pass as they are


def deinterlaced(frames: Iterable[tuple[int, VideoFrame]]) -> Iterator[tuple[int, VideoFrame]]:
    """Numbered frames without their combs. Takes one frame more than it gives, and one before the first is of use."""
    graphs: list[Graph] = []  # one, as soon as the size is known
    waiting: deque[int] = deque()
    for index, frame in frames:
        with decoding("clip"):
            if not graphs:
                graphs.append(_graph(frame))
            graphs[0].vpush(frame)
        waiting.append(index)
        yield from _finished(graphs[0], waiting)
    for graph in graphs:
        with decoding("clip"):
            graph.vpush(None)
        yield from _finished(graph, waiting)


def _graph(frame: VideoFrame) -> Graph:
    graph = Graph()
    with decoding("clip"):
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        bob = graph.add(_FILTER, _SETTINGS)
        sink = graph.add("buffersink")
        source.link_to(bob)
        bob.link_to(sink)
        graph.configure()
    return graph


def _finished(graph: Graph, waiting: deque[int]) -> Iterator[tuple[int, VideoFrame]]:
    """What the filter has done; it gives one frame for each, in order."""
    while waiting:
        with decoding("clip"):
            try:
                frame = graph.vpull()
            except (NotYetError, EndError):
                return
        yield waiting.popleft(), frame
