"""Random rows of each kind that a real chat template can say, and the messages that transformers is given for them."""

import json
import random
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

# Which marks a turn may carry, with the value for learned and for not learned.
MASKS: dict[str, tuple[Any, Any]] = {
    "train": (True, False),
    "training": (True, False),
    "trainable": (True, False),
    "loss": (True, False),
    "loss_mask": (1, 0),
    "masked": (False, True),
    "weight": (1, 0),
}
_WORDS = [
    "The mill is by the weir.",
    "nine metres",
    "Where is the well?",
    "東京は晴れです。",
    "그렇습니다",
    "Größe: 3½ m",
    "🙂👩🏽\u200d🚀 ok",
    "été naïve",
    "ẛ̣ and ﬁ",
    "مرحبا بالعالم",
    "if (a < b) { return a; }",
    "12,345.678",
    "don't won't",
    "a\tb",
    "\xa0nbsp\xa0",
    "x  =  y",
    "line one\nline two",
    "para one\n\npara two",
    "\u200bzero width",
    "'quoted' \"twice\"",
    '{"port": "Oban", "ok": true}',
    "[1, 2.50, null]",
    "<b>bold</b>",
    "# Title\n- item\n- item",
    "$100 & 50%",
    "\\n is not a newline",
    "end.\r\nnext",
    "ñ̃",
    "1) a\n2) b",
    "𝔘𝔫𝔦",
    "%s {0} {{x}}",
]
_EDGES = ("", "", "", "", " ", "  ", "\n", "\n\n", " \n", "\t")
_PORTS = ("Oban", "Port Ellen", "Łódź", "東京", 'a "b" c', "x\ny", "")


@dataclass(frozen=True)
class Speech:
    """What a template writes. What it leaves out is not generated: strop has to refuse that, which other tests check.

    Attributes:
        calls: Calls that one turn may hold; 0 where the template writes none.
        beside: Whether a turn's content is written beside its calls.
        reasoning: Whether a turn may carry reasoning in a field of its own.
        inline: Whether reasoning may stand in the content, in `<think>` tags.
        tools: Whether tools are written; `always` where the template fails without.
    """

    tools: str = ""
    calls: int = 0
    beside: bool = False
    reasoning: bool = False
    inline: bool = False
    documents: bool = False
    system: bool = True


_QWEN3 = Speech("yes", 3, beside=True, reasoning=True, inline=True)
_PLAIN = Speech()
SPEECH: dict[str, Speech] = {
    "qwen3": _QWEN3,
    "qwen3-2025-04": _QWEN3,
    "qwen3-thinking-2507": _QWEN3,
    "qwq": _QWEN3,
    "qwen3-instruct-2507": Speech("yes", 3, beside=True),
    "qwen2.5": Speech("yes", 3, beside=True),
    "llama3.1": Speech("yes", 1),
    "llama3.2": Speech("yes", 1),
    "mistral-v0.3": Speech("yes", 3),
    "hermes-3": Speech("yes", 3),
    "gpt-oss": Speech("yes", 1, beside=True, reasoning=True),
    "r1-distill": Speech(reasoning=True, inline=True),
    "smollm3": Speech("yes", inline=True),
    "granite-3.3": Speech("yes", documents=True),
}


def rows(name: str, seed: int, count: int) -> list[Row]:
    """Rows as files have them: `messages`, and `tools` or `documents` where the template writes them."""
    speech = SPEECH.get(name, _PLAIN)
    return [_Writer(speech, random.Random(f"{name}:{seed}:{number}")).row() for number in range(count)]


