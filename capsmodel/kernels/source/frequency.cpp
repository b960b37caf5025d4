// The transforms of the frequency route of a convolution; capsmodel/convolution/frequency.py says
// what they are for and multiplies between them.
//
// A convolution of stride 2 is a sum over four phases (row parity, column parity) of convolutions
// of stride 1, each of SIDE x SIDE features with TAPS x TAPS weights. In the frequency domain each
// is a product frequency by frequency. Of real numbers half of the frequencies say all: 4 are real,
// HALF * HALF * 2 - 2 complex. A complex product takes 3 real ones:
//
//   o = x * conj(w):  p1 = Re x Re w,  p2 = Im x Im w,  p3 = (Re x + Im x)(Re w - Im w)
//                     Re o = p1 + p2,  Im o = p3 - p1 + p2
//
// so a spectrum is kept as PLANES real planes: of a complex frequency the three operands, or the
// three products. "Analyse" goes from a square of positions to planes, "synthesise" back; for each
// of the three kinds the one is the transpose of the other, so each serves both a forward pass and
// the backward pass of its counterpart.
//
// One Lanes holds the same element of neighbouring channels (features, weights) or of neighbouring
// samples (products): no transform mixes lanes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "lanes.hpp"

namespace {

constexpr int KERNEL_SIDE = 9;
constexpr int TAPS = (KERNEL_SIDE + 1) / 2;  // of a phase
constexpr int PHASES = 4;
constexpr int RUN = 128;  // channels or samples of all planes that a thread holds at once

// SIDE, the side of a phase, is a constant of the compiler's: a library for each.
static_assert(SIDE % 2 == 0, "the cosine at SIDE / 2 is assumed to stand alone");
constexpr int HALF = SIDE / 2;
constexpr int PLANES = 4 + 3 * (SIDE * SIDE - 4) / 2;  // of 4 real frequencies, and complex ones

enum Status { DONE = 0, OUT_OF_MEMORY = 1 };

// ---------------------------------------------------------------------------------- frequencies

// The real discrete Fourier transform: cosines of frequency 0 to HALF, then sines of frequency 1 to
// HALF - 1. Cosines are even about position HALF and sines odd, so half of the positions say all.
struct Waves {
  float cosine[HALF + 1][HALF + 1];  // [position][frequency], and the other way round
  float sine[HALF][HALF];

