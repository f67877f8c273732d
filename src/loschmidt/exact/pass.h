/* What all passes share; csource prints the rest. CHUNK is defined before. */
#include <stdint.h>
#include <string.h>
#include <math.h>
typedef int32_t i32; typedef int64_t i64; typedef uint32_t u32; typedef uint64_t u64; typedef uint16_t bf16;
#ifdef __clang__
#define IVDEP _Pragma("clang loop vectorize(assume_safety)")
#else
#define IVDEP _Pragma("GCC ivdep")
#endif
#define MAGIC 6755399441055744.0
#define MAGIC_BITS 0x4338000000000000ULL
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define MAD(a, b, c) __builtin_fma(a, b, c)  /* of whole numbers below 2**53: exact either way */
#define FLOOR_DIV(z, r) nearbyint(__builtin_fma(z, r, 0.5 * (r) - 0.5))  /* r = 1/d; (z + 1/2)/d - 1/2, rounded */
#else
#define MAD(a, b, c) ((a) * (b) + (c))
#define FLOOR_DIV(z, r) floor(((z) + 0.5) * (r))
#endif
static inline double as_double(u64 x) { double d; memcpy(&d, &x, 8); return d; }
static inline u64 bits_of(double d) { u64 x; memcpy(&x, &d, 8); return x; }
static inline i64 near_int(double d) { return (i64)(bits_of(d + MAGIC) - MAGIC_BITS); }
static inline double small_double(u64 x) { return as_double(x | 0x4330000000000000ULL) - 0x1p52; }
static inline u32 bits_float(float x) { u32 b; memcpy(&b, &x, 4); return b; }
static inline float float_bits(u32 b) { float x; memcpy(&x, &b, 4); return x; }
static inline double load_float(float x) { return x; }
static inline double load_double(double x) { return x; }
static inline double load_bf16(bf16 x) { return float_bits((u32)x << 16); }
static inline float store_float(double x) { return (float)x; }
static inline double store_double(double x) { return x; }
static inline bf16 store_bf16(double x) { u32 b = bits_float((float)x); return (b + 0x7fff + ((b >> 16) & 1)) >> 16; }
static inline u32 word_float(float x) { return bits_float(x); }
static inline u64 word_double(double x) { return bits_of(x); }
static inline u32 word_bf16(bf16 x) { return x; }
/* sums of words times odd numbers, and the largest magnitude: see digest.words_sum */
#define STRIDE 2654435762u
static i64 sum_float(const float *g, i64 m, u32 index, u64 *largest) {
  i64 s = 0; i32 most = 0, w = (i32)(index * STRIDE + 1u); const i32 *b = (const i32 *)g;
  for (i64 i = 0; i < m; i++) {
    i32 x = b[i], a = x & 0x7fffffff; most = a > most ? a : most; s += (i64)x * w; w += (i32)STRIDE; }
  u64 l = bits_of(float_bits(most)); if (l > *largest) *largest = l; return s; }
static i64 sum_bf16(const bf16 *g, i64 m, u32 index, u64 *largest) {
  i64 s = 0; i32 most = 0, w = (i32)(index * STRIDE + 1u);
  for (i64 i = 0; i < m; i++) {
    i32 x = (i32)((u32)g[i] << 16), a = x & 0x7fffffff; most = a > most ? a : most; s += (i64)x * w; w += (i32)STRIDE; }
  u64 l = bits_of(float_bits(most)); if (l > *largest) *largest = l; return s; }
static i64 sum_double(const double *g, i64 m, u32 index, u64 *largest) {
  i64 s = 0, most = 0; i32 w = (i32)(index * STRIDE + 1u); const i64 *b = (const i64 *)g;
  for (i64 i = 0; i < m; i++) {
    i64 x = b[i], a = x & 0x7fffffffffffffff; most = a > most ? a : most;
    s += (i64)(i32)x * w + (x >> 32) * (w ^ 0x55555554); w += (i32)STRIDE; }
  if ((u64)most > *largest) *largest = most; return s; }
typedef struct {
  i64 first, last, lanes, size, pieces, threads, tile, final;
  const i64 *starts; void *const *gradients; void *const *weights;
  void *lattices[8]; double *heads[2]; const double *P; u64 *found; double *squares;
} Args;
/* the sum of a chunk, its halves folded onto each other; and of all chunks: as digest.chunk_sums and digest.folded */
static void fold(double *s, i64 m, double *out) {
  for (i64 i = m; i < CHUNK; i++) s[i] = 0;
  for (i64 n = CHUNK / 2; n; n /= 2) for (i64 i = 0; i < n; i++) s[i] += s[n + i];
  *out = s[0];
}
static void whole(double *s, i64 n) {
  double part[CHUNK];
  for (i64 k; n > 1; n = k) {
    k = 0;
    for (i64 c = 0; c < n; c += CHUNK) {
      i64 m = n - c < CHUNK ? n - c : CHUNK;
      memcpy(part, s + c, m * sizeof *s); fold(part, m, s + k++);
    }
  }
}
