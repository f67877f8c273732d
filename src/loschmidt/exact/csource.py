"""C source of a pass: the innermost loop is printed from its instructions; the walk around it is always the same.

Arithmetic is float64 on whole numbers, because neither int64 division nor its conversion to float64 is a vector
instruction on most processors. What makes it exact:

    near    |x| < 2**51: the bits of 2**52 + 2**51, plus x, are those of the float64 2**52 + 2**51 + x
    split   any int64: x = H 2**s + W with 0 <= W < 2**s, H and W exact in float64
    floor   floor(z / d) = floor((z + 1/2) (1/d)) for whole |z| < 2**51: (z + 1/2)/d is 1/(2d) away from whole
            numbers, and so is farther than the error; with a fused multiply-add that is two instructions
    range   updates that would lead out of it are left out, so that undoing is exact where a pass is then refused
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .trace import Instruction

_C = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bf16"}
_INT = {torch.int64: "i64", torch.int32: "i32"}

_PRELUDE = Path(__file__).with_name("pass.h").read_text()


@dataclass(frozen=True)
class Layout:
    """How a pass's operands lie in memory, which decides its code.

    Attributes:
        lattices: names, in the order of `Args.lattices`.
        dtypes: of each.
        far: names of those that may leave the near range.
        view: dtype of parameters and gradients.
        shown: whether the pass writes the float view of "q".
        squares: names whose sums of squares are wanted.
        apart: whether "q" has lanes of its own.
        chunk: lanes done at once, and elements whose squares are summed.
    """

    lattices: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    far: frozenset[str]
    view: torch.dtype
    shown: bool
    squares: tuple[str, ...]
    apart: bool
    chunk: int


def places(instructions: Sequence[Instruction], layout: Layout, first: int) -> dict[Any, int]:
    """Where P holds what exchanges and lattices need, after the trace's parameters.

    Args:
        instructions: see `trace`.
        layout: which lattices.
        first: how many parameters the trace has.

    Returns:
        ("exchange", number, "n" | "d" | "minus" | "rn" | "rd"): n, d, n - d, 1/n, 1/d of that instruction.
        ("scale", lattice): 2**-e. ("end", lattice): from where on an update is left out. ("shift" | "split" | "unsplit"
        | "offset", lattice): s, 2**s, 2**-s and 2**(63 - s), where far integers are split.
    """
    exchanges = [k for k, i in enumerate(instructions) if i[0] == "exchange"]
    keys: list[Any] = [("exchange", k, x) for k in exchanges for x in ("n", "d", "minus", "rn", "rd")]
    each = ("scale", "end", "shift", "split", "unsplit", "offset")
    keys += [(key, name) for name in layout.lattices for key in each]
    return {key: first + i for i, key in enumerate(keys)}


def printed(instructions: Sequence[Instruction], layout: Layout, at: dict[Any, int], forward: bool) -> str:
    """C source of a pass.

    Args:
        instructions: see `trace`.
        layout: of its operands.
        at: see `places`.
        forward: which way.
    """
    body = _Body(layout, at, forward)
    for number, instruction in enumerate(instructions):
        body.add(number, instruction)
    body.finish()
    view, integers = _C[layout.view], [_INT[dtype] for dtype in layout.dtypes]
    peaks = sum(i[0] in ("shear", "peak") for i in instructions)
    gradient = any(i[0] == "gradient" for i in instructions)
    declared = [f"{integer} *restrict x{i}" for i, integer in enumerate(integers)]
    declared += [f"const {view} *restrict g", f"{view} *restrict w"]
    declared += [f"double *restrict h{k}" for k in body.heads]
    declared += [f"double *restrict s{i}" for i in range(len(layout.squares))]
    given = [f"({integer} *)a->lattices[{i}] + at" for i, integer in enumerate(integers)]
    given += [f"(const {view} *)a->gradients[j] + in" if gradient else "0"]
    given += [f"({view} *)a->weights[j] + in" if layout.shown else "0"]
    given += [f"a->heads[{k}] + lane" for k in body.heads]
    given += [f"sums[{i}] + (lane - block)" for i in range(len(layout.squares))]
    word = "u64" if layout.view is torch.float64 else "u32"
    accumulators = "".join(f"i64 p{k}[GROUP] = {{0}}; " for k in range(peaks)) + f"{word} edited[GROUP] = {{0}};"
    merged = "".join(f"if (p{k}[j] > (i64)found[{k}]) found[{k}] = p{k}[j]; " for k in range(peaks))
    looked = next((str(i[2]) for i in instructions if i[0] == "peak"), None)
    summed = f"found[{peaks + 1}] += sum_{view}(g, m, index, {f'found + {looked}' if looked else '&unused'});"
    summed = f"u64 unused = 0; (void)unused; {summed}" if gradient and body.forward else ""
    total = "\n".join(
        f"        fold(sums[{i}], m, a->squares + {i} * rows * groups + r * groups + block / CHUNK);"
        for i in range(len(layout.squares))
    )
    loop = _LOOP.format(ahead=body.ahead(), text=body.text()) if body.touched or layout.squares else ""
    return f"""
