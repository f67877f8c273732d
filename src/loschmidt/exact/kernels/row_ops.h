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

/* n += sign * round(f / u), or rounded down after a number in [0, 1) was added; f, its square, times c */
#define ADDED(X, F, ROUND) { X *x = n; \
  if (sign > 0) { IVDEP ALL x[i] = (X)(x[i] + (X)(INT)ROUND((F) * inverse)); } \
  else { IVDEP ALL x[i] = (X)(x[i] - (X)(INT)ROUND((F) * inverse)); } }
#define DITHERED(X, F) { X *x = n; IVDEP ALL { \
  T d = (T)(i32)(mixed((u32)at + (u32)i + salt) >> 8) * (T)(1.0 / 16777216.0); \
  x[i] = (X)(x[i] + sign * (X)(INT)FLOOR((F) * inverse + d)); } }
#define BY_WIDTH(MACRO, ...) if (width == 4) MACRO(i32, __VA_ARGS__) else if (width == 2) MACRO(i16, __VA_ARGS__) \
  else MACRO(i64, __VA_ARGS__)
static void NAME(kick)(void *n, i64 width, const T *f, const Code *c, T p, T inverse, u32 salt, i64 at, i64 m) {
  int sign = (int)c->b;
  if (c->flag) {
    if (c->squared) { BY_WIDTH(DITHERED, f[i] * f[i] * p) }
    else if (c->factor) { BY_WIDTH(DITHERED, f[i] * p) }
    else { BY_WIDTH(DITHERED, f[i]) }
  } else {
    if (c->squared) { BY_WIDTH(ADDED, f[i] * f[i] * p, RINT) }
    else if (c->factor) { BY_WIDTH(ADDED, f[i] * p, RINT) }
    else { BY_WIDTH(ADDED, f[i], RINT) }
  }
}
#undef BY_WIDTH
#undef DITHERED
#undef ADDED

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
    i64 by = 0, zero = *bound == 0.0;
    int shift;
    if (zero && most > 0.0 && k * spare > limit) { frexp(k * spare / limit, &shift); by = shift; }
    else if (*bound + k > limit) { frexp((*bound + k) / limit, &shift); by = shift; }
    if (exponent + by < low) by = zero ? low + 32 - exponent : low - exponent;
    if (exponent + by > high) return TOO_LARGE;
    if (!by) break;
    if (zero) { *count = (i16)((*count >= JUMP ? *count : JUMP) + by); a->e[l][r] += (i32)by; continue; }
    i64 bytes = (m + 7) / 8;
    if (by > 64) by = 64;
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
  if (ldexp(most, (int)count) > LIMITS[width]) return;
  for (i64 j = count; j-- > 0;) redouble(n, width, m, planes + j * bytes, a->inside[r], (u32)a->salt);
  a->e[l][r] -= (i32)count;
  a->bound[l][r] = INFINITY;
}

static int NAME(shear)(const Args *a, const Code *c, i64 r, i64 m, const T *f, Buffer *made, const u8 *planes, int forward) {
  i64 l = c->lattice, width = a->width[l];
  void *n = (char *)a->n[l] + a->starts[r] * width;
  T largest = NAME(largest)(f, m), factor = c->factor ? (T)a->P[c->factor - 1] : (T)1;
  if (c->squared) largest = largest * largest;
  if (c->factor) largest = largest * (factor < 0 ? -factor : factor);  /* rounding is monotonous */
  double most = (double)largest;
  if (!(most < INFINITY)) return NOT_FINITE;
  i16 *count = a->counts + c->halving * a->rows + r;
  if (forward) {
    *count = 0;
    int wrong = NAME(room)(a, c, r, m, n, most, count, made + c->halving);
    if (wrong) {  /* nothing of this row has moved but its unit */
      i64 bytes = (m + 7) / 8;
      if (*count > 0 && *count < JUMP) NAME(unroom)(a, c, r, m, n, made[c->halving].data + made[c->halving].size - *count * bytes);
      else NAME(unroom)(a, c, r, m, n, 0);
      if (*count > 0 && *count < JUMP) made[c->halving].size -= *count * bytes;
      *count = 0;
      return wrong;
    }
  } else {
    double k = most / unit_of(a, c->unit, l, r) * (1.0 + 0x1p-20) + 2.0, *bound = a->bound[l] + r;
    if (*bound + k > LIMITS[width]) {
      *bound = peak(n, width, m);
      if (*bound + k > 2.0 * LIMITS[width] - 2.0) return LEFT_THE_LATTICE;
    }
    *bound += k;
  }
  T inverse = (T)(1.0 / unit_of(a, c->unit, l, r));
  if (most > 0.0) NAME(kick)(n, width, f, c, factor, inverse, (u32)a->salt, a->inside[r], m);
  if (!forward) NAME(unroom)(a, c, r, m, n, planes ? planes + a->offsets[c->halving * a->rows + r] : 0);
  return FINE;
}