  Waves() {
    const double turn = 2 * std::acos(-1.0) / SIDE;
    for (int position = 0; position <= HALF; position++) {
      for (int k = 0; k <= HALF; k++) {
        cosine[position][k] = std::cos(turn * (k * position % SIDE));
        if (k < HALF && position < HALF) {
          sine[position][k] = std::sin(turn * (k * position % SIDE));
        }
      }
    }
  }
};

const Waves WAVES;

// ------------------------------------------------------------------- kinds of spectra, by operand

// How a complex frequency stands in three planes. `join` is the transpose of `split`.

struct Features {
  static constexpr bool INVERSE = false;
  static void split(Lanes re, Lanes im, Lanes* planes) {
    planes[0] = re;
    planes[1] = im;
    planes[2] = re + im;
  }
  static void join(const Lanes* planes, Lanes& re, Lanes& im) {
    re = planes[0] + planes[2];
    im = planes[1] + planes[2];
  }
};

struct Weights {
  static constexpr bool INVERSE = false;
  static void split(Lanes re, Lanes im, Lanes* planes) {
    planes[0] = re;
    planes[1] = im;
    planes[2] = re - im;
  }
  static void join(const Lanes* planes, Lanes& re, Lanes& im) {
    re = planes[0] + planes[2];
    im = planes[1] - planes[2];
  }
};

// Here `join` is the way forward, and the weight is that of the inverse transform: every complex
// frequency stands for itself and for its conjugate.
struct Products {
  static constexpr bool INVERSE = true;
  static void split(Lanes re, Lanes im, Lanes* planes) {
    planes[0] = re - im;
    planes[1] = re + im;
    planes[2] = im;
  }
  static void join(const Lanes* planes, Lanes& re, Lanes& im) {
    re = planes[0] + planes[1];
    im = planes[2] - planes[0] + planes[1];
  }
};

using ::load;
using ::store;

inline Lanes load(const std::uint16_t* from) { return from_bf16(load_halves(from)); }

inline void store(std::uint16_t* to, Lanes value) { store_halves(to, to_bf16(value)); }

// Calls `real`, `edge` or `pair` for every frequency, in the order of the planes. Rows and columns
// count waves: k is a cosine, HALF + k the sine of the same frequency.
template <class Real, class Edge, class Pair>
inline void for_each_frequency(Real real, Edge edge, Pair pair) {
  int plane = 0;
  for (int k = 0; k <= HALF; k += HALF) {
    for (int l = 0; l <= HALF; l += HALF) real(plane++, k, l);
  }
  for (int k = 0; k <= HALF; k += HALF) {
    for (int l = 1; l < HALF; l++, plane += 3) edge(plane, k, l, k, HALF + l);
  }
  for (int l = 0; l <= HALF; l += HALF) {
    for (int k = 1; k < HALF; k++, plane += 3) edge(plane, k, l, HALF + k, l);
  }
  for (int k = 1; k < HALF; k++) {
    for (int l = 1; l < HALF; l++, plane += 6) pair(plane, k, l, HALF + k, HALF + l);
  }
}

// Planes from waves [SIDE][SIDE]; plane number p begins at planes + p * RUN.
template <class Kind, class Stored>
inline void waves_to_planes(const Lanes (&z)[SIDE][SIDE], Stored* planes) {
  constexpr float ONCE = Kind::INVERSE ? 1.0f / (SIDE * SIDE) : 1.0f;
  constexpr float TWICE = Kind::INVERSE ? 2.0f / (SIDE * SIDE) : 1.0f;
  const auto split = [&](int plane, Lanes re, Lanes im) {
    Lanes operands[3];
    Kind::split(TWICE * re, TWICE * im, operands);
    for (int i = 0; i < 3; i++) store(planes + (plane + i) * RUN, operands[i]);
  };
  for_each_frequency([&](int plane, int k, int l) { store(planes + plane * RUN, ONCE * z[k][l]); },
                     [&](int plane, int k, int l, int sine_k, int sine_l) {
                       split(plane, z[k][l], -z[sine_k][sine_l]);
                     },
                     [&](int plane, int k, int l, int sine_k, int sine_l) {
                       const Lanes cc = z[k][l], cs = z[k][sine_l], sc = z[sine_k][l],
                                   ss = z[sine_k][sine_l];
                       split(plane, cc - ss, -sc - cs);     // frequency (k, l)
                       split(plane + 3, cc + ss, cs - sc);  // frequency (k, -l)
                     });
}

// The transpose of `waves_to_planes`.
template <class Kind, class Stored>
inline void planes_to_waves(const Stored* planes, Lanes (&z)[SIDE][SIDE]) {
  constexpr float ONCE = Kind::INVERSE ? 1.0f / (SIDE * SIDE) : 1.0f;
  constexpr float TWICE = Kind::INVERSE ? 2.0f / (SIDE * SIDE) : 1.0f;
  const auto join = [&](int plane, Lanes& re, Lanes& im) {
    Lanes operands[3];
    for (int i = 0; i < 3; i++) operands[i] = load(planes + (plane + i) * RUN);
    Kind::join(operands, re, im);
  };
  for_each_frequency([&](int plane, int k, int l) { z[k][l] = ONCE * load(planes + plane * RUN); },
                     [&](int plane, int k, int l, int sine_k, int sine_l) {
                       Lanes re, im;
                       join(plane, re, im);
                       z[k][l] = TWICE * re;
                       z[sine_k][sine_l] = -TWICE * im;
                     },
                     [&](int plane, int k, int l, int sine_k, int sine_l) {
                       Lanes re, im, mirrored_re, mirrored_im;
                       join(plane, re, im);
                       join(plane + 3, mirrored_re, mirrored_im);
                       z[k][l] = TWICE * (re + mirrored_re);
                       z[sine_k][sine_l] = TWICE * (mirrored_re - re);
                       z[sine_k][l] = -TWICE * (im + mirrored_im);
                       z[k][sine_l] = TWICE * (mirrored_im - im);
                     });
}

// ------------------------------------------------------------------------- separable transforms

// Waves [SIDE] of a line [EXTENT], which is 0 beyond its extent.
template <int EXTENT>
inline void line_to_waves(const Lanes (&line)[EXTENT], Lanes (&wave)[SIDE]) {
  Lanes cosines[HALF + 1], sines[HALF];
  for (int k = 0; k <= HALF; k++) cosines[k] = line[0];
  for (int k = 1; k < HALF; k++) sines[k] = Lanes{};
#pragma GCC unroll 16
  for (int position = 1; position <= HALF && position < EXTENT; position++) {
    const int mirrored = SIDE - position;
    const bool folded = mirrored != position && mirrored < EXTENT;
    const Lanes even = folded ? line[position] + line[mirrored] : line[position];
    const Lanes odd = folded ? line[position] - line[mirrored] : line[position];
#pragma GCC unroll 16
    for (int k = 0; k <= HALF; k++) cosines[k] += even * WAVES.cosine[position][k];
    if (position == HALF) continue;  // where every sine is 0
#pragma GCC unroll 16
    for (int k = 1; k < HALF; k++) sines[k] += odd * WAVES.sine[position][k];
  }
  for (int k = 0; k <= HALF; k++) wave[k] = cosines[k];
  for (int k = 1; k < HALF; k++) wave[HALF + k] = sines[k];
}

// The transpose of `line_to_waves`.
template <int EXTENT>
inline void waves_to_line(const Lanes (&wave)[SIDE], Lanes (&line)[EXTENT]) {
  Lanes evens[HALF + 1], odds[HALF];
  for (int position = 0; position <= HALF; position++) evens[position] = wave[0];
  for (int position = 1; position < HALF; position++) odds[position] = Lanes{};
#pragma GCC unroll 16
  for (int k = 1; k <= HALF; k++) {
#pragma GCC unroll 16
    for (int position = 0; position <= HALF && position < EXTENT; position++) {
      evens[position] += wave[k] * WAVES.cosine[k][position];
    }
    if (k == HALF) continue;
#pragma GCC unroll 16
    for (int position = 1; position < HALF && position < EXTENT; position++) {
      odds[position] += wave[HALF + k] * WAVES.sine[k][position];
    }
  }
  for (int position = 0; position < EXTENT; position++) {
    const int mirrored = SIDE - position;
    if (position == 0 || position == HALF) {
      line[position] = evens[position];
    } else {
      line[position] =
          position < HALF ? evens[position] + odds[position] : evens[mirrored] - odds[mirrored];
    }
  }
}

// Waves [SIDE][SIDE] of a square [EXTENT][EXTENT], which is 0 beyond its extent.
template <int EXTENT>
inline void square_to_waves(const Lanes (&square)[EXTENT][EXTENT], Lanes (&z)[SIDE][SIDE]) {
  Lanes rows[EXTENT][SIDE];
  for (int row = 0; row < EXTENT; row++) line_to_waves<EXTENT>(square[row], rows[row]);
  for (int l = 0; l < SIDE; l++) {
    Lanes column[EXTENT], wave[SIDE];
    for (int row = 0; row < EXTENT; row++) column[row] = rows[row][l];
    line_to_waves<EXTENT>(column, wave);
    for (int k = 0; k < SIDE; k++) z[k][l] = wave[k];
  }
}

// The transpose of `square_to_waves`.
template <int EXTENT>
inline void waves_to_square(const Lanes (&z)[SIDE][SIDE], Lanes (&square)[EXTENT][EXTENT]) {
  Lanes rows[EXTENT][SIDE];
  for (int l = 0; l < SIDE; l++) {
    Lanes wave[SIDE], column[EXTENT];
    for (int k = 0; k < SIDE; k++) wave[k] = z[k][l];
    waves_to_line<EXTENT>(wave, column);
    for (int row = 0; row < EXTENT; row++) rows[row][l] = column[row];
  }
  for (int row = 0; row < EXTENT; row++) waves_to_line<EXTENT>(rows[row], square[row]);
}

// ------------------------------------------------------------------------- runs of all planes

// How many of `total` lanes the run holds that begins with `first`.
inline int run_length(std::int64_t total, std::int64_t first) {
  return static_cast<int>(std::min<std::int64_t>(RUN, total - first));
}

// A few neighbouring lanes of every plane, gathered so that memory sees long stretches only:
// planes lie a power of 2 apart, where a cache keeps no more than a handful of lines.
template <class Stored>
class Run {
 public:
  Run() : buffer_(new (std::align_val_t{64}, std::nothrow) Stored[PLANES * RUN]) {}
  ~Run() { operator delete[](buffer_, std::align_val_t{64}); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  bool allocated() const { return buffer_ != nullptr; }

  void read(const Stored* planes, std::int64_t stride, int length) {
    for (int plane = 0; plane < PLANES; plane++) {
      copy(planes + plane * stride, buffer_ + plane * RUN, length);
    }
  }

  // Planes are larger than the caches: what is written does not come by them where that can be
  // said, which halves the traffic.
  void write(Stored* planes, std::int64_t stride, int length) const {
    for (int plane = 0; plane < PLANES; plane++) {
      const Stored* from = buffer_ + plane * RUN;
      Stored* to = planes + plane * stride;
#if defined(__AVX512F__)
      constexpr int LINE = 64 / sizeof(Stored);
      if (length == RUN && reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
        for (int i = 0; i < RUN; i += LINE) {
          _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_load_si512(from + i));
        }
        continue;
      }
#endif
      copy(from, to, length);
    }
  }

