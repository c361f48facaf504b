// The integer network's inner loops, one version per instruction set, the same integers from each.
// FORMAT.md section 6 and lm/recurrent/reference.py define the numbers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmcodec {

constexpr int kPanel = 64;       // outputs of a product that are computed together; also a block of frequencies
constexpr int kQuad = 4;         // inputs that one lane of a dot product takes
constexpr int kRecurLanes = 32;  // channels of the recurrence that are computed together
constexpr int kMaxLanes = 16;    // partial maxima of a row of logits

// A matrix laid out for the products: panels of 64 outputs; in a panel, for every 4 inputs, 64 x 4 bytes. What pads
// outputs and inputs is zero. bias holds what undoes the offset of the activations' bytes.
struct PackedLinear {
  const std::int8_t* weight;        // (n_panel, n_quad, 64, 4), |w| <= 63
  const std::int32_t* bias;         // (n_panel * 64), |b| < 2^25.1, or < 2^29.1 where sums become floats
  const std::int32_t* multiplier;   // (n_panel * 64), < 2^16; null where sums become floats
  int n;
  int n_panel;
  int n_quad;   // a multiple of the kernels' quad_unit
  int shift;  // 12 to 40; 1 where sums become floats
  // Where sums become floats (FORMAT.md section 9.3):
  const float* scale = nullptr;       // (n_panel * 64), 2^-40 to 2^40; 0 for what pads
  const float* float_bias = nullptr;  // (n_panel * 64), or null
};

// What becomes of the requantised sums of a product.
enum class Finish {
  kClip,    // int8, held within +-127
  kRelu2,   // uint8: m^2 / 128 of m held within 0 to 127
  kAdd,     // added to int32, held within +-(2^23 - 1)
  kLogits,  // int32, and the maxima of every 16th in (n_row, 16) int32 partial maxima
  // (float(sum) * scale) * the row's scale + bias, held within +-2^40 and 0 below 2^-60:
  kFloat,        // float
  kFloatAdd,     // added to float, held again
  kFloatLogits,  // times the logits' scale, held within +-2^22, to the nearest integer; then as kLogits
};
constexpr bool makes_floats(Finish finish) { return finish >= Finish::kFloat; }

struct Finished {
  Finish finish;
  void* out;           // (n_row, stride), at least n_panel * 64 wide
  std::size_t stride;  // elements
  std::int32_t* max;
  const float* row_scale = nullptr;  // (n_row), of the activations; where sums become floats
  float logit_scale = 0;
};

// Some panels of a product as a product of their own.
inline PackedLinear panels_of(const PackedLinear& whole, int first, int last) {
  PackedLinear part = whole;
  const std::ptrdiff_t row = std::ptrdiff_t{first} * kPanel;
  part.weight += row * whole.n_quad * kQuad;
  part.bias += row;
  if (whole.multiplier) part.multiplier += row;
  if (whole.scale) part.scale += row;
  if (whole.float_bias) part.float_bias += row;
  const int end = last * kPanel;
  part.n = (whole.n < end ? whole.n : end) - first * kPanel;
  part.n_panel = last - first;
  return part;
}

struct NetworkTables {
  std::uint16_t decay[256];        // entry z + 127: sigmoid(z / 16) * 2^16
  std::uint16_t input_scale[256];  // entry z + 127, less 1: up to 2^16 - 1
  std::int32_t rsqrt[12288];       // entry i - 4096
  std::uint32_t exp2_coarse[16];
  std::uint32_t exp2_fine[16];  // a product with a coarse one is at most 2^32 - 1
  std::int32_t norm_scale;      // < 2^16
};

struct NetworkKernels {
  const char* isa;
  int offset;  // what a signed activation's byte is above it: 128 where products take unsigned ones, or 0
  int quad_unit;  // how many quads of inputs a product takes at once

  // Products of n_row rows of activation bytes, each (n_quad * 4) at a distance of stride, with all outputs. Of inputs
  // that only pad a row any byte may be there: their weights are zero.
  void (*product)(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear,
                  const Finished& to);
  // A row of an embedding: (w * multiplier + half) >> shift of n weights.
  void (*embed)(const std::int8_t* w, int n, std::int32_t multiplier, int shift, std::int32_t* x);
  // RMS norm of x, n long (a multiple of 16, padded with zeros), dim of them true, |x| < 2^23.
  void (*normalise)(const std::int32_t* x, int n, int dim, const NetworkTables& tables, std::uint8_t* out);
  // One time step of n channels (a multiple of 32): h moves on, out gets the gated state's bytes.
  void (*recur)(const std::int8_t* z, const std::int8_t* v, const std::int8_t* o, int n, const NetworkTables& tables,
                std::int32_t* h, std::uint8_t* out);
  // Frequencies of n logits, the 16 partial maxima given; zeros up to a multiple of 64; exclusive sums of blocks of 64 in
  // cum, one more than there are blocks. freq may be logits.
  void (*weigh)(const std::int32_t* logits, const std::int32_t* max, int n, const NetworkTables& tables,
                std::uint32_t* freq, std::uint64_t* cum);
  // Sum of n <= 64 frequencies.
  std::uint32_t (*sum)(const std::uint32_t* freq, int n);
};

// Fills in the tables of powers of two, (16) each, of lm/tables.py. Throws std::invalid_argument for entries out of range.
void set_exp2(NetworkTables& tables, const std::int32_t* coarse, const std::int32_t* fine);

// The version of that name, null for the best. Throws std::invalid_argument for one that this machine lacks.
NetworkKernels chosen_kernels(const char* isa);

// Versions this machine can run, the best first; the last is portable C++.
const NetworkKernels* network_kernels(int* n);

// Each adds its version at *kernels and returns 1, or returns 0 where the machine or the compiler lacks it.
int add_amx_kernels(NetworkKernels* kernels);
int add_avx512vnni_kernels(NetworkKernels* kernels);
int add_avx2_kernels(NetworkKernels* kernels);
int add_neon_kernels(NetworkKernels* kernels);

}  // namespace lmcodec
