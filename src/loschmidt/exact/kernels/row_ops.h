/* Rows in one kind of arithmetic: T is its float, INT the integers that it rounds to. Included twice by rows.c. */

#define ALL for (int i = 0; i < (int)m; i++)

static void NAME(load)(T *to, const void *from, i64 view, i64 at, i64 m) {
  if (view == FLOAT) { const float *x = (const float *)from + at; IVDEP ALL to[i] = (T)x[i]; }
  else if (view == BF16) { const u16 *x = (const u16 *)from + at; IVDEP ALL to[i] = (T)float_bits((u32)x[i] << 16); }
  else { const double *x = (const double *)from + at; IVDEP ALL to[i] = (T)x[i]; }
}

static void NAME(value)(T *to, const void *n, i64 width, i64 plus, T u, i64 m) {
  if (width == 4) { const i32 *x = n; i32 p = (i32)plus; IVDEP ALL to[i] = (T)(x[i] + p) * u; }
  else if (width == 2) { const i16 *x = n; i16 p = (i16)plus; IVDEP ALL to[i] = (T)(x[i] + p) * u; }
  else { const i64 *x = n; IVDEP ALL to[i] = (T)(x[i] + plus) * u; }
}

#define EACH(X) { const X *x = n; X p = (X)plus; IVDEP ALL { T v = (T)(x[i] + p) * u; to[i] = DO; } }
#define WIDTHS if (width == 4) EACH(i32) else if (width == 2) EACH(i16) else EACH(i64)
#define DO (SQUARE_ROOT((v < 0 ? (T)0 : v) * c) + d)
static void NAME(root)(T *to, const void *n, i64 width, i64 plus, T u, T c, T d, i64 m) { WIDTHS }
#undef DO
#define DO (v / y[i])
static void NAME(quotient)(T *to, const void *n, i64 width, i64 plus, T u, const T *y, i64 m) { WIDTHS }
#undef DO
#undef WIDTHS
#undef EACH

static T NAME(largest)(const T *x, i64 m) {  /* as integers: NaN is more than infinity, which is more than all */
  INT most = 0; T out;
  ALL { INT b; memcpy(&b, x + i, sizeof b); b &= LARGEST; most = b > most ? b : most; }
  memcpy(&out, &most, sizeof out);
  return out;
}

/* n += sign * round(f / u), or round(f / u + d), d in [-1/2, 1/2) of place and step; f, its square, times p.
   Rounding to the nearest is odd, so that a sign can be the factor's. */
#define DITHER(i) ((T)(i32)DRAW(i) * (T)(1.0 / 4294967296.0))
#define ADDED(X, F) { X *x = n; IVDEP ALL x[i] = (X)(x[i] + (X)NEAREST((F) * inverse)); }
#define DITHERED(X, F) { X *x = n; X s = (X)(sign >> 31); IVDEP ALL { \
  X k = (X)NEAREST((F) * inverse + DITHER(i)); x[i] = (X)(x[i] + (X)((k ^ s) - s)); } }
#define BY_WIDTH(MACRO, ...) if (width == 4) MACRO(i32, __VA_ARGS__) else if (width == 2) MACRO(i16, __VA_ARGS__) \
  else MACRO(i64, __VA_ARGS__)
static void NAME(kick)(void *n, i64 width, const T *f, const Code *c, T p, T inverse, u32 salt, i64 at, i64 m) {
  int sign = (int)c->b;
  if (c->flag) {
    if (c->squared) { BY_WIDTH(DITHERED, f[i] * f[i] * p) }
    else if (c->factor) { BY_WIDTH(DITHERED, f[i] * p) }
    else { BY_WIDTH(DITHERED, f[i]) }
  } else {
    inverse = sign < 0 ? -inverse : inverse;
    if (c->squared) { BY_WIDTH(ADDED, f[i] * f[i] * p) }
    else if (c->factor) { BY_WIDTH(ADDED, f[i] * p) }
    else { BY_WIDTH(ADDED, f[i]) }
  }
}
#undef BY_WIDTH
#undef DITHERED
#undef ADDED