  template <class Kind, int EXTENT>
  void analyse(const Lanes (&square)[EXTENT][EXTENT], int offset) {
    Lanes z[SIDE][SIDE];
    square_to_waves<EXTENT>(square, z);
    waves_to_planes<Kind>(z, buffer_ + offset);
  }

  template <class Kind, int EXTENT>
  void synthesise(int offset, Lanes (&square)[EXTENT][EXTENT]) const {
    Lanes z[SIDE][SIDE];
    planes_to_waves<Kind>(buffer_ + offset, z);
    waves_to_square<EXTENT>(z, square);
  }

 private:
  static void copy(const Stored* from, Stored* to, int length) {
    // Of a constant length it is a few instructions, no call.
    if (length == RUN) {
      std::memcpy(to, from, RUN * sizeof(Stored));
    } else {
      std::memcpy(to, from, length * sizeof(Stored));
    }
  }

  Stored* buffer_;
};

// Calls `work(task, run)` for every task, on several threads; each has a run of its own.
template <class Stored, class Work>
int for_each_task(std::int64_t tasks, int threads, Work work) {
  bool failed = false;
#pragma omp parallel num_threads(threads) reduction(|| : failed)
  {
    Run<Stored> run;
    failed = !run.allocated();
#pragma omp for schedule(static)
    for (std::int64_t task = 0; task < tasks; task++) {
      if (!failed) work(task, run);
    }
  }
  return failed ? OUT_OF_MEMORY : DONE;
}

// ------------------------------------------------------------------------------------- features

// Features [batch][2 SIDE][2 SIDE][channels]; planes [PLANES][batch][phase][channels].
struct FeatureShape {
  std::int64_t batch;
  std::int64_t channels;

