// A vector of floats: what the kernels share.
//
// Written with the vector extension of GCC and Clang, so that one source serves AVX-512, AVX2, NEON
// and plain processors alike. A product followed by a sum is contracted to one instruction.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define HAVE_SHUFFLEVECTOR 1
#endif
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int REGISTERS = 16;
#elif defined(__ARM_NEON)
constexpr int LANES = 4;
constexpr int REGISTERS = 32;
#else
constexpr int LANES = 4;
constexpr int REGISTERS = 16;
#endif

constexpr int LANES_BYTES = LANES * static_cast<int>(sizeof(float));

typedef float Lanes __attribute__((vector_size(LANES_BYTES)));
typedef std::int32_t Integers __attribute__((vector_size(LANES_BYTES)));
// The same in memory, which need not be aligned.
typedef float StoredLanes __attribute__((vector_size(LANES_BYTES), aligned(4), may_alias));

static_assert(sizeof(float) == 4 && std::numeric_limits<float>::is_iec559, "floats are IEEE 754");
static_assert((LANES & (LANES - 1)) == 0, "the trees of sums and exchanges halve the lanes");

inline Lanes load(const float* from) { return *reinterpret_cast<const StoredLanes*>(from); }

inline void store(float* to, Lanes value) { *reinterpret_cast<StoredLanes*>(to) = value; }

// The first `count` lanes from memory, the others 0.
inline Lanes load_some(const float* from, int count) {
  if (count == LANES) return load(from);
  Lanes value{};
  for (int lane = 0; lane < count; lane++) value[lane] = from[lane];
  return value;
}

inline void store_some(float* to, Lanes value, int count) {
  if (count == LANES) return store(to, value);
  for (int lane = 0; lane < count; lane++) to[lane] = value[lane];
}

// Loads `from` once: GCC would otherwise repeat a load in each of several products.
inline Lanes load_to_register(const float* from) {
  Lanes value = load(from);
#if defined(__AVX512F__)
  __asm__("" : "+v"(value));
#elif defined(__x86_64__) && defined(__AVX__)
  __asm__("" : "+x"(value));
#endif
  return value;
}

// All lanes hold `value`.
inline Lanes splat(float value) { return value - Lanes{}; }

inline Lanes zeros() { return Lanes{}; }

inline Lanes multiply_add(Lanes a, Lanes b, Lanes sum) { return a * b + sum; }

inline Lanes where(Integers condition, Lanes yes, Lanes no) { return condition ? yes : no; }

// Where one of them is NaN the result is `a` or `b`: the caller notices NaN elsewhere.
inline Lanes larger(Lanes a, Lanes b) { return where(a > b, a, b); }

inline Lanes square_root(Lanes value) {
  for (int lane = 0; lane < LANES; lane++) value[lane] = std::sqrt(value[lane]);
  return value;
}

