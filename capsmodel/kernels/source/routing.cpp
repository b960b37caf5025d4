// Dynamic routing, forward and backward, without ever storing the votes of a batch.
//
// The lanes of a vector are samples: LANES of them are a group. A vote of a group is one Lanes, its
// matrix element is broadcast, so any number of classes and dimensions fills the lanes, the softmax
// over the classes needs no sum across lanes, and neither do agreements.
//
// Shape letters: B samples, G groups of them, I input capsules, P their dimensions, J classes,
// D their dimensions, L lanes, S = G L lanes of all groups, R passes. Arrays, with the last index
// fastest:
//
//   rows        [I][P][S]          the input capsules, zeros where the last group has no sample
//   weight      [I][J][P][D]
//   row arrays  [G][J * D][L]      sums s, poses v, their gradients: one row for each j and d
//   factors     [I][J][G][L]       coupling coefficients, gradients of logits
//
// A pass divides its work into tasks: a chunk of input capsules with a group. Every task sums into
// rows of its own, which are then added up in a fixed order. Chunks depend on shapes alone, so the
// results do not depend on the number of threads. Factors lie as the gradients of capsules and
// weights read them, one run after the other.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <type_traits>
#include <vector>

#include "lanes.hpp"
#include "routing_rows.hpp"
#include "routing_shape.hpp"
#include "squash.hpp"