#define TWO(op) { const T *x = R[c->a], *y = R[c->b]; T *z = R[c->to]; IVDEP ALL z[i] = x[i] op y[i]; }
#define ONE(op) { const T *x = R[c->a]; T p = (T)a->P[c->b], *z = R[c->to]; IVDEP ALL z[i] = x[i] op p; }

/* all instructions to one row; on failure, `reached` is the one that was not done */
static int NAME(row)(const Args *a, i64 r, T (*R)[ROW], Buffer *made, i64 *reached) {
  i64 m = a->starts[r + 1] - a->starts[r], tensor = a->owner[r], at = a->inside[r];
  int forward = (int)a->forward;
  for (i64 k = 0; k < a->codes; k++) {
    const Code *c = a->code + k;
    int wrong = FINE;
    switch (c->op) {
      case GRADIENT: NAME(load)(R[c->to], a->gradients[tensor], a->view, at, m); break;
      case VALUE: NAME(value)(R[c->to], (char *)a->n[c->lattice] + a->starts[r] * a->width[c->lattice],
        a->width[c->lattice], c->flag, (T)unit_of(a, c->unit, c->lattice, r), m); break;
      case MUL: TWO(*) break; case ADD: TWO(+) break; case SUB: TWO(-) break; case DIV: TWO(/) break;
      case MULP: ONE(*) break; case ADDP: ONE(+) break; case SUBP: ONE(-) break; case DIVP: ONE(/) break;
      case SQRT: { const T *x = R[c->a]; T *z = R[c->to]; IVDEP ALL z[i] = SQUARE_ROOT(x[i]); break; }
      case MAX0: { const T *x = R[c->a]; T *z = R[c->to]; IVDEP ALL z[i] = x[i] < 0 ? (T)0 : x[i]; break; }
      case ROOT: case QUOTIENT: {
        const void *n = (char *)a->n[c->lattice] + a->starts[r] * a->width[c->lattice];
        T u = (T)unit_of(a, c->unit, c->lattice, r);
        if (c->op == ROOT) NAME(root)(R[c->to], n, a->width[c->lattice], c->flag, u, (T)a->P[c->a], (T)a->P[c->b], m);
        else NAME(quotient)(R[c->to], n, a->width[c->lattice], c->flag, u, R[c->b], m);
        break;
      }
      case SHEAR: wrong = NAME(shear)(a, c, r, m, R[c->a], made, a->planes_in, forward); break;
      case SUM: {
        double s[ROW]; const T *x = R[c->a];
        ALL s[i] = (double)x[i];
        for (i64 i = m; i < ROW; i++) s[i] = 0;
        for (i64 h = ROW / 2; h; h /= 2) for (i64 i = 0; i < h; i++) s[i] += s[h + i];
        a->sums[c->b * a->rows + r] = s[0];
        break;
      }
    }
    if (wrong) { *reached = k; return wrong; }
  }
  return FINE;
}

static u64 NAME(run)(const Args *a, i64 first, i64 last, Buffer *made, volatile i64 *stop) {
  T R[REGISTERS][ROW];
  u64 total = 0;
  for (i64 r = first; r < last && !*stop; r++) {
    if (a->only && !a->only[r]) continue;
    i64 m = a->starts[r + 1] - a->starts[r], tensor = a->owner[r], at = a->inside[r];
    int wrong = FINE;
    if (a->looks) {
      double most; u32 index = (u32)a->starts[r];
      const char *g = (const char *)a->gradients[tensor] + at * a->view;
      total += (u64)(a->view == FLOAT ? sum_float((const float *)g, m, index, &most)
        : a->view == BF16 ? sum_bf16((const u16 *)g, m, index, &most) : sum_double((const double *)g, m, index, &most));
      if (!(most < INFINITY)) wrong = NOT_FINITE;
    }
    if (!wrong && a->shows) {
      char *n = (char *)a->n[a->q] + a->starts[r] * a->width[a->q];
      T u = (T)unit_of(a, a->q_before, a->q, r);
      if (!NAME(as_shown)(n, a->width[a->q], u, a->weights[tensor], a->view, at, m)) wrong = EDITED;
    }
    if (!wrong) {
      i64 reached = 0;
      wrong = NAME(row)(a, r, R, made, &reached);
      if (wrong) a->done[r] = (u8)(2 + reached);  /* in part: instructions before this one were done */
    }
    if (!wrong && a->shows) {
      char *n = (char *)a->n[a->q] + a->starts[r] * a->width[a->q];
      NAME(show)(n, a->width[a->q], (T)unit_of(a, a->q_after, a->q, r), a->weights[tensor], a->view, at, m);
    }
    if (wrong) {
#pragma omp critical
      { if (!*stop) { a->failed[0] = wrong; a->failed[1] = r; } *stop = 1; }
      break;
    }
    a->done[r] = 1;
  }
  return total;
}
#undef TWO
#undef ONE
#undef ALL