inline Integers bits(Lanes value) {
  Integers result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

inline Lanes from_bits(Integers value) {
  Lanes result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// e^x within 2 units in the last place; 0 below -87, infinite above 88, NaN stays NaN.
//
// x = n ln 2 + r with |r| <= ln(2)/2, where a Taylor polynomial of degree 7 errs by 5e-9.
inline Lanes exponential(Lanes x) {
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
  const Lanes shifter = splat(12582912.0f);
  const Lanes shifted = multiply_add(x, splat(1.44269504f), shifter);
  const Lanes n = shifted - shifter;
  // ln 2 in two parts; n times the first part is exact.
  Lanes r = multiply_add(n, splat(-0.693359375f), x);
  r = multiply_add(n, splat(2.12194440e-4f), r);
  Lanes sum = splat(1.0f / 5040);
  sum = multiply_add(sum, r, splat(1.0f / 720));
  sum = multiply_add(sum, r, splat(1.0f / 120));
  sum = multiply_add(sum, r, splat(1.0f / 24));
  sum = multiply_add(sum, r, splat(1.0f / 6));
  sum = multiply_add(sum, r, splat(0.5f));
  sum = multiply_add(sum, r, splat(1.0f));
  sum = multiply_add(sum, r, splat(1.0f));
  // 2^n has exponent n + 127; its bits are wrong where n is too large, which is mended below.
  const Lanes power = from_bits((bits(shifted) - bits(shifter) + 127) << 23);
  const Lanes result = where(x < splat(-87.0f), zeros(), sum * power);
  return where(x > splat(88.0f), splat(std::numeric_limits<float>::infinity()), result);
}

// --- Exchanges between two vectors, lane by lane -------------------------------------------------
//
// `Distance` is a power of 2 below LANES; lanes fall into those with (lane & Distance) == 0 and
// the others.

namespace lanes_detail {

#if defined(HAVE_SHUFFLEVECTOR)
template <int Distance, std::size_t... Lane>
inline Lanes even_parts(Lanes a, Lanes b, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(
      a, b, ((Lane & Distance) ? LANES + int(Lane) - Distance : int(Lane))...);
}

template <int Distance, std::size_t... Lane>
inline Lanes odd_parts(Lanes a, Lanes b, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(
      a, b, ((Lane & Distance) ? LANES + int(Lane) : int(Lane) + Distance)...);
}

template <int Distance, std::size_t... Lane>
inline Lanes own_parts(Lanes a, Lanes b, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(
      a, b, ((Lane & Distance) ? LANES + int(Lane) : int(Lane))...);
}

template <int Distance, std::size_t... Lane>
inline Lanes other_parts(Lanes a, Lanes b, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(
      a, b, ((Lane & Distance) ? LANES + int(Lane) - Distance : int(Lane) + Distance)...);
}
#else
template <int Distance, std::size_t... Lane>
inline Lanes even_parts(Lanes a, Lanes b, std::index_sequence<Lane...>) {
  return Lanes{((Lane & Distance) ? b[Lane - Distance] : a[Lane])...};
}

template <int Distance, std::size_t... Lane>
inline Lanes odd_parts(Lanes a, Lanes b, std::index_sequence<Lane...>) {
  return Lanes{((Lane & Distance) ? b[Lane] : a[(Lane + Distance) % LANES])...};
}

template <int Distance, std::size_t... Lane>
inline Lanes own_parts(Lanes a, Lanes b, std::index_sequence<Lane...>) {
  return Lanes{((Lane & Distance) ? b[Lane] : a[Lane])...};
}

template <int Distance, std::size_t... Lane>
inline Lanes other_parts(Lanes a, Lanes b, std::index_sequence<Lane...>) {
  return Lanes{((Lane & Distance) ? b[Lane - Distance] : a[(Lane + Distance) % LANES])...};
}
#endif

using AllLanes = std::make_index_sequence<LANES>;

template <int Distance>
inline void transpose_from(Lanes (&rows)[LANES]) {
#pragma GCC unroll 16
  for (int row = 0; row < LANES; row++) {
    if (row & Distance) continue;
    const Lanes first = rows[row], second = rows[row + Distance];
    rows[row] = even_parts<Distance>(first, second, AllLanes{});
    rows[row + Distance] = odd_parts<Distance>(first, second, AllLanes{});
  }
  if constexpr (2 * Distance < LANES) transpose_from<2 * Distance>(rows);
}

template <int Distance>
inline Lanes sums_from(Lanes (&terms)[LANES]) {
  // Of every pair the first's sums end in the lanes without `Distance`, the second's in the rest.
#pragma GCC unroll 16
  for (int term = 0; term < LANES; term += 2 * Distance) {
    const Lanes first = terms[term], second = terms[term + Distance];
    terms[term] = own_parts<Distance>(first, second, AllLanes{}) +
                      other_parts<Distance>(first, second, AllLanes{});
  }
  if constexpr (2 * Distance < LANES) return sums_from<2 * Distance>(terms);
  return terms[0];
}

}  // namespace lanes_detail

// A square of floats turned about its diagonal, in place.
inline void transpose(Lanes (&rows)[LANES]) { lanes_detail::transpose_from<1>(rows); }

// Lane k of the result is the sum over all lanes of terms[k]; `terms` is used up.
inline Lanes sums_over_lanes(Lanes (&terms)[LANES]) { return lanes_detail::sums_from<1>(terms); }

// --- bf16: the upper half of a float -------------------------------------------------------------

typedef std::uint16_t Halves __attribute__((vector_size(LANES_BYTES / 2)));
typedef std::uint16_t StoredHalves
  __attribute__((vector_size(LANES_BYTES / 2), aligned(2), may_alias));

inline Halves load_halves(const std::uint16_t* from) {
  return *reinterpret_cast<const StoredHalves*>(from);
}

inline void store_halves(std::uint16_t* to, Halves value) {
  *reinterpret_cast<StoredHalves*>(to) = value;
}

// The nearest bf16, the even one of two that are equally near; NaN stays NaN. Where the processor
// has an instruction for it, numbers below the smallest normal one (1.2e-38) become 0.
inline Halves to_bf16(Lanes value) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
  Halves result;
  static_assert(sizeof rounded == sizeof result, "16 bf16 numbers");
  std::memcpy(&result, &rounded, sizeof result);
  return result;
#else
  const Integers whole = bits(value);
  const Integers odd = (whole >> 16) & 1;
  const Integers nearest = (whole + 0x7fff + odd) >> 16;
  const Integers quiet = (whole >> 16) | 0x40;  // rounding could turn NaN into infinity
  return __builtin_convertvector((value == value) ? nearest : quiet, Halves);
#endif
}

inline Lanes from_bf16(Halves value) {
  typedef std::uint32_t Unsigned __attribute__((vector_size(LANES_BYTES)));
  const Unsigned upper = __builtin_convertvector(value, Unsigned) << 16;
  Lanes result;
  std::memcpy(&result, &upper, sizeof result);
  return result;
}