#define GROUP {_GROUP}
#define CHUNK {layout.chunk}
{_PRELUDE}
static void span(i64 m, {", ".join(declared)}, const double *restrict P, u32 index, u64 *restrict found) {{
  {accumulators}
{body.constants()}
{loop}
  for (int j = 0; j < GROUP; j++) {{ {merged}found[{peaks}] |= edited[j]; }}
  {summed}
}}
void run(const Args *a) {{
  i64 L = a->lanes, rows = (a->size + L - 1) / L, groups = (L + CHUNK - 1) / CHUNK;
  u64 total[{peaks + 2}]; memset(total, 0, sizeof total);
#pragma omp parallel for num_threads((int)a->threads) schedule(static)
  for (i64 tile = 0; tile < L; tile += a->tile) {{
    u64 found[{peaks + 2}]; memset(found, 0, sizeof found);
    double sums[{max(1, len(layout.squares))}][CHUNK];
    i64 step = {1 if body.forward else -1}, border = L - tile < a->tile ? L : tile + a->tile;
    for (i64 k = a->first; k < a->last; k++)
    for (i64 block = tile; block < border; block += CHUNK) {{
      i64 r = step > 0 ? k : a->last - 1 - (k - a->first), base = r * L;
      i64 m = border - block < CHUNK ? border - block : CHUNK;
      i64 end = base + block + m; if (end > a->size) end = a->size;
      i64 at = base + block, lo = 0, hi = a->pieces;
      while (hi - lo > 1) {{ i64 mid = (lo + hi) / 2; if (a->starts[mid] <= at) lo = mid; else hi = mid; }}
      for (i64 j = lo; at < end; j++) {{
        i64 stop = a->starts[j + 1] < end ? a->starts[j + 1] : end, in = at - a->starts[j], lane = at - base;
        (void)in;
        if (stop > at) span(stop - at, {", ".join(given)}, a->P, (u32)at, found);
        if (stop > at) at = stop;
      }}
      i64 done = end > base + block ? end - base - block : 0;
      for (i64 lane = block + done; lane < block + m; lane++) {{
        const double *P = a->P; (void)P;
{body.idle()}
      }}
      m = done; (void)rows; (void)groups; (void)sums;
{total}
    }}
#pragma omp critical
    {{ {"".join(f"if ((i64)found[{k}] > (i64)total[{k}]) total[{k}] = found[{k}]; " for k in range(peaks))}
      total[{peaks}] |= found[{peaks}]; total[{peaks + 1}] += found[{peaks + 1}]; }}
  }}
  memcpy(a->found, total, sizeof total);
  if (a->final) for (int k = 0; k < {len(layout.squares)}; k++) whole(a->squares + k * rows * groups, rows * groups);
}}
"""


_GROUP, _AHEAD = 16, 2048
"""Elements done at a time, and by how many bytes memory is asked for in advance: up to seven arrays are read in turns,
of which a processor by itself knows too late."""

_LOOP = """
  i64 start = 0;
  for (; start + GROUP <= m; start += GROUP) {{
{ahead}
    IVDEP
    for (int j = 0; j < GROUP; j++) {{ i64 i = start + j;
{text}
    }}
  }}
  for (int j = 0; start + j < m; j++) {{ i64 i = start + j;
{text}
    }}