/* two kicks by one register: f times p, and the square of f times p2, dithered */
#define BOTH(X) { X *x = n, *y = n2, s = (X)(sign >> 31); IVDEP ALL { \
  T g = f[i]; \
  X k = (X)NEAREST(g * g * p2 * inverse2 + DITHER(i)); \
  x[i] = (X)(x[i] + (X)NEAREST(g * p * inverse)); \
  y[i] = (X)(y[i] + (X)((k ^ s) - s)); } }
static void NAME(kick_both)(void *n, void *n2, i64 width, const T *f, int sign, T p, T p2, T inverse, T inverse2, u32 salt,
                            i64 at, i64 m) {
  inverse = sign < 0 ? -inverse : inverse;
  if (width == 4) BOTH(i32) else if (width == 2) BOTH(i16) else BOTH(i64)
}
#undef BOTH

/* the quotient of a step of Adam and its largest magnitude, at once; with `kicks`, after both moments were kicked. */
#define QUOTIENT(M, V) { \
  T v = (T)((V) + p2) * u2, q = (T)((M) + p1) * u / (SQUARE_ROOT((v < 0 ? (T)0 : v) * scale) + eps); \
  INT b; memcpy(&b, &q, sizeof b); b &= LARGEST; most = b > most ? b : most; to[i] = q; }
#define STEP_OF(X) { const X *x = n, *y = n2; X p1 = (X)c->flag, p2 = (X)c->flag2; \
  IVDEP ALL QUOTIENT(x[i], y[i]) }
static T NAME(step)(const Args *a, const Code *c, T *to, const void *n, const void *n2, T u, T u2, i64 m) {
  INT most = 0; T out, scale = (T)a->P[c->a], eps = (T)a->P[c->b];
  i64 width = a->width[c->lattice];
  if (width == 4) STEP_OF(i32) else if (width == 2) STEP_OF(i16) else STEP_OF(i64)
  memcpy(&out, &most, sizeof out);
  return out;
}
#define ADAM(X) { X *x = n, *y = n2; X p1 = (X)c->flag, p2 = (X)c->flag2; \
  IVDEP ALL { \
    T g = f[i]; \
    X first = (X)(x[i] + (X)NEAREST(g * p * inverse)); \
    X second = (X)(y[i] + (X)NEAREST(g * g * p2_ * inverse2 + DITHER(i))); \
    x[i] = first; y[i] = second; QUOTIENT(first, second) } }
static T NAME(adam)(const Args *a, const Code *c, T *to, void *n, void *n2, const T *f, T p, T p2_, T inverse, T inverse2,
                    u32 salt, u32 at, T u, T u2, i64 m) {
  INT most = 0; T out, scale = (T)a->P[c->a], eps = (T)a->P[c->b];
  i64 width = a->width[c->lattice];
  if (width == 4) ADAM(i32) else if (width == 2) ADAM(i16) else ADAM(i64)
  memcpy(&out, &most, sizeof out);
  return out;
}
/* the same of a whole row, and a look at the next one: the divider is what a step waits for, and memory is not to come
   after that. Weights and gradient are float32, and as many integers in 32 bits. */
#define AHEAD(X) { X *x = n, *y = n2; const X *x_ = (const X *)n + ROW, *y_ = (const X *)n2 + ROW; X p1 = (X)c->flag, p2 = (X)c->flag2; \
  IVDEP for (int i = 0; i < ROW; i++) { \
    T g = f[i]; \
    X first = (X)(x[i] + (X)NEAREST(g * p * inverse)); \
    X second = (X)(y[i] + (X)NEAREST(g * g * p2_ * inverse2 + DITHER(i))); \
    x[i] = first; y[i] = second; QUOTIENT(first, second) \
    float shown = (float)((T)next_q[i] * next_u); u32 bits; memcpy(&bits, &shown, 4); other |= bits ^ next_w[i]; \
    i32 size = next_g[i] & 0x7fffffff; top = size > top ? size : top; \
    touched |= x_[i] | y_[i]; } }
