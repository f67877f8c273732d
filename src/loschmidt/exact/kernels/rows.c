/* A step's ops on rows of a flat buffer: an interpreter of short programs, compiled once.

   A thread takes a run of rows, and does all instructions to a row before the next one, so that memory is read once.
   Registers are rows of floats in the first cache. Every function here has a twin in eager.py with the same bits. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif
typedef int16_t i16; typedef int32_t i32; typedef int64_t i64; typedef uint8_t u8; typedef uint16_t u16;
typedef uint32_t u32; typedef uint64_t u64;
#define ROW 1024
#define MOST 8       /* lattices */
#define REGISTERS 12
#define JUMP 1000    /* see tape.py */
#ifdef __clang__
#define IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define IVDEP _Pragma("GCC ivdep")
#endif

enum { GRADIENT, VALUE, MUL, ADD, SUB, DIV, MULP, ADDP, SUBP, DIVP, SQRT, MAX0, SHEAR, SUM, STEP, MOMENTS, FOLLOW };
enum { FINE, EDITED, NOT_FINITE, TOO_LARGE, LEFT_THE_LATTICE, NO_MEMORY };

typedef struct { i64 op, to, a, b, lattice, unit, halving, flag, factor, squared, lattice2, unit2, halving2, flag2, factor2; } Code;
/* to, a, b: registers; b: a number in P where the op ends in P. VALUE: flag is added to n. SHEAR: `a` is added, a
   sign is in b, `halving` numbers those that record counts, flag is 1 where the rounding is dithered. SUM: of `a`, to
   sums number b. SHEAR of a register, or its square, times P[factor - 1], if there is a factor. STEP, MOMENTS, FOLLOW: see
   walk.py; a and b of STEP are numbers in P. */

typedef struct {
  /* how rows lie */
  i64 rows, threads, forward, codes, halvings, lattices, narrow, view, q, shows, looks, unused;
  const i64 *starts; const i32 *owner; const i64 *inside;
  const u8 *only;                       /* rows to do; 0: all */
  void *const *gradients, *const *weights;
  /* lattices */
  void *n[MOST]; i32 *e[MOST]; double *bound[MOST]; i64 width[MOST], spare[MOST];
  const Code *code; const double *P;
  const double *scales; const i64 *shifts; const i64 *unit_stride; const i64 *unit_at;   /* units, a tensor each */
  i64 q_before, q_after; u64 salt;
  /* results */
  i16 *counts;                          /* (halvings, rows) */
  const u8 *planes_in; const i64 *offsets;   /* (halvings, rows), on the way back */
  u8 *done, *moved;                     /* moved: shears, whether any of their counts is not 0 */
  double *sums; i64 *failed;  /* failed: kind, row, code */
  u64 checksum; i64 planes_bytes[16];
  void *made;                           /* planes, until `collect` */
} Args;

typedef struct { u8 *data; i64 size, room; } Buffer;

static const double LIMITS[9] = {[2] = 16384.0, [4] = 1073741824.0, [8] = 4611686018427387904.0};

static int reserve(Buffer *b, i64 more) {
  if (b->size + more <= b->room) return 1;
  i64 room = 2 * (b->size + more) + 4096;
  u8 *data = realloc(b->data, room);
  if (!data) return 0;
  b->data = data; b->room = room;
  return 1;
}
static inline double unit_of(const Args *a, i64 unit, i64 lattice, i64 row) {
  i64 k = a->unit_at[unit] + a->unit_stride[unit] * a->owner[row];
  return ldexp(a->scales[k], (int)(a->e[lattice][row] + a->shifts[k]));
}
static inline i64 exponent_of(const Args *a, i64 unit, i64 lattice, i64 row) {
  return a->e[lattice][row] + a->shifts[a->unit_at[unit] + a->unit_stride[unit] * a->owner[row]];
}

/* integers: the largest magnitude; halving, its bits to planes; and back */
#define INTEGERS(X) \
static double peak_##X(const X *n, i64 m) { \
  X high = 0, low = 0; \
  for (int i = 0; i < (int)m; i++) { high = n[i] > high ? n[i] : high; low = n[i] < low ? n[i] : low; } \
  double h = (double)high, l = -(double)low; return h > l ? h : l; } \
static void halve_##X(X *n, i64 m, u8 *plane) { \
  i64 i = 0; \
  for (; i + 64 <= m; i += 64) { \
    u64 bits = 0; \
    for (i64 j = 0; j < 64; j++) bits |= (u64)(n[i + j] & 1) << j; \
    for (i64 j = 0; j < 8; j++) plane[i / 8 + j] = (u8)(bits >> (8 * j)); } \
  memset(plane + i / 8, 0, (size_t)((m - i + 7) / 8)); \
  for (; i < m; i++) plane[i >> 3] |= (u8)((n[i] & 1) << (i & 7)); \
  for (i = 0; i < m; i++) n[i] >>= 1; } \
static void double_##X(X *n, i64 m, const u8 *plane) { \
  for (i64 i = 0; i < m; i++) n[i] = (X)(n[i] * 2 + ((plane[i >> 3] >> (i & 7)) & 1)); }
INTEGERS(i16) INTEGERS(i32) INTEGERS(i64)