"""


class _Body:
    """Lines of the innermost loop."""

    def __init__(self, layout: Layout, at: dict[Any, int], forward: bool):
        self.layout, self.at, self.forward, self.lines, self.idles = layout, at, forward, [], []
        self.now: dict[str, tuple[str, ...]] = {}  # a lattice's present variables: (x,) or (H, W)
        self.heads: dict[int, str] = {}  # the present variable of each head that is used
        self.fresh, self.used, self.touched = 0, set(), []
        self.plain: dict[str, str] = {}
        self.gradient = False

    def _let(self, text: str, kind: str = "double") -> str:
        self.fresh += 1
        self.lines.append(f"    {kind} t{self.fresh} = {text};")
        return f"t{self.fresh}"

    def _p(self, *key) -> str:
        k = self.at[key]
        self.used.add(k)
        return f"P{k}"

    def _name(self, operand: str) -> str:
        if operand.startswith("P"):
            self.used.add(int(operand[1:]))
            return operand
        return f"v{operand[1:]}"

    def _narrow(self, name: str) -> bool:
        return self.layout.dtypes[self.layout.lattices.index(name)] is torch.int32

    def _lattice(self, name: str) -> tuple[str, ...]:
        if name not in self.now:
            x = f"x{self.layout.lattices.index(name)}[i]"
            if self._narrow(name):
                self.now[name] = (self._let(f"(double){x}"),)
            elif name not in self.layout.far:
                self.now[name] = (self._let(f"as_double((u64){x} + MAGIC_BITS)"),)
            else:
                u = self._let(f"(u64){x} ^ 0x8000000000000000ULL", "u64")
                s = f"S{self.layout.lattices.index(name)}"
                high = self._let(f"small_double({u} >> {s}) - {self._p('offset', name)}")
                self.now[name] = (high, self._let(f"small_double({u} & M{self.layout.lattices.index(name)})"))
            if name == "q" and self.layout.shown:
                view = _C[self.layout.view]
                word = "u64" if self.layout.view is torch.float64 else "u32"
                self.lines.append(f"    {word} other = word_{view}(w[i]) ^ word_{view}({self._shown()});")
                self.lines.append("    edited[j] |= other;")
        return self.now[name]

    def _value(self, name: str) -> str:
        x = self._lattice(name)
        if len(x) == 1:
            return self._plain(name, x[0])
        return self._let(f"{x[0]} * {self._p('split', name)} + {x[1]}")

    def _plain(self, name: str, x: str) -> str:
        """A near lattice's number, which is held with MAGIC added."""
        if self._narrow(name):
            return x
        if x not in self.plain:
            self.plain[x] = self._let(f"{x} - MAGIC")
        return self.plain[x]

    def _shown(self) -> str:
        return f"store_{_C[self.layout.view]}({self._value('q')} * {self._p('scale', 'q')})"

    def add(self, number: int, instruction: Instruction) -> None:
        op, *a = instruction
        if op == "gradient":
            view = _C[self.layout.view]
            self.lines.append(f"    double v{number} = load_{view}(g[i]);")
            self.gradient = True
        elif op == "value":
            self.lines.append(f"    double v{number} = {self._value(a[0])};")
        elif op in ("mul", "add", "sub", "div"):
            sign = {"mul": "*", "add": "+", "sub": "-", "div": "/"}[op]
            self.lines.append(f"    double v{number} = {self._name(a[0])} {sign} {self._name(a[1])};")
        elif op == "sqrt":
            self.lines.append(f"    double v{number} = sqrt({self._name(a[0])});")
        elif op == "max0":
            self.lines.append(f"    double v{number} = {self._name(a[0])} < 0.0 ? 0.0 : {self._name(a[0])};")
        elif op == "peak":  # of the gradient, on the way through its words
            pass
        elif op == "exchange":
            self._exchange(number, a[0])
        else:
            self._shear(*a)

    def _exchange(self, number: int, name: str) -> None:
        n, d, minus, rn, rd = (self._p("exchange", number, k) for k in ("n", "d", "minus", "rn", "rd"))
        lanes = int(name == "q" and self.layout.apart)
        head = self.heads.get(lanes, f"h{lanes}[i]")
        self.touched.append(name)
        x = self._lattice(name)
        above = self._let(f"FLOOR_DIV({head}, {rn})")
        t = self._let(f"MAD(-{above}, {n}, {head})")
        if len(x) == 1:
            t = self._let(f"MAD({self._plain(name, x[0])}, {minus}, {t})")
        else:
            whole = self._let(f"{x[0]} * {minus}")
            high = self._let(f"FLOOR_DIV({whole}, {rd})")
            rest = self._let(f"MAD(-{high}, {d}, {whole})")
            t = self._let(f"MAD({x[1]}, {minus}, {t})")
            t = self._let(f"MAD({rest}, {self._p('split', name)}, {t})")
        k = self._let(f"FLOOR_DIV({t}, {rd})")
        self.heads[lanes] = self._let(f"MAD({above}, {d}, MAD(-{k}, {d}, {t}))")
        if len(x) == 1:
            self.now[name] = (self._let(f"{x[0]} + {k}"),)
        else:
            self.now[name] = (self._let(f"{x[0]} + {high}"), self._let(f"{x[1]} + {k}"))
        p = [f"P[{self.at['exchange', number, key]}]" for key in ("n", "d", "rn")]
        used = f"{p[0]} <= {p[1]}" if self.forward else f"{p[0]} >= {p[1]}"  # see tape.idles
        self.idles.append(
            f"        if ({used}) {{ double *h = a->heads[{lanes}] + lane, b = FLOOR_DIV(*h, {p[2]}); "
            f"*h = b * {p[1]} + (*h - b * {p[0]}); }}"
        )

    def _shear(self, name: str, units: str, sign: int, peak: int) -> None:
        self.touched.append(name)
        x, plus = self._lattice(name), "+" if sign > 0 else "-"
        u = self._let(f"nearbyint({self._name(units)})")
        size = self._let(f"(i64)bits_of(fabs({u}))", "i64")
        self.lines.append(f"    p{peak}[j] = {size} > p{peak}[j] ? {size} : p{peak}[j];")
        u = self._let(f"{size} < E{self.layout.lattices.index(name)} ? {u} : 0.0")
        if len(x) == 1:
            self.now[name] = (self._let(f"{x[0]} {plus} {u}"),)
        else:
            s, r = self._p("split", name), self._p("unsplit", name)
            high = self._let(f"nearbyint({u} * {r})")
            low = self._let(f"MAD(-{high}, {s}, {u})")
            self.now[name] = (self._let(f"{x[0]} {plus} {high}"), self._let(f"{x[1]} {plus} {low}"))

    def finish(self) -> None:
        """Store what was changed."""
        for name in dict.fromkeys(self.touched):
            i, x = self.layout.lattices.index(name), self.now[name]
            if self._narrow(name):
                self.lines.append(f"    x{i}[i] = (i32){x[0]};")
            elif len(x) == 1:
                self.lines.append(f"    x{i}[i] = (i64)(bits_of({x[0]}) - MAGIC_BITS);")
            else:
                self.lines.append(f"    x{i}[i] = (i64)((u64)near_int({x[0]}) << S{i}) + near_int({x[1]});")
            if name == "q" and self.layout.shown:
                self.lines.append(f"    w[i] = other ? w[i] : {self._shown()};")  # an edit is not overwritten
        for i, name in enumerate(self.layout.squares):
            v = self._let(f"{self._value(name)} * {self._p('scale', name)}")
            self.lines.append(f"    s{i}[i] = {v} * {v};")
        for k, head in self.heads.items():
            self.lines.append(f"    h{k}[i] = {head};")

    def constants(self) -> str:
        """Parameters that the loop reads, and what far lattices are split at."""
        lines = [f"  const double P{k} = P[{k}];" for k in sorted(self.used)]
        for i, name in enumerate(self.layout.lattices):
            lines.append(f"  const i64 E{i} = (i64)bits_of(P[{self.at['end', name]}]);")
            if name in self.layout.far:
                lines.append(f"  const int S{i} = (int)P[{self.at['shift', name]}];")
                lines.append(f"  const u64 M{i} = (1ULL << S{i}) - 1;")
        return "\n".join(lines)

    def ahead(self) -> str:
        """Ask for what comes later of lattices, gradient and weights; heads are in the cache."""
        arrays = {f"x{i}": dtype.itemsize for i, dtype in enumerate(self.layout.dtypes)}
        arrays |= dict.fromkeys(["g"] * self.gradient + ["w"] * self.layout.shown, self.layout.view.itemsize)
        lines = [(x, _AHEAD + at) for x, size in arrays.items() for at in range(0, _GROUP * size, 64)]
        return "\n".join(f"    __builtin_prefetch((const char *)({x} + start) + {at});" for x, at in lines)

    def text(self) -> str:
        return "\n".join(self.lines)

    def idle(self) -> str:
        """What an exchange does to lanes that the last row does not reach: x = 0."""
        return "\n".join(self.idles)