static T NAME(adam_ahead)(const Args *a, const Code *c, T *to, void *n, void *n2, const T *f, T p, T p2_, T inverse, T inverse2,
                          u32 salt, u32 at, T u, T u2, i64 next, Look *look) {
  INT most = 0; T out, scale = (T)a->P[c->a], eps = (T)a->P[c->b], next_u = (T)unit_of(a, a->q_before, a->q, next);
  i64 tensor = a->owner[next], inside = a->inside[next];
  const i32 *next_q = (const i32 *)a->n[a->q] + a->starts[next], *next_g = (const i32 *)a->gradients[tensor] + inside;
  const u32 *next_w = (const u32 *)a->weights[tensor] + inside;
  u32 other = 0; i32 top = 0, touched = 0;
  if (a->width[c->lattice] == 4) AHEAD(i32) else AHEAD(i16)
  __asm__ volatile("" : : "r"(touched));
  *look = (Look){1, other != 0, float_bits((u32)top)};
  memcpy(&out, &most, sizeof out);
  return out;
}
static int NAME(may_look_ahead)(const Args *a, const Code *c, i64 r, i64 next) {
  return next >= 0 && a->looks && a->shows && sizeof(T) == 4 && a->view == FLOAT && a->width[a->q] == 4 && a->width[c->lattice] <= 4
    && a->starts[r + 1] - a->starts[r] == ROW && a->starts[next + 1] - a->starts[next] == ROW;
}
#undef AHEAD
#undef ADAM
#undef STEP_OF
#undef QUOTIENT

/* whether a row of weights is the view of its integers; and writing it */
#define VIEW(X) ((T)((const X *)n)[i] * u)
#define COMPARED(X, W, AS) { const W *x = (const W *)w + at; W other = 0; \
  ALL { AS f = (AS)VIEW(X); W b; memcpy(&b, &f, sizeof b); other |= (W)(b ^ x[i]); } return other == 0; }
#define COMPARED_BF16(X) { const u16 *x = (const u16 *)w + at; u16 other = 0; \
  ALL other |= (u16)(bf16_of((float)VIEW(X)) ^ x[i]); return other == 0; }
#define COMPARE(X) { if (view == FLOAT) COMPARED(X, u32, float) if (view == DOUBLE) COMPARED(X, u64, double) COMPARED_BF16(X) }
static int NAME(as_shown)(const void *n, i64 width, T u, const void *w, i64 view, i64 at, i64 m) {
  if (width == 4) COMPARE(i32)
  if (width == 8) COMPARE(i64)
  COMPARE(i16)
}
#define WRITE(X) { if (view == FLOAT) { float *x = (float *)w + at; IVDEP ALL x[i] = (float)VIEW(X); } \
  else if (view == DOUBLE) { double *x = (double *)w + at; IVDEP ALL x[i] = (double)VIEW(X); } \
  else { u16 *x = (u16 *)w + at; IVDEP ALL x[i] = bf16_of((float)VIEW(X)); } }
static void NAME(show)(const void *n, i64 width, T u, void *w, i64 view, i64 at, i64 m) {
  if (width == 4) WRITE(i32) else if (width == 8) WRITE(i64) else WRITE(i16)
}
/* n += sign * round(f * p / u), and the weights written in the same pass */
#define SHOWN(X, W, AS) { X *x = n; W *o = (W *)w + at; IVDEP ALL { \
  X y = (X)(x[i] + (X)NEAREST(f[i] * p * inverse)); x[i] = y; o[i] = AS((T)y * u); } }
#define BY_VIEW(X) { if (view == FLOAT) SHOWN(X, float, (float)) else if (view == DOUBLE) SHOWN(X, double, (double)) \
  else SHOWN(X, u16, bf16_of) }
