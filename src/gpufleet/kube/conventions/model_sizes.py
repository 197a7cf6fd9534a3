"""How much GPU memory a language model needs, by what its name says.

Names give the number of parameters (`Llama-3.1-8B`, `Qwen2.5-1.5B`, `Mixtral-8x7B`), and the precision
where it is not 16 bit (`AWQ`, `GPTQ`, `fp8`, `int4`). To serve a model takes its weights, a fifth of them for
activations and a small cache, and 2 GiB for the engine. It is an estimate that decides between sizes which
lie a factor of two apart, and no more.
Source: model cards; vLLM's and TGI's memory profiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

_PARAMETERS = re.compile(r"(?<![0-9a-z.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,2})?)b(?![a-z0-9])")
_BITS = (
    (4, ("int4", "4bit", "4-bit", "awq", "gptq", "nf4", "fp4", "q4", "w4a16")),
    (8, ("int8", "8bit", "8-bit", "fp8", "w8a8", "bitsandbytes", "q8")),
)
_ENGINE_MIB = 2048


def model_memory_mib(name: str, options: Iterable[str] = ()) -> int | None:
    """The memory to serve a model, in MiB; None for a name without a number of parameters. `options` are
    words that may name a precision as well.
    """
    text = name.lower()
    found = _PARAMETERS.search(text.rpartition("/")[2]) or _PARAMETERS.search(text)
    if found is None:
        return None
    experts, billions = found.groups()
    number = Fraction(billions) * int(experts or 1)
    said = " ".join((text, *options)).lower()
    bits = next((width for width, marks in _BITS if any(mark in said for mark in marks)), 16)
    weights_mib = number * 1_000_000_000 * bits / 8 / 2**20
    return int(weights_mib * 6 / 5) + _ENGINE_MIB