namespace {

using namespace routing;

// Input capsules whose gradients are formed together: row arrays are read once for so many.
constexpr int INPUTS_AT_ONCE = 2;
// Rows of a capsule's gradient that are summed while the gradients of votes are formed; none where
// registers are few.
constexpr int ROWS_MEANWHILE = REGISTERS >= 32 ? 8 : 0;
// Input capsules whose votes are summed together in the first pass; they stay in the L1 cache.
constexpr Size PLAIN_VOTES_AT_ONCE = 8;
// Columns of votes that are summed in registers.
constexpr int COLUMNS = REGISTERS >= 32 ? 16 : 8;
// The rows of one j and d that a pass works on: the direction's, the votes', the sums'.
constexpr Size ROWS_AT_WORK = 3 * LANES, VOTES_ROW = LANES, SUMS_ROW = 2 * LANES;
// Groups between two sums across lanes of the gradient of weight; their rows fit the L1 cache.
constexpr int GROUPS_AT_ONCE = 8;

constexpr int SUCCESS = 0;
constexpr int OUT_OF_MEMORY = 1;

// ------------------------------------------------------------------------------------------ votes

// Adds votes of Width neighbouring columns d of one class: capsule, [P] rows of samples, times
// weight [P][D]. The weight of the next class is fetched meanwhile.
template <int Width>
inline void add_votes(const float* capsule, const float* weight, const Shape& shape,
                      Lanes (&votes)[Width]) {
  const Size capsule_dim = shape.capsule_dim, class_dim = shape.class_dim;
  const Size samples = shape.samples(), next_class = capsule_dim * class_dim;
  for (Size p = 0; p < capsule_dim; p++, capsule += samples, weight += class_dim) {
    const Lanes element = load(capsule);
    __builtin_prefetch(weight + next_class);
#pragma GCC unroll 16
    for (int d = 0; d < Width; d++) votes[d] = multiply_add(element, splat(weight[d]), votes[d]);
  }
}

// Of Width neighbouring columns of one class: adds the votes of the input capsule before, times its
// factor, to the sums, and puts the votes of this one in their place. Returns what these give to
// the agreement with the direction.
//
// work: [Width] rows at work. So the sums, which wait for memory, hide behind the products that
// make votes. Functions like this one are never inlined: alone they have enough registers for their
// addresses.
template <int Width>
[[gnu::noinline]] Lanes exchange_votes(const float* capsule, const float* weight,
                                       const float* factor, const Shape& shape, float* work) {
  Lanes block[Width] = {};
  add_votes<Width>(capsule, weight, shape, block);
  const Lanes share = load(factor);
  Lanes even = zeros(), odd = zeros();
#pragma GCC unroll 16
  for (int k = 0; k < Width; k++, work += ROWS_AT_WORK) {
    Lanes& agreement = k % 2 ? odd : even;
    agreement = multiply_add(block[k], load(work), agreement);
    store(work + SUMS_ROW, multiply_add(share, load(work + VOTES_ROW), load(work + SUMS_ROW)));
    store(work + VOTES_ROW, block[k]);
  }
  return even + odd;
}

// Rows at work of all classes: the direction's from [J * D][L], the others 0.
void begin_work(const float* direction, const Shape& shape, float* work) {
  for (Size row = 0; row < shape.rows(); row++, work += ROWS_AT_WORK) {
    store(work, load(direction + row * LANES));
    store(work + VOTES_ROW, zeros());
    store(work + SUMS_ROW, zeros());
  }
}

// sums [J * D][L]: what the rows at work hold, and the last votes times their factors [J][L].
void end_work(const float* work, const float* factors, const Shape& shape, float* sums) {
  for (Size row = 0; row < shape.rows(); row++, work += ROWS_AT_WORK) {
    const Lanes factor = load(factors + row / shape.class_dim * LANES);
    store(sums + row * LANES, multiply_add(factor, load(work + VOTES_ROW), load(work + SUMS_ROW)));
  }
}

// One pass over all votes: sums of votes times factors, where `decide(input, group, values)` makes
// factors [J][L] of the votes' agreements with `direction`, in place.
//
// direction: row array. partial: row arrays of all chunks, [chunks][G][J * D][L]. A task works on
// rows side by side in memory of its thread's own: for the paper's net 31 KB, which an L1 cache may
// hold. The rows of `partial` were last in another core's.
template <class Decide>
void sum_weighted_votes(const float* capsules, const float* weight, const float* direction,
                        const Shape& shape, const Division& division, int threads, float* partial,
                        Decide decide) {
  const Size work_size = shape.rows() * ROWS_AT_WORK, factors_size = shape.classes * LANES;
  const Floats scratch(threads * (work_size + factors_size));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (Size task = 0; task < division.tasks(); task++) {
    const Size group = task % division.groups, number = task / division.groups;
    const Size at = shape.rows_at(group, 0);
    float* work = scratch.get() + omp_get_thread_num() * (work_size + factors_size);
    float* factors = work + work_size;
    begin_work(direction + at, shape, work);
    std::fill_n(factors, factors_size, 0.0f);  // Before the first capsule is none.
    for (Size input = division.begin(number); input < division.end(number); input++) {
      const float* capsule = capsules + shape.capsule_at(input, group);
      for (Size j = 0; j < shape.classes; j++) {
        const float* matrix = weight + shape.weight_at(input, j);
        float* rows = work + j * shape.class_dim * ROWS_AT_WORK;
        Lanes agreement = zeros();
        in_blocks<COLUMNS>(shape.class_dim, [&](auto width, Size d) {
          agreement += exchange_votes<decltype(width)::value>(
              capsule, matrix + d, factors + j * LANES, shape, rows + d * ROWS_AT_WORK);
        });
        store(factors + j * LANES, agreement);
      }
      decide(input, group, factors);
    }
    end_work(work, factors, shape, partial + number * shape.row_array() + at);
  }
}

// Adds votes [Width][L] of `count` input capsules; `capsules` and `weight` begin with the first's.
template <int Width>
[[gnu::noinline]] void add_plain_votes_in_columns(const float* capsules, const float* weight,
                                                  const Shape& shape, Size count, bool fresh,
                                                  float* sums) {
  const Size next_capsule = shape.capsule_at(1, 0), next_weight = shape.weight_at(1, 0);
  Lanes block[Width];
#pragma GCC unroll 16
  for (int k = 0; k < Width; k++) block[k] = fresh ? zeros() : load(sums + k * LANES);
  for (Size n = 0; n < count; n++, capsules += next_capsule, weight += next_weight) {
    add_votes<Width>(capsules, weight, shape, block);
  }
#pragma GCC unroll 16
  for (int k = 0; k < Width; k++) store(sums + k * LANES, block[k]);
}

// The first pass, where all factors are equal: sums of the votes alone.
void sum_votes(const float* capsules, const float* weight, const Shape& shape,
               const Division& division, int threads, float* partial) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (Size task = 0; task < division.tasks(); task++) {
    const Size group = task % division.groups, number = task / division.groups;
    float* sums = partial + number * shape.row_array() + shape.rows_at(group, 0);
    const Size begin = division.begin(number), end = division.end(number);
    for (Size input = begin; input < end; input += PLAIN_VOTES_AT_ONCE) {
      const Size count = std::min(PLAIN_VOTES_AT_ONCE, end - input);
      for (Size j = 0; j < shape.classes; j++) {
        in_blocks<COLUMNS>(shape.class_dim, [&](auto width, Size d) {
          add_plain_votes_in_columns<decltype(width)::value>(
              capsules + shape.capsule_at(input, group), weight + shape.weight_at(input, j) + d,
              shape, count, input == begin, sums + (j * shape.class_dim + d) * LANES);
        });
      }
    }
  }
}