static void NAME(kick_show)(void *n, i64 width, const T *f, int sign, T p, T inverse, T u, void *w, i64 view, i64 at, i64 m) {
  inverse = sign < 0 ? -inverse : inverse;
  if (width == 4) BY_VIEW(i32) else if (width == 8) BY_VIEW(i64) else BY_VIEW(i16)
}
#undef BY_VIEW
#undef SHOWN
/* the same by the values of another lattice, without a register; the next row is touched, if there is a whole one */
#define FOLLOWED(X, W, AS) { X *x = n; const X *y = n2; W *o = (W *)w + at; IVDEP ALL { \
  X z = (X)(x[i] + (X)NEAREST((T)y[i] * u2 * p * inverse)); x[i] = z; o[i] = AS((T)z * u); } }
#define BY_VIEW(X) { if (view == FLOAT) FOLLOWED(X, float, (float)) else if (view == DOUBLE) FOLLOWED(X, double, (double)) \
  else FOLLOWED(X, u16, bf16_of) }
static void NAME(follow)(void *n, const void *n2, i64 width, int sign, T p, T inverse, T u2, T u, void *w, i64 view, i64 at, i64 m) {
  inverse = sign < 0 ? -inverse : inverse;
  if (width == 4) BY_VIEW(i32) else if (width == 8) BY_VIEW(i64) else BY_VIEW(i16)
}
static void NAME(follow_ahead)(i32 *n, const i32 *n2, int sign, T p, T inverse, T u2, T u, float *w, const i32 *g) {
  const i32 *q_ = n + ROW, *p_ = n2 + ROW, *w_ = (const i32 *)w + ROW;
  i32 touched = 0;
  inverse = sign < 0 ? -inverse : inverse;
  IVDEP for (int i = 0; i < ROW; i++) {
    i32 z = n[i] + (i32)NEAREST((T)n2[i] * u2 * p * inverse); n[i] = z; w[i] = (float)((T)z * u);
    touched |= q_[i] | p_[i] | w_[i] | g[i]; }
  __asm__ volatile("" : : "r"(touched));
}
#undef BY_VIEW
#undef FOLLOWED
#undef VIEW
#undef COMPARED
#undef COMPARED_BF16
#undef COMPARE
#undef WRITE

/* make room for a kick of size `most`, as exact.ops.room says; 0 or what went wrong */
static int NAME(room)(const Args *a, const Code *c, i64 r, i64 m, void *n, double most, i16 *count, Buffer *planes) {
  const i64 low = sizeof(T) == 4 ? -100 : -900, high = sizeof(T) == 4 ? 96 : 900;
  i64 width = a->width[c->lattice], l = c->lattice;
  double limit = LIMITS[width], *bound = a->bound[l] + r, spare = ldexp(1.0, (int)a->spare[l]);
  int known = 0;
  for (;;) {
    i64 exponent = exponent_of(a, c->unit, l, r);
    double k = most / unit_of(a, c->unit, l, r) * (1.0 + 0x1p-20) + 2.0;
    if (!(k < 1e300)) return TOO_LARGE;
    if (*bound + k * spare <= limit && exponent >= low) break;
    if (!known) { *bound = peak(n, width, m); known = 1; }
    i64 by = 0, zero = *bound == 0.0 && (!*count || *count >= JUMP);  /* not one that halving has made zero */
    int shift;
    if (zero && most > 0.0 && k * spare > limit) { frexp(k * spare / limit, &shift); by = shift; }
    else if (*bound + k > limit) { frexp((*bound + k) / limit, &shift); by = shift; }
    if (exponent + by < low) by = zero ? low + 32 - exponent : low - exponent;
    if (exponent + by > high) return TOO_LARGE;
    if (!by) break;
    if (zero) { *count = (i16)((*count >= JUMP ? *count : JUMP) + by); a->e[l][r] += (i32)by; continue; }
    i64 bytes = (m + 7) / 8;
    if (by > 64) by = 64;
    if (*count + by >= JUMP) return TOO_LARGE;
    if (!reserve(planes, by * bytes)) return NO_MEMORY;
    for (i64 j = 0; j < by; j++) { halve(n, width, m, planes->data + planes->size, a->inside[r], (u32)a->salt); planes->size += bytes; }
    a->e[l][r] += (i32)by; *count = (i16)(*count + by); *bound = peak(n, width, m);
  }
  *bound += most / unit_of(a, c->unit, l, r) * (1.0 + 0x1p-20) + 2.0;
  return FINE;
}