  // The first channel of a position (row, column) of a phase.
  template <class Pointer>
  Pointer at(Pointer features, std::int64_t image, int phase, int row, int column) const {
    const int full_row = 2 * row + phase / 2, full_column = 2 * column + phase % 2;
    return features + ((image * 2 * SIDE + full_row) * 2 * SIDE + full_column) * channels;
  }

  std::int64_t in_plane(std::int64_t image, int phase) const {
    return (image * PHASES + phase) * channels;
  }

  std::int64_t plane_size() const { return batch * PHASES * channels; }
};

template <class Stored>
int analyse_features(const Stored* features, Stored* planes, std::int64_t batch,
                     std::int64_t channels, int threads) {
  const FeatureShape shape{batch, channels};
  return for_each_task<Stored>(batch * PHASES, threads, [&](std::int64_t task, auto& run) {
    const std::int64_t image = task / PHASES;
    const int phase = task % PHASES;
    Lanes square[SIDE][SIDE];
    for (std::int64_t first = 0; first < channels; first += RUN) {
      const int length = run_length(channels, first);
      for (int offset = 0; offset < length; offset += LANES) {
        for (int row = 0; row < SIDE; row++) {
          for (int column = 0; column < SIDE; column++) {
            square[row][column] =
                load(shape.at(features, image, phase, row, column) + first + offset);
          }
        }
        run.template analyse<Features, SIDE>(square, offset);
      }
      run.write(planes + shape.in_plane(image, phase) + first, shape.plane_size(), length);
    }
  });
}

template <class Stored>
int synthesise_features(const Stored* planes, Stored* features, std::int64_t batch,
                        std::int64_t channels, int threads) {
  const FeatureShape shape{batch, channels};
  return for_each_task<Stored>(batch * PHASES, threads, [&](std::int64_t task, auto& run) {
    const std::int64_t image = task / PHASES;
    const int phase = task % PHASES;
    Lanes square[SIDE][SIDE];
    for (std::int64_t first = 0; first < channels; first += RUN) {
      const int length = run_length(channels, first);
      run.read(planes + shape.in_plane(image, phase) + first, shape.plane_size(), length);
      for (int offset = 0; offset < length; offset += LANES) {
        run.template synthesise<Features, SIDE>(offset, square);
        for (int row = 0; row < SIDE; row++) {
          for (int column = 0; column < SIDE; column++) {
            store(shape.at(features, image, phase, row, column) + first + offset,
                  square[row][column]);
          }
        }
      }
    }
  });
}

// -------------------------------------------------------------------------------------- weights

// All weights of LANES neighbouring input channels, channel by lane.
struct Kernels {
  static constexpr int COUNT = KERNEL_SIDE * KERNEL_SIDE;
  static_assert(COUNT >= LANES, "blocks of LANES weights are read, the last one from the end");
  Lanes at[COUNT];