// ------------------------------------------------------------------------- the softmax, row by row

// Coupling coefficients [J][L] from logits, in place; a leak is one more logit, 0.
inline void softmax(float* logits, const Shape& shape) {
  Lanes largest = shape.leaky ? zeros() : load(logits);
  for (Size j = 0; j < shape.classes; j++) largest = larger(load(logits + j * LANES), largest);
  Lanes total = shape.leaky ? exponential(zeros() - largest) : zeros();
  for (Size j = 0; j < shape.classes; j++) {
    const Lanes value = exponential(load(logits + j * LANES) - largest);
    total += value;
    store(logits + j * LANES, value);
  }
  const Lanes share = splat(1.0f) / total;
  for (Size j = 0; j < shape.classes; j++) {
    store(logits + j * LANES, load(logits + j * LANES) * share);
  }
}

// Gradients of logits [J][L] from those of the coupling coefficients, in place; `couplings` are all
// factors of a pass.
inline void softmax_gradient(const float* couplings, Size input, Size group, const Shape& shape,
                             float* gradients) {
  const auto coupling = [&](Size j) { return load(couplings + shape.factors_at(input, j, group)); };
  Lanes mean = zeros();
  for (Size j = 0; j < shape.classes; j++) {
    mean = multiply_add(coupling(j), load(gradients + j * LANES), mean);
  }
  for (Size j = 0; j < shape.classes; j++) {
    store(gradients + j * LANES, coupling(j) * (load(gradients + j * LANES) - mean));
  }
}

// Copies factors [J][L] to where they are kept.
inline void keep_factors(const float* factors, Size input, Size group, const Shape& shape,
                         float* kept) {
  for (Size j = 0; j < shape.classes; j++) {
    store(kept + shape.factors_at(input, j, group), load(factors + j * LANES));
  }
}

// ----------------------------------------------------------------------------------------- squash

inline Lanes squared_length(const float* s, Size dim) {
  Lanes sum = zeros();
  for (Size d = 0; d < dim; d++) {
    const Lanes component = bounded(load(s + d * LANES));
    sum = multiply_add(component, component, sum);
  }
  return sum;
}

// Poses of one class [D][L]: s |s| / (1 + |s|^2). `give(d, component)` takes them.
template <class Give>
inline void squash(const float* s, Size dim, Give give) {
  const Lanes squared = squared_length(s, dim);
  const Lanes factor = squash_factor(squared);
  for (Size d = 0; d < dim; d++) give(d, bounded(load(s + d * LANES)) * factor);
}

// Gradient at s [D][L] from the gradient at squash(s).
inline void squash_gradient(const float* s, const float* gradient, Size dim, float* result) {
  Lanes product = zeros();
  for (Size d = 0; d < dim; d++) {
    const Lanes component = bounded(load(s + d * LANES));
    product = multiply_add(component, load(gradient + d * LANES), product);
  }
  const SquashGradient slopes(squared_length(s, dim), product);
  for (Size d = 0; d < dim; d++) {
    const Size at = d * LANES;
    store(result + at, slopes.at(load(s + at), load(gradient + at)));
  }
}

// --------------------------------------------------------------------------- between the passes

// sums = share * (sum of all chunks' partial sums) + bias, for one group and class.
inline void add_up(const float* partial, const float* bias, float share, const Shape& shape,
                   Size chunks, Size group, Size j, float* sums) {
  for (Size d = 0; d < shape.class_dim; d++) {
    const Size row = shape.rows_at(group, j) + d * LANES;
    Lanes total = load(partial + row);
    for (Size number = 1; number < chunks; number++) {
      total += load(partial + number * shape.row_array() + row);
    }
    total *= splat(share);
    if (bias) total += splat(bias[j * shape.class_dim + d]);
    store(sums + row, total);
  }
}