static double peak(const void *n, i64 width, i64 m) {
  return width == 2 ? peak_i16(n, m) : width == 4 ? peak_i32(n, m) : peak_i64(n, m);
}
/* a number that is equidistributed over elements, and over steps: from the place in the tensor and the step's salt */
#define DRAW(i) ((u32)salt + ((u32)at + (u32)(i)) * 0x9E3779B9u)
/* 16 bits are few: there n + b is halved, b a bit that only place and step decide, so that no bias adds up */
static void dither(i16 *n, i64 m, i64 at, u32 salt, int sign) {
  IVDEP
  for (int i = 0; i < (int)m; i++) n[i] = (i16)(n[i] + sign * (i32)(DRAW(i) >> 31));
}
static void halve(void *n, i64 width, i64 m, u8 *plane, i64 at, u32 salt) {
  if (width == 2) dither(n, m, at, salt, 1);
  if (width == 2) halve_i16(n, m, plane); else if (width == 4) halve_i32(n, m, plane); else halve_i64(n, m, plane);
}
static void redouble(void *n, i64 width, i64 m, const u8 *plane, i64 at, u32 salt) {
  if (width == 2) { double_i16(n, m, plane); dither(n, m, at, salt, -1); } else if (width == 4) double_i32(n, m, plane); else double_i64(n, m, plane);
}

/* sums of words times odd numbers, and the largest magnitude: see digest.words_sum */
#define PHI 0x9E3779B97F4A7C15ull
static inline u32 bits_float(float x) { u32 b; memcpy(&b, &x, 4); return b; }
static inline float float_bits(u32 b) { float x; memcpy(&x, &b, 4); return x; }
static inline double double_bits(u64 b) { double x; memcpy(&x, &b, 8); return x; }
typedef u64 __attribute__((aligned(2))) word;
static u64 sum_words(const void *g, i64 bytes, u64 index, int each) {  /* each: elements in a word */
  const word *x = g; i64 whole = bytes / 8;
  u64 s = 0, w = (2 * index + 1) * PHI, step = 2 * (u64)each * PHI;
  for (int i = 0; i < (int)whole; i++) { s += x[i] * w; w += step; }
  if (bytes % 8) { u64 last = 0; memcpy(&last, x + whole, (size_t)(bytes % 8)); s += last * w; }
  return s; }
static double largest_float(const i32 *b, i64 m) {  /* as integers: NaN is more than infinity, which is more than all */
  i32 most = 0; for (int i = 0; i < (int)m; i++) { i32 y = b[i] & 0x7fffffff; most = y > most ? y : most; } return float_bits((u32)most); }
static double largest_bf16(const i16 *b, i64 m) {
  i16 most = 0; for (int i = 0; i < (int)m; i++) { i16 y = b[i] & 0x7fff; most = y > most ? y : most; } return float_bits((u32)most << 16); }
static double largest_double(const i64 *b, i64 m) {
  i64 most = 0; for (int i = 0; i < (int)m; i++) { i64 y = b[i] & 0x7fffffffffffffff; most = y > most ? y : most; } return double_bits((u64)most); }
static inline u16 bf16_of(float x) { u32 b = bits_float(x); return (u16)((b + 0x7fff + ((b >> 16) & 1)) >> 16); }

/* what is found of a row before it is touched; known: by the row before it, which had it fetched meanwhile */
typedef struct { int known, edited; double most; } Look;

enum { FLOAT = 4, DOUBLE = 8, BF16 = 2 };  /* views, by their bytes */

#define T float
#define INT i32
#define LARGEST 0x7fffffff
#ifdef __clang__
#define NEAREST(x) ((i32)rintf(x))
#else
#define NEAREST(x) __builtin_irintf(x)
#endif
#define SQUARE_ROOT sqrtf
#define NAME(x) x##_narrow
#include "row_ops.h"
#undef T
#undef INT
#undef LARGEST
#undef NEAREST
#undef SQUARE_ROOT
#undef NAME
#define T double
#define INT i64
#define LARGEST 0x7fffffffffffffffLL
#define NEAREST(x) ((i64)rint(x))
#define SQUARE_ROOT sqrt
#define NAME(x) x##_wide
#include "row_ops.h"

void run(Args *a) {
  i64 threads = a->threads < 1 ? 1 : a->threads, kinds = a->halvings;
  Buffer *made = calloc((size_t)(threads * (kinds ? kinds : 1)), sizeof(Buffer));
  if (!made) { a->failed[0] = NO_MEMORY; return; }
  u64 total = 0;
  volatile i64 stop = 0;
#pragma omp parallel for num_threads((int)threads) schedule(static, 1) reduction(+ : total)
  for (i64 t = 0; t < threads; t++) {
    i64 first = a->rows * t / threads, last = a->rows * (t + 1) / threads;
    total += a->narrow ? run_narrow(a, first, last, made + t * kinds, &stop) : run_wide(a, first, last, made + t * kinds, &stop);
  }
  a->checksum = total;
  for (i64 k = 0; k < kinds; k++) {
    a->planes_bytes[k] = 0;
    for (i64 t = 0; t < threads; t++) a->planes_bytes[k] += made[t * kinds + k].size;
  }
  a->made = made;
}

/* all planes, by halving and then by row, to `out` (0: to nowhere); frees them */
void collect(Args *a, u8 *out) {
  Buffer *made = a->made;
  i64 threads = a->threads < 1 ? 1 : a->threads;
  for (i64 k = 0; k < a->halvings; k++)
    for (i64 t = 0; t < threads; t++) {
      Buffer *b = made + t * a->halvings + k;
      if (out && b->size) { memcpy(out, b->data, (size_t)b->size); out += b->size; }
      free(b->data);
    }
  free(made);
  a->made = 0;
}