  static int block_begin(int block) { return std::min(block * LANES, COUNT - LANES); }
  static constexpr int BLOCKS = (COUNT + LANES - 1) / LANES;

  void read(const float* weight) {
    for (int block = 0; block < BLOCKS; block++) {
      const int begin = block_begin(block);
      Lanes rows[LANES];
      for (int lane = 0; lane < LANES; lane++) rows[lane] = load(weight + lane * COUNT + begin);
      transpose(rows);
      for (int lane = 0; lane < LANES; lane++) at[begin + lane] = rows[lane];
    }
  }

  void write(float* weight) const {
    for (int block = 0; block < BLOCKS; block++) {
      const int begin = block_begin(block);
      Lanes rows[LANES];
      for (int lane = 0; lane < LANES; lane++) rows[lane] = at[begin + lane];
      transpose(rows);
      for (int lane = 0; lane < LANES; lane++) store(weight + lane * COUNT + begin, rows[lane]);
    }
  }

  // Where the tap (row, column) of a phase stands in the kernel, or -1 beyond its edge.
  static int place(int phase, int row, int column) {
    const int full_row = 2 * row + phase / 2, full_column = 2 * column + phase % 2;
    return full_row < KERNEL_SIDE && full_column < KERNEL_SIDE
               ? full_row * KERNEL_SIDE + full_column
               : -1;
  }
};

// Weights [outputs][channels][9][9]; planes [PLANES][outputs][phase][channels].
template <class Stored>
int analyse_weights(const float* weight, Stored* planes, std::int64_t outputs,
                    std::int64_t channels, int threads) {
  const std::int64_t plane_size = std::int64_t{outputs} * PHASES * channels;
  return for_each_task<Stored>(outputs, threads, [&](std::int64_t output, auto& run) {
    for (std::int64_t first = 0; first < channels; first += RUN) {
      const int length = run_length(channels, first);
      Kernels kernels[RUN / LANES];
      for (int offset = 0; offset < length; offset += LANES) {
        kernels[offset / LANES].read(weight +
                                     (output * channels + first + offset) * Kernels::COUNT);
      }
      for (int phase = 0; phase < PHASES; phase++) {
        for (int offset = 0; offset < length; offset += LANES) {
          Lanes square[TAPS][TAPS];
          for (int row = 0; row < TAPS; row++) {
            for (int column = 0; column < TAPS; column++) {
              const int place = Kernels::place(phase, row, column);
              square[row][column] = place < 0 ? Lanes{} : kernels[offset / LANES].at[place];
            }
          }
          run.template analyse<Weights, TAPS>(square, offset);
        }
        run.write(planes + (output * PHASES + phase) * channels + first, plane_size, length);
      }
    }
  });
}

template <class Stored>
int synthesise_weights(const Stored* planes, float* weight, std::int64_t outputs,
                       std::int64_t channels, int threads) {
  const std::int64_t plane_size = std::int64_t{outputs} * PHASES * channels;
  return for_each_task<Stored>(outputs, threads, [&](std::int64_t output, auto& run) {
    for (std::int64_t first = 0; first < channels; first += RUN) {
      const int length = run_length(channels, first);
      Kernels kernels[RUN / LANES];
      for (int phase = 0; phase < PHASES; phase++) {
        run.read(planes + (output * PHASES + phase) * channels + first, plane_size, length);
        for (int offset = 0; offset < length; offset += LANES) {
          Lanes square[TAPS][TAPS];
          run.template synthesise<Weights, TAPS>(offset, square);
          for (int row = 0; row < TAPS; row++) {
            for (int column = 0; column < TAPS; column++) {
              const int place = Kernels::place(phase, row, column);
              if (place >= 0) kernels[offset / LANES].at[place] = square[row][column];
            }
          }
        }
      }
      for (int offset = 0; offset < length; offset += LANES) {
        kernels[offset / LANES].write(weight +
                                      (output * channels + first + offset) * Kernels::COUNT);
      }
    }
  });
}

// ------------------------------------------------------------------------------------- products

// Planes [PLANES][count] of products; maps [rows][columns][count], SIDE - TAPS + 1 rows and
// columns. A count is of output channels times samples.
template <class Stored>
int synthesise_products(const Stored* planes, float* maps, std::int64_t count, int threads) {
  constexpr int EXTENT = SIDE - TAPS + 1;
  const std::int64_t runs = (count + RUN - 1) / RUN;
  return for_each_task<Stored>(runs, threads, [&](std::int64_t task, auto& run) {
    const std::int64_t first = task * RUN;
    const int length = run_length(count, first);
    run.read(planes + first, count, length);
    for (int offset = 0; offset < length; offset += LANES) {
      Lanes square[EXTENT][EXTENT];
      run.template synthesise<Products, EXTENT>(offset, square);
      for (int place = 0; place < EXTENT * EXTENT; place++) {
        store(maps + place * count + first + offset, square[place / EXTENT][place % EXTENT]);
      }
    }
  });
}

template <class Stored>
int analyse_products(const float* maps, Stored* planes, std::int64_t count, int threads) {
  constexpr int EXTENT = SIDE - TAPS + 1;
  const std::int64_t runs = (count + RUN - 1) / RUN;
  return for_each_task<Stored>(runs, threads, [&](std::int64_t task, auto& run) {
    const std::int64_t first = task * RUN;
    const int length = run_length(count, first);
    for (int offset = 0; offset < length; offset += LANES) {
      Lanes square[EXTENT][EXTENT];
      for (int place = 0; place < EXTENT * EXTENT; place++) {
        square[place / EXTENT][place % EXTENT] = load(maps + place * count + first + offset);
      }
      run.template analyse<Products, EXTENT>(square, offset);
    }
    run.write(planes + first, count, length);
  });
}

// ---------------------------------------------------------------------------------- fingerprint

// In every step states that differ stay different. Products carry a bit to higher places, shifts to
// lower ones: without the shifts the signs of two values could change together unseen.
constexpr std::uint32_t WORD_FACTOR = 0x9E3779B1u;
constexpr std::uint64_t STATE_FACTOR = 0x9E3779B97F4A7C15u;

// Of the bits of `count` values, which are read once.
std::uint64_t fingerprint_block(const float* values, std::int64_t count, std::uint64_t state) {
  typedef std::uint32_t Words __attribute__((vector_size(LANES_BYTES)));
  constexpr int CHAINS = 8;  // a product takes as many cycles as these take turns
  Words chains[CHAINS] = {};
  for (; count > 0; count -= CHAINS * LANES, values += CHAINS * LANES) {
    Words words[CHAINS] = {};
    const std::int64_t some = std::min<std::int64_t>(count, CHAINS * LANES);
    if (some == CHAINS * LANES) {
      std::memcpy(words, values, sizeof(words));
    } else {
      std::memcpy(words, values, some * sizeof(float));
    }
    for (int chain = 0; chain < CHAINS; chain++) {
      chains[chain] = (chains[chain] ^ words[chain]) * WORD_FACTOR;
      chains[chain] ^= chains[chain] >> 15;
    }
  }
  for (const Words& chain : chains) {
    for (int lane = 0; lane < LANES; lane++) {
      state = (state ^ chain[lane]) * STATE_FACTOR;
      state ^= state >> 32;
    }
  }
  return state;
}

}  // namespace