/* go back to the unit that a row had before; a row that is not on the recorded path, and would not fit, stays coarse */
static void NAME(unroom)(const Args *a, const Code *c, i64 r, i64 m, void *n, const u8 *planes) {
  i64 width = a->width[c->lattice], l = c->lattice, count = a->counts[c->halving * a->rows + r], bytes = (m + 7) / 8;
  if (!count) return;
  double most = peak(n, width, m);
  if (count >= JUMP) { if (most == 0.0) a->e[l][r] -= (i32)(count - JUMP); return; }
  for (i64 j = count; j-- > 0;) {
    if (j + 1 < count) most = peak(n, width, m);
    if (2.0 * most > LIMITS[width]) {
      u8 same[ROW / 8];
      while (++j < count) halve(n, width, m, same, a->inside[r], (u32)a->salt);
      return;
    }
    redouble(n, width, m, planes + j * bytes, a->inside[r], (u32)a->salt);
  }
  a->e[l][r] -= (i32)count;
  a->bound[l][r] = INFINITY;
}

/* after `room` has failed, or what comes behind it: nothing of the row has moved but its unit */
static void NAME(no_room)(const Args *a, const Code *c, i64 r, i64 m, Buffer *made) {
  i16 *count = a->counts + c->halving * a->rows + r;
  Buffer *b = made + c->halving;
  if (*count > 0 && *count < JUMP) b->size -= *count * ((m + 7) / 8);
  NAME(unroom)(a, c, r, m, (char *)a->n[c->lattice] + a->starts[r] * a->width[c->lattice], b->data + b->size);
  *count = 0;
}

/* what comes before a kick of size `most`: room on the way forward; on the way back, whether it may be */
static int NAME(ready)(const Args *a, const Code *c, i64 r, i64 m, T most, Buffer *made) {
  i64 l = c->lattice, width = a->width[l];
  void *n = (char *)a->n[l] + a->starts[r] * width;
  if (!(most < INFINITY)) return NOT_FINITE;
  if (a->forward) {
    i16 *count = a->counts + c->halving * a->rows + r;
    *count = 0;
    int wrong = NAME(room)(a, c, r, m, n, (double)most, count, made + c->halving);
    if (wrong) NAME(no_room)(a, c, r, m, made);
    if (*count) a->moved[c->halving] = 1;
    return wrong;
  }
  double k = (double)most / unit_of(a, c->unit, l, r) * (1.0 + 0x1p-20) + 2.0, *bound = a->bound[l] + r;
  if (*bound + k > LIMITS[width]) {
    *bound = peak(n, width, m);
    if (*bound + k > 2.0 * LIMITS[width] - 2.0) return LEFT_THE_LATTICE;
  }
  *bound += k;
  return FINE;
}

/* what comes after it, on the way back */
static void NAME(settle)(const Args *a, const Code *c, i64 r, i64 m) {
  if (a->forward) return;
  void *n = (char *)a->n[c->lattice] + a->starts[r] * a->width[c->lattice];
  NAME(unroom)(a, c, r, m, n, a->planes_in ? a->planes_in + a->offsets[c->halving * a->rows + r] : 0);
}

static T NAME(scaled)(T most, i64 squared, T factor) {  /* rounding is monotonous */
  most = squared ? most * most : most;
  return most * (factor < 0 ? -factor : factor);
}