class _Writer:
    def __init__(self, speech: Speech, chance: random.Random) -> None:
        self.speech, self.chance, self.called = speech, chance, 0

    def row(self) -> Row:
        turns: list[Row] = []
        if self.speech.system and self._is(0.5):
            rule = f" Rule {self.chance.randrange(10**6)}: {self._text()}"  # no other turn says it
            turns.append({"role": "system", "content": self.chance.choice(("", rule, rule))})
        declares = bool(self.speech.tools) and self._is(0.6)
        for _ in range(self.chance.choice((1, 1, 2, 3))):
            turns += self._exchange(declares)
        self._mark(turns)
        self._reshape(turns)
        row: Row = {"messages": turns}
        if declares:
            row["tools"] = [self._tool(number) for number in range(self.chance.randint(1, 3))]
        if self.speech.documents and self._is(0.4):
            row["documents"] = [{"doc_id": n, "title": f"T{n}", "text": self._text()} for n in range(1, 3)]
        return row

    def _exchange(self, declares: bool) -> list[Row]:
        turns: list[Row] = [{"role": "user", "content": self._text()}]
        if declares and self.speech.calls:
            for _ in range(self.chance.choice((0, 1, 1, 2))):
                turns += self._calls()
        return [*turns, self._reasoned({"role": "assistant", "content": self._text()})]

    def _calls(self) -> list[Row]:
        calls = [self._call() for _ in range(self.chance.randint(1, self.speech.calls))]
        turn: Row = {"role": "assistant", "content": None, "tool_calls": calls}
        # gpt-oss writes content beside a call as reasoning, and drops it once an answer follows: strop refuses that.
        if self.speech.beside and self.speech.calls > 1 and self._is(0.4):
            turn["content"] = self._text()
        results = [{"role": "tool", "tool_call_id": call["id"], "content": self._text()} for call in calls]
        return [self._reasoned(turn), *results]

    def _call(self) -> Row:
        self.called += 1
        arguments: Row = {"port": self.chance.choice(_PORTS), "depth": self.chance.choice((3, 2.5, -1, None, True))}
        if self._is(0.3):
            arguments["near"] = [{"name": self._text(), "ids": [1, 2]}]
        written = json.dumps(arguments, ensure_ascii=False) if self._is(0.6) else arguments
        function = {"name": f"tide_{self.called % 3}", "arguments": written}
        return {"id": f"call{self.called:05d}", "type": "function", "function": function}

    def _reasoned(self, turn: Row) -> Row:
        kinds = [""] + ["field"] * self.speech.reasoning + ["inline"] * (self.speech.inline and bool(turn["content"]))
        match self.chance.choice(kinds):
            case "field":
                turn["reasoning_content" if self._is(0.7) else "thinking"] = self._text(edges=False)
            case "inline":
                turn["content"] = f"<think>\n{self._text(edges=False)}\n</think>\n\n{self._text().lstrip(chr(10))}"
        return turn

    def _mark(self, turns: list[Row]) -> None:
        answers = [turn for turn in turns if turn["role"] == "assistant"]
        if len(answers) < 2 or self._is(0.5):
            return
        key = self.chance.choice(list(MASKS))
        learned, skipped = MASKS[key]
        kept = self.chance.randrange(len(answers))
        for number, turn in enumerate(answers):
            if number == kept or self._is(0.5):
                if self._is(0.5):
                    turn[key] = learned
            else:
                turn[key] = skipped

    def _reshape(self, turns: list[Row]) -> None:
        """Other ways to write the same: content as parts, and the nulls that Parquet's structs carry."""
        if self._is(0.15):
            for turn in turns:
                if turn["content"]:
                    turn["content"] = [{"type": "text", "text": turn["content"]}]
        if self._is(0.2):
            for turn in turns:
                for key in ("tool_calls", "tool_call_id", "name", "reasoning_content", "weight"):
                    turn.setdefault(key, None)

    def _tool(self, number: int) -> Row:
        text = {"type": "string", "description": self._text(edges=False).replace("\n", " ")}
        near = {"type": "array", "description": "Names.", "items": {"type": "string"}}
        properties = {"port": text, "depth": {"type": "number", "description": "In metres."}, "near": near}
        parameters = {"type": "object", "properties": properties, "required": ["port"]}
        function = {"name": f"tide_{number}", "description": "Tide level at a port — é.", "parameters": parameters}
        return {"type": "function", "function": function}

    def _text(self, edges: bool = True) -> str:
        inner = " ".join(self.chance.choice(_WORDS) for _ in range(self.chance.randint(1, 4))).strip()
        return self.chance.choice(_EDGES) + inner + self.chance.choice(_EDGES) if edges else inner

    def _is(self, share: float) -> bool:
        return self.chance.random() < share


def is_learned(turn: Row) -> bool:
    """Whether an assistant turn is to be learned, by its marks."""
    return turn["role"] == "assistant" and all(turn.get(key) in (None, yes) for key, (yes, _) in MASKS.items())


def native(row: Row) -> list[Row]:
    """The row's messages as transformers' documentation wants them: text content, arguments as objects, no nulls."""
    return [_native_turn(turn) for turn in row["messages"]]


def _native_turn(turn: Row) -> Row:
    plain = {key: value for key, value in turn.items() if key not in MASKS and value is not None}
    content = plain.get("content", "")
    plain["content"] = "".join(part["text"] for part in content) if isinstance(content, list) else content
    if "tool_calls" in plain:
        plain["tool_calls"] = [_native_call(call) for call in plain["tool_calls"]]
    return plain


def _native_call(call: Row) -> Row:
    arguments = call["function"]["arguments"]
    known = json.loads(arguments) if isinstance(arguments, str) else arguments
    return call | {"function": call["function"] | {"arguments": known}}