// 64 bits that any change of one value changes, and other changes but by a chance of 2^-32.
extern "C" std::uint64_t fingerprint(const float* values, std::int64_t count, int threads) {
  constexpr std::int64_t BLOCK = 1 << 15;
  const std::int64_t blocks = (count + BLOCK - 1) / BLOCK;
  std::uint64_t sum = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : sum)
  for (std::int64_t block = 0; block < blocks; block++) {
    const std::int64_t begin = block * BLOCK;
    sum += fingerprint_block(values + begin, std::min(BLOCK, count - begin), block + 1);
  }
  return sum;
}

// What Python calls, for planes in fp32 and in bf16.
#define TRANSFORMS(suffix, Stored)                                                                \
  extern "C" int analyse_features_##suffix(const Stored* features, Stored* planes,                \
                                           std::int64_t batch, std::int64_t channels,             \
                                           int threads) {                                         \
    return analyse_features(features, planes, batch, channels, threads);                          \
  }                                                                                               \
  extern "C" int synthesise_features_##suffix(const Stored* planes, Stored* features,             \
                                              std::int64_t batch, std::int64_t channels,          \
                                              int threads) {                                      \
    return synthesise_features(planes, features, batch, channels, threads);                       \
  }                                                                                               \
  extern "C" int analyse_weights_##suffix(const float* weight, Stored* planes,                    \
                                          std::int64_t outputs, std::int64_t channels,            \
                                          int threads) {                                          \
    return analyse_weights(weight, planes, outputs, channels, threads);                           \
  }                                                                                               \
  extern "C" int synthesise_weights_##suffix(const Stored* planes, float* weight,                 \
                                             std::int64_t outputs, std::int64_t channels,         \
                                             int threads) {                                       \
    return synthesise_weights(planes, weight, outputs, channels, threads);                        \
  }                                                                                               \
  extern "C" int synthesise_products_##suffix(const Stored* planes, float* maps,                  \
                                              std::int64_t count, int threads) {                  \
    return synthesise_products(planes, maps, count, threads);                                     \
  }                                                                                               \
  extern "C" int analyse_products_##suffix(const float* maps, Stored* planes, std::int64_t count, \
                                           int threads) {                                         \
    return analyse_products(maps, planes, count, threads);                                        \
  }

TRANSFORMS(fp32, float)
TRANSFORMS(bf16, std::uint16_t)