static int NAME(shear)(const Args *a, const Code *c, i64 r, i64 m, const T *f, T most, Buffer *made, int *shown) {
  T factor = c->factor ? (T)a->P[c->factor - 1] : (T)1;
  most = NAME(scaled)(most, c->squared, factor);
  int wrong = NAME(ready)(a, c, r, m, most, made);
  if (wrong) return wrong;
  i64 width = a->width[c->lattice], at = a->inside[r];
  void *n = (char *)a->n[c->lattice] + a->starts[r] * width;
  T inverse = (T)(1.0 / unit_of(a, c->unit, c->lattice, r));
  if (most > 0 && *shown < 0 && !c->flag && c->factor && !c->squared && (a->forward || !a->counts[c->halving * a->rows + r])) {
    T u = (T)unit_of(a, a->q_after, a->q, r);
    NAME(kick_show)(n, width, f, (int)c->b, factor, inverse, u, a->weights[a->owner[r]], a->view, at, m);
    *shown = 1;
  } else if (most > 0) NAME(kick)(n, width, f, c, factor, inverse, (u32)a->salt, at, m);
  NAME(settle)(a, c, r, m);
  return FINE;
}

/* both moments; if the next instruction is a step made of them, that, too: its largest magnitude, else -1 */
static int NAME(moments)(const Args *a, const Code *c, i64 r, i64 m, const T *f, T most, Buffer *made, T *to, T *top, i64 next, Look *look) {
  Code two = *c;
  const Code *then = c + 1;
  two.lattice = c->lattice2; two.unit = c->unit2; two.halving = c->halving2;
  T p = (T)a->P[c->factor - 1], p2 = (T)a->P[c->factor2 - 1];
  int wrong = NAME(ready)(a, c, r, m, NAME(scaled)(most, 0, p), made);
  if (wrong) return wrong;
  wrong = NAME(ready)(a, &two, r, m, NAME(scaled)(most, 1, p2), made);
  if (wrong) { if (a->forward) NAME(no_room)(a, c, r, m, made); return wrong; }
  i64 width = a->width[c->lattice];
  void *n = (char *)a->n[c->lattice] + a->starts[r] * width, *n2 = (char *)a->n[two.lattice] + a->starts[r] * width;
  T inverse = (T)(1.0 / unit_of(a, c->unit, c->lattice, r)), inverse2 = (T)(1.0 / unit_of(a, two.unit, two.lattice, r));
  u32 at = (u32)a->inside[r], salt = (u32)a->salt;
  if (to && most > 0) {
    T u = (T)unit_of(a, then->unit, then->lattice, r), u2 = (T)unit_of(a, then->unit2, then->lattice2, r);
    *top = NAME(may_look_ahead)(a, c, r, next)
      ? NAME(adam_ahead)(a, then, to, n, n2, f, p, p2, inverse, inverse2, salt, at, u, u2, next, look)
      : NAME(adam)(a, then, to, n, n2, f, p, p2, inverse, inverse2, salt, at, u, u2, m);
  } else if (most > 0) NAME(kick_both)(n, n2, width, f, (int)c->b, p, p2, inverse, inverse2, salt, at, m);
  NAME(settle)(a, c, r, m); NAME(settle)(a, &two, r, m);
  return FINE;
}

/* the last shear of a walk, of the parameters by the values of another lattice as wide */
static int NAME(followed)(const Args *a, const Code *c, i64 r, i64 m, i64 next, Buffer *made, int *shown) {
  i64 width = a->width[c->lattice], at = a->inside[r], tensor = a->owner[r];
  void *n = (char *)a->n[c->lattice] + a->starts[r] * width, *n2 = (char *)a->n[c->lattice2] + a->starts[r] * width;
  T p = (T)a->P[c->factor - 1], u2 = (T)unit_of(a, c->unit2, c->lattice2, r);
  T most = NAME(scaled)((T)peak(n2, width, m) * u2, 0, p);  /* rounding is monotonous */
  int wrong = NAME(ready)(a, c, r, m, most, made);
  if (wrong) return wrong;
  T inverse = (T)(1.0 / unit_of(a, c->unit, c->lattice, r));
  if (a->forward || !a->counts[c->halving * a->rows + r]) {
    T u = (T)unit_of(a, a->q_after, a->q, r);
    int ahead = a->looks && next >= 0 && width == 4 && a->view == FLOAT && m == ROW && a->owner[next] == tensor
      && a->starts[next + 1] - a->starts[next] == ROW;
    if (ahead) NAME(follow_ahead)(n, n2, (int)c->b, p, inverse, u2, u, (float *)a->weights[tensor] + at, (const i32 *)a->gradients[tensor] + at + ROW);
    else NAME(follow)(n, n2, width, (int)c->b, p, inverse, u2, u, a->weights[tensor], a->view, at, m);
    *shown = 1;
  } else NAME(follow)(n, n2, width, (int)c->b, p, inverse, u2, (T)0, a->weights[tensor], a->view, at, m);
  NAME(settle)(a, c, r, m);
  return FINE;
}

