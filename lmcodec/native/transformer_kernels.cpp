// The choice among instruction sets, and portable C++: one float at a time, or as many as the compiler makes of it.
#include "transformer_kernels.h"

#include <cmath>
#include <cstring>

#include "gemm_body.h"

#define LMCODEC_BODY inline
#define LMCODEC_LANE LMCODEC_ALWAYS_INLINE

namespace lmcodec {
namespace {

using F = float;
using I = std::int32_t;
constexpr int kLanes = 1;
constexpr int kQueryOffset = 0;

LMCODEC_LANE F load(const float* from) { return *from; }
LMCODEC_LANE I load(const std::int32_t* from) { return *from; }
LMCODEC_LANE void store(float* to, F v) { *to = v; }
LMCODEC_LANE void store(std::int32_t* to, I v) { *to = v; }
LMCODEC_LANE F set(float v) { return v; }
LMCODEC_LANE I set(std::int32_t v) { return v; }
LMCODEC_LANE F add(F a, F b) { return a + b; }
LMCODEC_LANE F sub(F a, F b) { return a - b; }
LMCODEC_LANE F mul(F a, F b) { return a * b; }
LMCODEC_LANE F div(F a, F b) { return a / b; }
LMCODEC_LANE F smaller(F a, F b) { return a < b ? a : b; }
LMCODEC_LANE F larger(F a, F b) { return a > b ? a : b; }
LMCODEC_LANE F magnitude(F v) { return v < 0 ? -v : v; }
LMCODEC_LANE F zero_below(F v, float least) { return magnitude(v) >= least ? v : 0.0f; }
LMCODEC_LANE F where_negative(F x, F yes, F no) { return x < 0 ? yes : no; }
LMCODEC_LANE I nearest(F v) { return body::nearest(v); }
LMCODEC_LANE F to_float(I v) { return static_cast<float>(v); }
LMCODEC_LANE F power_of_two(I n) {
  const std::uint32_t bits = static_cast<std::uint32_t>(n + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}
LMCODEC_LANE float square_root(float v) { return std::sqrt(v); }
LMCODEC_LANE float reduce_max(F v) { return v; }
LMCODEC_LANE std::int32_t reduce_max(I v) { return v; }
LMCODEC_LANE std::int64_t reduce_add(I v) { return v; }
LMCODEC_LANE float fold(F v) { return v; }
LMCODEC_LANE F butterflies(F v, int) { return v; }
LMCODEC_LANE void store_codes(std::uint8_t* to, I v, int offset) { *to = static_cast<std::uint8_t>(v + offset); }
LMCODEC_LANE I imax(I a, I b) { return a > b ? a : b; }
LMCODEC_LANE I isub(I a, I b) { return a - b; }
LMCODEC_LANE I iadd(I a, I b) { return a + b; }
LMCODEC_LANE void store_words(std::uint16_t* to, I v) { *to = static_cast<std::uint16_t>(v); }

struct Exp2 {
  const NetworkTables& tables;
  explicit Exp2(const NetworkTables& t) : tables(t) {}
  LMCODEC_LANE I operator()(I below) const {
    const std::uint32_t b = static_cast<std::uint32_t>(below), shift = b >> 8 < 31 ? b >> 8 : 31;
    return static_cast<I>((tables.exp2_coarse[b >> 4 & 15] * tables.exp2_fine[b & 15] >> 7) >> shift);
  }
};

void dots(const std::uint8_t* q, int n_head, int width, const std::int8_t* key, int n_block, const std::int32_t*,
          std::int32_t* out, std::size_t stride, const std::int8_t*) {
  for (int h = 0; h < n_head; ++h, q += width, out += stride)
    for (int block = 0; block < n_block; ++block) {
      std::int32_t sums[kSlots] = {};
      const std::int8_t* k = key + block * kSlots * width;
      for (int i = 0; i < width; i += kQuad, k += kSlots * kQuad)
        for (int slot = 0; slot < kSlots; ++slot)
          for (int j = 0; j < kQuad; ++j) sums[slot] += static_cast<std::int8_t>(q[i + j]) * k[slot * kQuad + j];
      std::memcpy(out + block * kSlots, sums, sizeof sums);
    }
}

void weigh_values(const std::uint8_t* p, std::size_t stride, int n_head, const BlockPlace* places, int n_place,
                  const std::int8_t* value, int width, std::int32_t* mean) {
  for (int h = 0; h < n_head; ++h, p += stride, mean += width)
    for (int n = 0; n < n_place; ++n) {
      const std::int8_t* v = value + std::ptrdiff_t{places[n].block} * kSlots * width;
      const std::uint8_t* from = p + places[n].at * kSlots;
      for (int quad = 0; quad < kSlots; quad += kQuad, from += kQuad)
        for (int i = 0; i < width; ++i, v += kQuad)
          mean[i] += from[0] * v[0] + from[1] * v[1] + from[2] * v[2] + from[3] * v[3];
    }
}

#include "transformer_body.h"

constexpr TransformerKernels kKernels = kernels("scalar");

}  // namespace

const TransformerKernels& transformer_kernels(const char* isa) {
  const TransformerKernels* found = nullptr;
  if (!std::strcmp(isa, "amx") || !std::strcmp(isa, "avx512vnni")) found = transformer_kernels_avx512();
  if (!std::strcmp(isa, "avx2")) found = transformer_kernels_avx2();
  if (!std::strcmp(isa, "neon")) found = transformer_kernels_neon();
  return found ? *found : kKernels;
}

}  // namespace lmcodec
