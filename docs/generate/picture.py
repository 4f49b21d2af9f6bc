"""One drawing of a transformer for every method: what learns is filled, what stays as it is has an outline only."""

from __future__ import annotations

from html import escape

LINEARS = ("q", "k", "v", "o", "up", "down")
NORMS = ("norm1", "norm2")
BODY = ("embedding", "attention", *LINEARS, *NORMS)
BOXES = {
    "head": (130, 8, 100, 28, "head"),
    "down": (186, 96, 64, 26, "down"),
    "up": (110, 96, 64, 26, "up"),
    "norm2": (130, 134, 100, 22, "norm"),
    "o": (130, 216, 100, 24, "output"),
    "attention": (110, 250, 140, 26, "attention"),
    "q": (100, 288, 48, 26, "q"),
    "k": (156, 288, 48, 26, "k"),
    "v": (212, 288, 48, 26, "v"),
    "norm1": (130, 326, 100, 22, "norm"),
    "embedding": (110, 378, 140, 28, "embedding"),
}
"""x, y, width, height and word of each part; one layer stands for all."""

SAID = {
    "full": "Everything learns.",
    "partial": "The last layers and the head learn; the layers below stay as they are.",
    "bitfit": "Only the bias beside each linear layer and norm learns, and the head.",
    "layernorm-tuning": "Only the norms learn, and the head.",
    "lora": "A pair of small matrices beside each linear layer learns, and the head.",
    "ia3": "One factor for each key, value and inner feed-forward activation learns, and the head.",
    "prompt-tuning": "Vectors before the embedded tokens learn, and the head.",
    "p-tuning": "A small network that makes the vectors before the embedded tokens learns, and the head.",
    "prefix-tuning": "A small network that makes keys and values in front of each attention learns, and the head.",
    "p-tuning-v2": "Keys and values in front of each attention learn, and the head.",
    "bottleneck-adapter": "A small network after the feed-forward part learns, with Houlsby's variant after attention too, and the head.",
    "adapter-fusion": "An attention over several finished adapters learns, and the head.",
    "peft": "What the PEFT configuration puts beside the linear layers learns, and the head.",
}


def picture(slug: str) -> str:
    """The drawing of one method as inline SVG, in the colours of the page."""
    learns = {"head", *BODY} if slug == "full" else {"head", *BODY} - {"embedding"} if slug == "partial" else {"head"}
    learns |= set(NORMS) if slug == "layernorm-tuning" else set()
    parts = [
        _frame(slug),
        *(_box(*place, on=name in learns) for name, place in BOXES.items()),
        *_ADDED.get(slug, list)(),
    ]
    said = SAID[slug]
    inside = "".join(parts)
    return (
        f'<figure class="method-picture"><svg viewBox="0 0 360 440" role="img" aria-label="{escape(said, quote=True)}">{inside}</svg>'
        f"<figcaption>{escape(said)} Filled: learns. Outlined: stays as it is.</figcaption></figure>\n"
    )


def _box(x: int, y: int, width: int, height: int, word: str, on: bool = False, dashed: bool = False) -> str:
    kind = "on" if on else "off"
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    middle = f'x="{x + width / 2:g}" y="{y + height / 2 + 4.5:g}"'
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="5"{dash}/>'
        f'<text class="{kind}" {middle}>{escape(word)}</text>'
    )


def _word(x: int, y: int, word: str, anchor: str = "start") -> str:
    return f'<text class="note" x="{x}" y="{y}" style="text-anchor:{anchor}">{escape(word)}</text>'


def _line(*points: int) -> str:
    return f'<polyline class="flow" points="{" ".join(map(str, points))}"/>'


def _frame(slug: str) -> str:
    """The layer's frame, the residual stream, and the tokens that come in."""
    stack = "".join(
        f'<rect class="frame" x="{62 - d}" y="{52 - d}" width="236" height="306" rx="8"/>' for d in (8, 4, 0)
    )
    flow = _line(180, 424, 180, 406) + _line(180, 378, 180, 358) + _line(180, 52, 180, 36)
    stream = _line(180, 352, 82, 352, 82, 70, 172, 70) + _line(82, 176, 172, 176)
    joins = "".join(
        f'<circle class="off" cx="180" cy="{y}" r="8"/><text class="off" x="180" y="{y + 5}">+</text>'
        for y in (70, 176)
    )
    words = _word(292, 346, "layer", "end") + _word(180, 436, "tokens", "middle")
    if slug == "partial":
        words += _word(306, 70, "the last") + _word(306, 86, "layers")
    return stack + flow + stream + joins + words


def _beside(word: str, names: tuple[str, ...]) -> list[str]:
    """A small learnt box at the lower right corner of each of these parts."""
    made = []
    for name in names:
        x, y, width, height, _ = BOXES[name]
        wide = 11 * len(word) + 4
        made.append(_box(x + width - wide // 2, y + height - 8, wide, 17, word, on=True))
    return made


def _tokens(y: int, learnt: int, real: int) -> list[str]:
    words = ["p"] * learnt + ["t"] * real
    left = 180 - 15 * len(words)
    return [_box(left + 30 * i, y, 26, 22, w, on=w == "p") for i, w in enumerate(words)]


def _prompts(network: bool) -> list[str]:
    made = [_box(8, 381, 30, 22, "p", on=True), _box(42, 381, 30, 22, "p", on=True), _line(72, 392, 110, 392)]
    return [*made, _box(8, 414, 64, 22, "network", on=True), _line(40, 414, 40, 403)] if network else made


def _prefix(network: bool) -> list[str]:
    made = [_box(4, 242, 54, 20, "keys", on=True), _box(4, 266, 54, 20, "values", on=True), _line(58, 264, 110, 264)]
    return [*made, _box(6, 306, 64, 22, "network", on=True), _line(29, 306, 29, 286)] if network else made


def _adapters() -> list[str]:
    return [
        _box(262, 84, 86, 24, "adapter", on=True), _line(250, 108, 262, 100), _line(300, 84, 300, 70, 188, 70),
        _box(262, 190, 86, 24, "Houlsby", on=False, dashed=True), _line(230, 222, 262, 206), _line(300, 190, 300, 176, 188, 176),
    ]  # fmt: skip


def _fusion() -> list[str]:
    three = [_box(262, 96 + 26 * i, 86, 22, f"adapter {i + 1}") for i in range(3)]
    return [*three, _box(262, 66, 86, 24, "fusion", on=True), _line(250, 116, 262, 116), _line(262, 74, 188, 70)]


_ADDED = {
    "lora": lambda: _beside("BA", LINEARS),
    "peft": lambda: _beside("?", LINEARS),
    "bitfit": lambda: _beside("b", (*LINEARS, *NORMS)),
    "ia3": lambda: _beside("\N{MULTIPLICATION SIGN}", ("k", "v", "up")),
    "prompt-tuning": lambda: _prompts(network=False),
    "p-tuning": lambda: _prompts(network=True),
    "prefix-tuning": lambda: _prefix(network=True),
    "p-tuning-v2": lambda: _prefix(network=False),
    "bottleneck-adapter": _adapters,
    "adapter-fusion": _fusion,
}