#define TWO(op) { const T *x = V[c->a], *y = V[c->b]; T *z = R[c->to]; IVDEP ALL z[i] = x[i] op y[i]; }
#define ONE(op) { const T *x = V[c->a]; T p = (T)a->P[c->b], *z = R[c->to]; IVDEP ALL z[i] = x[i] op p; }
#define N_OF(lattice) ((char *)a->n[lattice] + a->starts[r] * a->width[lattice])

/* all instructions to one row; on failure, `reached` shears were done.
   top: of the gradient; look: of the next row; shown: -1 where weights are to be written, 1 once they are */
static int NAME(row)(const Args *a, i64 r, i64 next, T (*R)[ROW], T top, Look *look, Buffer *made, i64 *reached, int *shown) {
  i64 m = a->starts[r + 1] - a->starts[r], tensor = a->owner[r], at = a->inside[r];
  const T *V[REGISTERS]; T tops[REGISTERS];  /* where registers lie, and their largest magnitude; -1: not known */
  for (i64 k = 0; k < a->codes; k++) {
    const Code *c = a->code + k;
    int wrong = FINE, whole = 0;
    switch (c->op) {
      case GRADIENT:
        tops[c->to] = top;
        V[c->to] = a->view == sizeof(T) ? (const T *)a->gradients[tensor] + at : R[c->to];
        if (a->view != sizeof(T)) NAME(load)(R[c->to], a->gradients[tensor], a->view, at, m);
        break;
      case VALUE: NAME(value)(R[c->to], N_OF(c->lattice), a->width[c->lattice], c->flag, (T)unit_of(a, c->unit, c->lattice, r), m); break;
      case MUL: TWO(*) break; case ADD: TWO(+) break; case SUB: TWO(-) break; case DIV: TWO(/) break;
      case MULP: ONE(*) break; case ADDP: ONE(+) break; case SUBP: ONE(-) break; case DIVP: ONE(/) break;
      case SQRT: { const T *x = V[c->a]; T *z = R[c->to]; IVDEP ALL z[i] = SQUARE_ROOT(x[i]); break; }
      case MAX0: { const T *x = V[c->a]; T *z = R[c->to]; IVDEP ALL z[i] = x[i] < 0 ? (T)0 : x[i]; break; }
      case STEP:
        tops[c->to] = NAME(step)(a, c, R[c->to], N_OF(c->lattice), N_OF(c->lattice2),
          (T)unit_of(a, c->unit, c->lattice, r), (T)unit_of(a, c->unit2, c->lattice2, r), m);
        break;
      case MOMENTS: {
        if (tops[c->a] < 0) tops[c->a] = NAME(largest)(V[c->a], m);
        const Code *then = c + 1;
        int also = k + 1 < a->codes && then->op == STEP && a->forward && c->b > 0 && then->lattice == c->lattice && then->lattice2 == c->lattice2;
        T known = -1;
        wrong = NAME(moments)(a, c, r, m, V[c->a], tops[c->a], made, also ? R[then->to] : 0, &known, next, look);
        if (!wrong) *reached += 2;
        if (!wrong && known >= 0) { V[then->to] = R[then->to]; tops[then->to] = known; k++; }
        break;
      }
      case FOLLOW: {
        int follows = k == a->codes - 1 && *shown < 0 && c->lattice == a->q && a->width[c->lattice] == a->width[c->lattice2];
        if (follows) wrong = NAME(followed)(a, c, r, m, next, made, shown);
        else {
          NAME(value)(R[c->to], N_OF(c->lattice2), a->width[c->lattice2], 0, (T)unit_of(a, c->unit2, c->lattice2, r), m);
          wrong = NAME(shear)(a, c, r, m, R[c->to], NAME(largest)(R[c->to], m), made, &(int){0});
        }
        if (!wrong) *reached += 1;
        break;
      }
      case SHEAR:
        if (tops[c->a] < 0) tops[c->a] = NAME(largest)(V[c->a], m);
        whole = k == a->codes - 1 && c->lattice == a->q && *shown < 0;
        int done = whole ? -1 : 0;
        wrong = NAME(shear)(a, c, r, m, V[c->a], tops[c->a], made, &done);
        if (done > 0) *shown = 1;
        if (!wrong) *reached += 1;
        break;
      case SUM: {
        double s[ROW]; const T *x = V[c->a];
        ALL s[i] = (double)x[i];
        for (i64 i = m; i < ROW; i++) s[i] = 0;
        for (i64 h = ROW / 2; h; h /= 2) for (i64 i = 0; i < h; i++) s[i] += s[h + i];
        a->sums[c->b * a->rows + r] = s[0];
        break;
      }
    }
    if (wrong) return wrong;
    if (c->op == SHEAR || c->op == MOMENTS || c->op == SUM || c->op == GRADIENT) continue;
    V[c->to] = R[c->to];  /* not before: `to` may be `a`, and a gradient lies elsewhere */
    if (c->op != STEP) tops[c->to] = -1;
  }
  return FINE;
}