// Calls `settle(group, j)` for every group and class.
template <class Settle>
void for_each_class(const Shape& shape, int threads, Settle settle) {
  const Size tasks = shape.groups() * shape.classes;
#pragma omp parallel for num_threads(threads)
  for (Size task = 0; task < tasks; task++) settle(task / shape.classes, task % shape.classes);
}

// poses [B][J][D]: those of one group and class, from sums.
void write_poses(const float* sums, const Shape& shape, Size group, Size j, float* poses) {
  const Size valid = samples_of_group(shape, group);
  squash(sums + shape.rows_at(group, j), shape.class_dim, [&](Size d, Lanes component) {
    float* to = poses + group * LANES * shape.rows() + j * shape.class_dim + d;
    for (Size lane = 0; lane < valid; lane++) to[lane * shape.rows()] = component[lane];
  });
}

void route(const float* capsules, const float* weight, const float* bias, const Shape& shape,
           int threads, float* poses, float* sums, float* couplings) {
  const Division division(shape);
  const Floats partial(division.chunks * shape.row_array());
  const Floats pose_sums(shape.row_array());
  const CapsuleRows rows(capsules, shape, threads);
  for (Size pass = 1; pass <= shape.passes; pass++) {
    if (pass == 1) {
      sum_votes(rows.get(), weight, shape, division, threads, partial.get());
    } else {
      float* kept = couplings ? couplings + (pass - 2) * shape.factor_array() : nullptr;
      sum_weighted_votes(rows.get(), weight, pose_sums.get(), shape, division, threads,
                         partial.get(), [&](Size input, Size group, float* logits) {
                           softmax(logits, shape);
                           if (kept) keep_factors(logits, input, group, shape, kept);
                         });
    }
    const float share = pass == 1 ? shape.equal_share() : 1.0f;
    float* now = couplings ? sums + (pass - 1) * shape.row_array() : sums;
    for_each_class(shape, threads, [&](Size group, Size j) {
      add_up(partial.get(), bias, share, shape, division.chunks, group, j, now);
      if (pass == shape.passes) return write_poses(now, shape, group, j, poses);
      float* total = pose_sums.get() + shape.rows_at(group, j);
      squash(now + shape.rows_at(group, j), shape.class_dim, [&](Size d, Lanes component) {
        store(total + d * LANES, pass == 1 ? component : load(total + d * LANES) + component);
      });
    });
  }
}

// -------------------------------------------------------- gradients of capsules and weights

// The gradient of a vote is a sum of terms, each a factor [I][J][G][L] times a row array.
struct Term {
  const float* factors;
  const float* rows;
};

struct VoteGradients {
  std::vector<Term> terms;
  const float* constant;  // Row array: what the first pass gives, the same for every input capsule.
};

struct Gradients {
  float* capsules;  // As the capsules lie in memory, or null where nobody wants them.
  float* weight;    // [I][J][P][D], or null.
};

// A tile holds the gradients of votes [Inputs][GROUPS_AT_ONCE][TILE_ROWS][L] of one class: some of
// its columns d, for some groups.
constexpr int TILE_ROWS = 16;
constexpr Size TILE_OF_GROUP = TILE_ROWS * LANES;
constexpr Size TILE_OF_INPUT = GROUPS_AT_ONCE * TILE_OF_GROUP;
static_assert(TILE_ROWS % LANES == 0, "blocks of the gradient of weight end where a tile ends");