static u64 NAME(run)(const Args *a, i64 first, i64 last, Buffer *made, volatile i64 *stop) {
  T R[REGISTERS][ROW] __attribute__((aligned(64)));
  u64 total = 0;
  Look look = {0};
  for (i64 r = first; r < last && !*stop; r++) {
    if (a->only && !a->only[r]) continue;
    i64 m = a->starts[r + 1] - a->starts[r], tensor = a->owner[r], at = a->inside[r], next = r + 1 < last ? r + 1 : -1;
    int wrong = FINE, shown = a->shows ? -1 : 0;
    T top = -1;
    char *q = (char *)a->n[a->q] + a->starts[r] * a->width[a->q];
    if (a->looks) {
      const char *g = (const char *)a->gradients[tensor] + at * a->view;
      double most = look.known ? look.most : a->view == FLOAT ? largest_float((const i32 *)g, m)
        : a->view == BF16 ? largest_bf16((const i16 *)g, m) : largest_double((const i64 *)g, m);
      total += sum_words(g, m * a->view, (u64)a->starts[r], 8 / (int)a->view);
      if (!(most < INFINITY)) wrong = NOT_FINITE;
      top = (T)most;
    }
    if (!wrong && a->shows == 1 && (look.known ? look.edited : !NAME(as_shown)(q, a->width[a->q], (T)unit_of(a, a->q_before, a->q, r),
        a->weights[tensor], a->view, at, m))) wrong = EDITED;
    look.known = 0;
    if (!wrong) {
      i64 reached = 0;
      wrong = NAME(row)(a, r, next, R, top, &look, made, &reached, &shown);
      if (wrong) a->done[r] = (u8)(2 + reached);  /* in part: so many shears were done */
    }
    if (!wrong && shown < 0) NAME(show)(q, a->width[a->q], (T)unit_of(a, a->q_after, a->q, r), a->weights[tensor], a->view, at, m);
    if (wrong) {
#pragma omp critical
      { if (!*stop) { a->failed[0] = wrong; a->failed[1] = r; } *stop = 1; }
      break;
    }
    a->done[r] = 1;
  }
  return total;
}
#undef N_OF
#undef TWO
#undef ONE
#undef ALL