// Adds Terms terms to a group's rows in the tile; the first ones start from the constant. Adds what
// the rows then give to the first Height rows of the gradients of the input capsules, [P] rows of
// samples each: so the products hide that the terms wait for memory.
template <int Inputs, int Terms, int Height>
[[gnu::noinline]] void add_terms(const VoteGradients& gradients, Size first_term,
                                 const Shape& shape, Size input, Size group, Size j, Size d,
                                 Size columns, const float* weight, float* tile,
                                 float* capsule_gradients) {
  const Size at = shape.rows_at(group, j) + d * LANES;
  const Size samples = shape.samples(), next_capsule = shape.capsule_at(1, 0);
  const Size class_dim = shape.class_dim, next_weight = shape.weight_at(1, 0);
  Lanes factors[Inputs][Terms + 1];
  const float* rows[Terms + 1];
#pragma GCC unroll 4
  for (int term = 0; term < Terms; term++) {
    const Term& added = gradients.terms[first_term + term];
    rows[term] = added.rows + at;
#pragma GCC unroll 4
    for (int n = 0; n < Inputs; n++) {
      factors[n][term] = load(added.factors + shape.factors_at(input + n, j, group));
    }
  }
  Lanes products[Inputs][Height + 1];
#pragma GCC unroll 4
  for (int n = 0; n < Inputs; n++) {
#pragma GCC unroll 8
    for (int p = 0; p < Height; p++) {
      products[n][p] = load(capsule_gradients + n * next_capsule + p * samples);
    }
  }
  const float* before = first_term == 0 ? gradients.constant + at : tile;
  const Size before_of_input = first_term == 0 ? 0 : TILE_OF_INPUT;
  for (Size column = 0; column < columns; column++) {
    const Size row = column * LANES;
    Lanes sums[Inputs];
#pragma GCC unroll 4
    for (int n = 0; n < Inputs; n++) sums[n] = load(before + n * before_of_input + row);
#pragma GCC unroll 4
    for (int term = 0; term < Terms; term++) {
      const Lanes element = load_to_register(rows[term] + row);
#pragma GCC unroll 4
      for (int n = 0; n < Inputs; n++) {
        sums[n] = multiply_add(factors[n][term], element, sums[n]);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < Inputs; n++) {
      store(tile + n * TILE_OF_INPUT + row, sums[n]);
#pragma GCC unroll 8
      for (int p = 0; p < Height; p++) {
        const Lanes element = splat(weight[n * next_weight + p * class_dim + column]);
        products[n][p] = multiply_add(sums[n], element, products[n][p]);
      }
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < Inputs; n++) {
#pragma GCC unroll 8
    for (int p = 0; p < Height; p++) {
      store(capsule_gradients + n * next_capsule + p * samples, products[n][p]);
    }
  }
}

// Adds to Height rows of samples of a capsule's gradient what `columns` columns of votes
// [columns][L] give, with weight [P][D] from the first of these rows and columns on.
template <int Height>
[[gnu::noinline]] void add_capsule_gradient_in_rows(const float* rows, const float* weight,
                                                    const Shape& shape, Size columns,
                                                    float* result) {
  const Size samples = shape.samples(), class_dim = shape.class_dim;
  Lanes sums[Height];
#pragma GCC unroll 8
  for (int k = 0; k < Height; k++) sums[k] = load(result + k * samples);
  for (Size column = 0; column < columns; column++) {
    const Lanes element = load(rows + column * LANES);
#pragma GCC unroll 8
    for (int k = 0; k < Height; k++) {
      sums[k] = multiply_add(element, splat(weight[k * class_dim + column]), sums[k]);
    }
  }
#pragma GCC unroll 8
  for (int k = 0; k < Height; k++) store(result + k * samples, sums[k]);
}

// Gradients of the votes of one group for columns d .. d + columns - 1 of class j go to the tile;
// what they give to the gradients of the input capsules is added there, unless that is null.
template <int Inputs>
inline void vote_gradients(const VoteGradients& votes, const Shape& shape, Size input, Size group,
                           Size j, Size d, Size columns, const float* weight, float* tile,
                           float* capsule_gradients) {
  const Size count = static_cast<Size>(votes.terms.size());
  const bool meanwhile = capsule_gradients && shape.capsule_dim >= ROWS_MEANWHILE;
  const float* matrix = weight + shape.weight_at(input, j) + d;
  const auto add = [&](auto terms, Size first) {
    constexpr int TERMS = decltype(terms)::value;
    const bool last = first + TERMS == count;
    const auto function =
        meanwhile && last ? add_terms<Inputs, TERMS, ROWS_MEANWHILE> : add_terms<Inputs, TERMS, 0>;
    function(votes, first, shape, input, group, j, d, columns, matrix, tile, capsule_gradients);
  };
  if (count == 0) add(std::integral_constant<int, 0>{}, 0);
  in_blocks<4>(count, add);
  for (int n = 0; n < Inputs; n++) {
    float* rows = tile + n * TILE_OF_INPUT;
    std::fill(rows + columns * LANES, rows + TILE_OF_GROUP, 0.0f);
    if (!capsule_gradients) continue;
    float* result = capsule_gradients + shape.capsule_at(n, 0);
    in_blocks<8>(
        shape.capsule_dim,
        [&](auto height, Size p) {
          add_capsule_gradient_in_rows<decltype(height)::value>(
              rows, matrix + n * shape.weight_at(1, 0) + p * shape.class_dim, shape, columns,
              result + p * shape.samples());
        },
        meanwhile ? ROWS_MEANWHILE : 0);
  }
}

// Sums over the samples of `groups` groups of Height capsule elements times LANES / Height elements
// of vote gradients, [Height][LANES / Height]; `samples` floats lie between the capsule's rows.
template <int Height>
[[gnu::noinline]] Lanes products_over_samples(const float* capsules, Size samples,
                                              const float* rows, Size groups) {
  constexpr int WIDTH = LANES / Height;
  Lanes products[LANES] = {};
  for (Size group = 0; group < groups; group++) {
    Lanes gradients[WIDTH];
#pragma GCC unroll 16
    for (int k = 0; k < WIDTH; k++) gradients[k] = load_to_register(rows + k * LANES);
#pragma GCC unroll 4
    for (int p = 0; p < Height; p++) {
      const Lanes element = load_to_register(capsules + p * samples);
#pragma GCC unroll 16
      for (int k = 0; k < WIDTH; k++) {
        products[p * WIDTH + k] = multiply_add(element, gradients[k], products[p * WIDTH + k]);
      }
    }
    capsules += LANES;
    rows += TILE_OF_GROUP;
  }
  return sums_over_lanes(products);
}

inline void add_row(const float* sums, Size width, bool fresh, float* result) {
  if (fresh && width == 4) {
    std::memcpy(result, sums, 4 * sizeof(float));
    return;
  }
  for (Size k = 0; k < width; k++) result[k] = fresh ? sums[k] : result[k] + sums[k];
}

// Adds to the gradient [P][D] of weight, from its first column in the tile on, the sum over the
// samples of `groups` groups of capsule element p times the gradient of vote element d.
inline void add_weight_gradient(const float* capsules, const float* tile, const Shape& shape,
                                Size groups, Size columns, bool fresh, float* result) {
  in_blocks<4>(shape.capsule_dim, [&](auto height, Size p) {
    constexpr int HEIGHT = decltype(height)::value, WIDTH = LANES / HEIGHT;
    for (Size column = 0; column < columns; column += WIDTH) {
      float sums[LANES];
      store(sums, products_over_samples<HEIGHT>(capsules + p * shape.samples(), shape.samples(),
                                                tile + column * LANES, groups));
      const Size width = std::min<Size>(WIDTH, columns - column);
      for (int k = 0; k < HEIGHT; k++) {
        add_row(sums + k * WIDTH, width, fresh, result + (p + k) * shape.class_dim + column);
      }
    }
  });
}
static_assert(LANES % 4 == 0, "a block of 4 rows of weight is whole columns wide");

// Gradients of Inputs capsules and their weights.
//
// capsule_gradients: rows of samples [Inputs][P][S], or null. tile: scratch.
template <int Inputs>
void gradients_of_inputs(const float* capsules, const float* weight, const VoteGradients& votes,
                         const Shape& shape, Size input, float* tile, float* capsule_gradients,
                         float* weight_gradient) {
  const Size groups = shape.groups();
  if (capsule_gradients) std::fill_n(capsule_gradients, shape.capsule_at(Inputs, 0), 0.0f);
  for (Size j = 0; j < shape.classes; j++) {
    for (Size d = 0; d < shape.class_dim; d += TILE_ROWS) {
      const Size columns = std::min<Size>(TILE_ROWS, shape.class_dim - d);
      for (Size first = 0; first < groups; first += GROUPS_AT_ONCE) {
        const Size together = std::min<Size>(GROUPS_AT_ONCE, groups - first);
        for (Size k = 0; k < together; k++) {
          const Size group = first + k;
          vote_gradients<Inputs>(votes, shape, input, group, j, d, columns, weight,
                                 tile + k * TILE_OF_GROUP,
                                 capsule_gradients ? capsule_gradients + group * LANES : nullptr);
        }
        if (!weight_gradient) continue;
        for (int n = 0; n < Inputs; n++) {
          add_weight_gradient(capsules + shape.capsule_at(input + n, first),
                              tile + n * TILE_OF_INPUT, shape, together, columns, first == 0,
                              weight_gradient + shape.weight_at(input + n, j) + d);
        }
      }
    }
  }
}

void gradients_of_all_inputs(const float* capsules, const float* weight, const VoteGradients& votes,
                             const Shape& shape, int threads, const Gradients& wanted) {
  const bool in_place = !wanted.capsules || shape.are_rows();
  const Size tile_size = INPUTS_AT_ONCE * TILE_OF_INPUT;
  const Size scratch_size = tile_size + (in_place ? 0 : shape.capsule_at(INPUTS_AT_ONCE, 0));
  const Floats scratch(threads * scratch_size);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (Size task = 0; task < shape.inputs; task += INPUTS_AT_ONCE) {
    float* tile = scratch.get() + omp_get_thread_num() * scratch_size;
    const Size left = std::min<Size>(INPUTS_AT_ONCE, shape.inputs - task);
    in_blocks<INPUTS_AT_ONCE>(left, [&](auto inputs, Size number) {
      constexpr int INPUTS = decltype(inputs)::value;
      const Size input = task + number;
      float* rows = wanted.capsules;
      if (rows) rows = in_place ? rows + shape.capsule_at(input, 0) : tile + tile_size;
      gradients_of_inputs<INPUTS>(capsules, weight, votes, shape, input, tile, rows, wanted.weight);
      if (!in_place) give_capsule_gradients(rows, shape, input, INPUTS, wanted.capsules);
    });
  }
}

// ------------------------------------------------------------------------------- the passes, back

// Row array from gradient [B][J][D], zeros where there is no sample.
void pack_gradient(const float* gradient, const Shape& shape, int threads, float* rows) {
  for_each_class(shape, threads, [&](Size group, Size j) {
    const Size valid = samples_of_group(shape, group);
    const float* from = gradient + group * LANES * shape.rows() + j * shape.class_dim;
    for (Size d = 0; d < shape.class_dim; d++) {
      Lanes value = zeros();
      for (Size lane = 0; lane < valid; lane++) value[lane] = from[lane * shape.rows() + d];
      store(rows + shape.rows_at(group, j) + d * LANES, value);
    }
  });
}

// V [R - 1] row arrays: in each the sum of the poses of a pass and of all before it.
void add_poses_up(const float* sums, const Shape& shape, int threads, float* pose_sums) {
  for_each_class(shape, threads, [&](Size group, Size j) {
    const Size at = shape.rows_at(group, j);
    for (Size pass = 1; pass < shape.passes; pass++) {
      const Size now = (pass - 1) * shape.row_array() + at, before = now - shape.row_array();
      squash(sums + now, shape.class_dim, [&](Size d, Lanes component) {
        const Size row = d * LANES;
        store(pose_sums + now + row,
              pass == 1 ? component : component + load(pose_sums + before + row));
      });
    }
  });
}

// bias [J][D]: what a row array sums up to over all samples.
void sum_over_samples(const float* rows, const Shape& shape, float* bias) {
  for (Size row = 0; row < shape.rows(); row++) {
    Lanes total = zeros();
    for (Size group = 0; group < shape.groups(); group++) {
      total += load(rows + (group * shape.rows() + row) * LANES);
    }
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += total[lane];
    bias[row] = sum;
  }
}

void route_back(const float* gradient, const float* capsules, const float* weight,
                const float* sums, const float* couplings, const Shape& shape, bool detach,
                int threads, const Gradients& wanted, float* bias_gradient) {
  const Division division(shape);
  const Size rows = shape.row_array(), factors = shape.factor_array();
  const Size passes = shape.passes, agreeing = detach ? std::min<Size>(passes - 1, 1) : passes - 1;
  const CapsuleRows capsule_rows(capsules, shape, threads);
  const Floats pose_sums((passes - 1) * rows);
  const Floats pose_gradient(rows);  // At the poses of the pass at hand.
  const Floats sum_gradients(passes * rows);
  const Floats bias_rows(bias_gradient ? rows : 0);
  const Floats logit_gradients(agreeing * factors);
  const Floats partial(passes > 1 ? division.chunks * rows : 0);
  add_poses_up(sums, shape, threads, pose_sums.get());
  pack_gradient(gradient, shape, threads, pose_gradient.get());

  VoteGradients votes{{}, sum_gradients.get()};
  for (Size pass = passes; pass >= 1; pass--) {
    float* now = sum_gradients.get() + (pass - 1) * rows;
    for_each_class(shape, threads, [&](Size group, Size j) {
      const Size at = shape.rows_at(group, j);
      squash_gradient(sums + (pass - 1) * rows + at, pose_gradient.get() + at, shape.class_dim,
                      now + at);
      for (Size row = at; row < at + shape.class_dim * LANES; row += LANES) {
        const Lanes value = load(now + row);
        if (bias_gradient) {
          float* total = bias_rows.get() + row;
          store(total, pass == passes ? value : load(total) + value);
        }
        if (pass == 1) store(now + row, value * splat(shape.equal_share()));
      }
    });
    if (pass == 1) break;
    const float* coupling = couplings + (pass - 2) * factors;
    votes.terms.push_back({coupling, now});
    const Size agreed = passes - pass;  // Passes whose agreements have been gone through.
    if (agreed >= agreeing) continue;
    float* kept = logit_gradients.get() + agreed * factors;
    votes.terms.push_back({kept, pose_sums.get() + (pass - 2) * rows});
    sum_weighted_votes(capsule_rows.get(), weight, now, shape, division, threads, partial.get(),
                       [&](Size input, Size group, float* values) {
                         softmax_gradient(coupling, input, group, shape, values);
                         keep_factors(values, input, group, shape, kept);
                       });
    // A pose takes part in the agreements of all later passes.
    for_each_class(shape, threads, [&](Size group, Size j) {
      const Size at = shape.rows_at(group, j);
      for (Size row = at; row < at + shape.class_dim * LANES; row += LANES) {
        Lanes total = pass == passes ? zeros() : load(pose_gradient.get() + row);
        for (Size number = 0; number < division.chunks; number++) {
          total += load(partial.get() + number * rows + row);
        }
        store(pose_gradient.get() + row, total);
      }
    });
  }
  if (wanted.capsules || wanted.weight) {
    gradients_of_all_inputs(capsule_rows.get(), weight, votes, shape, threads, wanted);
  }
  if (bias_gradient) sum_over_samples(bias_rows.get(), shape, bias_gradient);
}

}  // namespace

// ------------------------------------------------------------------------------ what Python calls

extern "C" {

// Samples of a group, L.
std::int64_t routing_lanes() { return LANES; }

// Poses [B][J][D] from capsules, [I][P][B] in memory where the samples are last, else [B][I][P].
//
// bias: [J][D] or null. sums, couplings: what `routing_backward` needs, R row arrays and R - 1
// arrays of factors; null where nothing is to be kept.
int routing_forward(const float* capsules, const float* weight, const float* bias, float* poses,
                    float* sums, float* couplings, std::int64_t batch, std::int64_t inputs,
                    std::int64_t classes, std::int64_t capsule_dim, std::int64_t class_dim,
                    std::int64_t passes, int leaky, int samples_last, int threads) try {
  const Shape shape{batch,     inputs, classes,    capsule_dim,
                    class_dim, passes, leaky != 0, samples_last != 0};
  const Floats own_sums(sums ? 0 : shape.row_array());
  route(capsules, weight, bias, shape, useful_threads(shape, threads), poses,
        sums ? sums : own_sums.get(), couplings);
  return SUCCESS;
} catch (const std::bad_alloc&) {
  return OUT_OF_MEMORY;
}

// Gradients of capsules, which lie like these, weight [I][J][P][D] and bias [J][D] from that of the
// poses; those that are null are left out.
int routing_backward(const float* gradient, const float* capsules, const float* weight,
                     const float* sums, const float* couplings, float* capsule_gradient,
                     float* weight_gradient, float* bias_gradient, std::int64_t batch,
                     std::int64_t inputs, std::int64_t classes, std::int64_t capsule_dim,
                     std::int64_t class_dim, std::int64_t passes, int leaky, int detach,
                     int samples_last, int threads) try {
  const Shape shape{batch,     inputs, classes,    capsule_dim,
                    class_dim, passes, leaky != 0, samples_last != 0};
  route_back(gradient, capsules, weight, sums, couplings, shape, detach != 0,
             useful_threads(shape, threads), {capsule_gradient, weight_gradient}, bias_gradient);
  return SUCCESS;
} catch (const std::bad_alloc&) {
  return OUT_OF_MEMORY;
}

}  // extern "C"
