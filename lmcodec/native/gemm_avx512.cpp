// AVX-512 with VNNI: 64 outputs of up to 6 rows at a time in 24 registers.
#include "gemm_body.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#include "cpu.h"
#include "gemm_avx512.h"

namespace lmcodec {
namespace {

using namespace avx512;

constexpr int kOffset = 128;
constexpr int kRows = 6;
constexpr int kPrefetch = 4096;  // bytes of weights ahead

// kAhead: lines that are fetched from `ahead` on for each quad.
template <int kN, int kAhead>
LMCODEC_VNNI void tile(const std::uint8_t* u, std::size_t stride, const std::int8_t* w, int n_quad,
                       const std::int32_t* bias, __m512i* sums, const std::int8_t* ahead) {
  __m512i acc[kN][kVectors];
  LMCODEC_UNROLL
  for (int z = 0; z < kVectors; ++z) {
    const __m512i b = load(bias + 16 * z);
    LMCODEC_UNROLL
    for (int r = 0; r < kN; ++r) acc[r][z] = b;
  }
  for (int q = 0; q < n_quad; ++q, u += kQuad, w += kPanel * kQuad) {
    __m512i weight[kVectors];
    LMCODEC_UNROLL
    for (int z = 0; z < kVectors; ++z) {
      weight[z] = load(w + 64 * z);
      if (kN <= 2 && !kAhead) _mm_prefetch(reinterpret_cast<const char*>(w) + kPrefetch + 64 * z, _MM_HINT_T0);
    }
    LMCODEC_UNROLL
    for (int i = 0; i < kAhead; ++i, ahead += 64) _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
    LMCODEC_UNROLL
    for (int r = 0; r < kN; ++r) {
      std::int32_t quad;
      std::memcpy(&quad, u + static_cast<std::size_t>(r) * stride, sizeof quad);
      const __m512i a = _mm512_set1_epi32(quad);
      LMCODEC_UNROLL
      for (int z = 0; z < kVectors; ++z) acc[r][z] = _mm512_dpbusd_epi32(acc[r][z], a, weight[z]);
    }
  }
  LMCODEC_UNROLL
  for (int r = 0; r < kN; ++r) {
    LMCODEC_UNROLL
    for (int z = 0; z < kVectors; ++z) sums[r * kVectors + z] = acc[r][z];
  }
}

}  // namespace

LMCODEC_VNNI void avx512::product(const std::uint8_t* u, std::size_t stride, int n_row, const PackedLinear& linear,
                                  const Finished& to) {
  constexpr decltype(&tile<1, 0>) kTiles[][kRows] = {
      {tile<1, 0>, tile<2, 0>, tile<3, 0>, tile<4, 0>, tile<5, 0>, tile<6, 0>},
      {tile<1, 1>, tile<2, 1>, tile<3, 1>, tile<4, 1>, tile<5, 1>, tile<6, 1>},
      {tile<1, 2>, tile<2, 2>, tile<3, 2>, tile<4, 2>, tile<5, 2>, tile<6, 2>},
      {tile<1, 4>, tile<2, 4>, tile<3, 4>, tile<4, 4>, tile<5, 4>, tile<6, 4>}};
  const std::size_t panel_nbytes = static_cast<std::size_t>(linear.n_quad) * (kPanel * kQuad);
  const int n_blocks = (n_row + kRows - 1) / kRows;
  // A large model's weights come from memory: while rows pass a panel, the next one is on its way. All of it is fetched by
  // the first blocks of rows, up to four; the lines per quad are kAhead of kTiles' rows.
  const bool ahead = makes_floats(to.finish) && n_row > 2;
  const int which = n_blocks >= 4 ? 1 : n_blocks >= 2 ? 2 : 3;
  const int n_ahead = n_blocks >= 4 ? 4 : n_blocks >= 2 ? 2 : 1;
  for (int panel = 0; panel < linear.n_panel; ++panel) {
    const std::int8_t* w = linear.weight + static_cast<std::size_t>(panel) * panel_nbytes;
    const std::int8_t* next = w + panel_nbytes;
    int n_block = n_blocks, fetching = ahead && panel + 1 < linear.n_panel ? n_ahead : 0;
    for (int row = 0; row < n_row; --n_block) {  // blocks of rows as equal as can be
      const int n = (n_row - row + n_block - 1) / n_block;
      __m512i sums[kRows * kVectors];
      kTiles[fetching > 0 ? which : 0][n - 1](u + static_cast<std::size_t>(row) * stride, stride, w, linear.n_quad,
                                              linear.bias + panel * kPanel, sums, next);
      if (fetching-- > 0) next += panel_nbytes / static_cast<std::size_t>(n_ahead);
      finish(sums, n, row, panel, linear, to);
      row += n;
    }
  }
}

namespace {

LMCODEC_VNNI void embed(const std::int8_t* w, int n, std::int32_t multiplier, int shift, std::int32_t* x) {
  body::embed(w, n, multiplier, shift, x);
}

LMCODEC_VNNI void normalise(const std::int32_t* x, int n, int dim, const NetworkTables& tables, std::uint8_t* out) {
  __m512i even = _mm512_setzero_si512(), odd = even;
  for (int i = 0; i < n; i += 16) {
    const __m512i v = load(x + i), high = _mm512_srli_epi64(v, 32);
    even = _mm512_add_epi64(even, _mm512_mul_epi32(v, v));
    odd = _mm512_add_epi64(odd, _mm512_mul_epi32(high, high));
  }
  const long long s = _mm512_reduce_add_epi64(_mm512_add_epi64(even, odd));
  const body::NormFactor by = body::norm_factor(static_cast<std::uint64_t>(s), dim, tables);
  const __m512i factor = _mm512_set1_epi32(by.factor);
  const __m512i round = _mm512_set1_epi64(std::int64_t{1} << (by.shift - 1));
  const __m128i shift = _mm_cvtsi32_si128(by.shift);
  for (int i = 0; i < n; i += 16) {
    const __m512i value =
        clip(rescale(load(x + i), factor, round, shift), -body::kActivationMax, body::kActivationMax);
    store_bytes(out + i, _mm512_add_epi32(value, _mm512_set1_epi32(kOffset)));
  }
}

// A table of 256 words, looked up by 32 indices at once.
struct WordTable {
  __m512i part[8];
  LMCODEC_VNNI_INLINE explicit WordTable(const std::uint16_t* table) {
    LMCODEC_UNROLL
    for (int i = 0; i < 8; ++i) part[i] = load(table + 32 * i);
  }
  LMCODEC_VNNI_INLINE __m512i operator()(__m512i index) const {
    const __mmask32 bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64));
    const __mmask32 bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
    const __m512i a = _mm512_permutex2var_epi16(part[0], index, part[1]);
    const __m512i b = _mm512_permutex2var_epi16(part[2], index, part[3]);
    const __m512i c = _mm512_permutex2var_epi16(part[4], index, part[5]);
    const __m512i d = _mm512_permutex2var_epi16(part[6], index, part[7]);
    return _mm512_mask_blend_epi16(bit7, _mm512_mask_blend_epi16(bit6, a, b), _mm512_mask_blend_epi16(bit6, c, d));
  }
};

LMCODEC_VNNI_INLINE __m512i widen_words(__m256i words) { return _mm512_cvtepu16_epi32(words); }
LMCODEC_VNNI_INLINE __m512i load_index(const std::int8_t* z) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(z));
  return _mm512_add_epi16(_mm512_cvtepi8_epi16(bytes), _mm512_set1_epi16(127));
}

// 16 channels. |a h| < 2^42.3 and |s v| 2^12 <= 2^35, so bits 16 to 47 hold the state; likewise bits 29 to 60 the output.
LMCODEC_VNNI_INLINE void recur16(__m512i a, __m512i s, __m512i gate, const std::int8_t* v, std::int32_t* h,
                                 std::uint8_t* out) {
  const __m512i half = _mm512_set1_epi64(1 << (body::kStateShift - 1));
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(v));
  const __m512i input = _mm512_slli_epi32(_mm512_cvtepi8_epi32(bytes), 12);
  const __m512i before = load(h);
  const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(a, before), _mm512_mul_epi32(s, input));
  const __m512i odd = _mm512_add_epi64(
      _mm512_mul_epi32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(before, 32)),
      _mm512_mul_epi32(_mm512_srli_epi64(s, 32), _mm512_srli_epi64(input, 32)));
  const __m512i after =
      _mm512_mask_mov_epi32(_mm512_srli_epi64(_mm512_add_epi64(even, half), body::kStateShift), kOdd,
                            _mm512_slli_epi64(_mm512_add_epi64(odd, half), 32 - body::kStateShift));
  _mm512_storeu_si512(h, after);
  const __m512i round = _mm512_set1_epi64(1 << (body::kGateShift - 1));
  const __m512i low = _mm512_add_epi64(_mm512_mul_epi32(after, gate), round);
  const __m512i high =
      _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(after, 32), _mm512_srli_epi64(gate, 32)), round);
  const __m512i gated = _mm512_mask_mov_epi32(_mm512_srli_epi64(low, body::kGateShift), kOdd,
                                              _mm512_slli_epi64(high, 32 - body::kGateShift));
  store_bytes(out, _mm512_add_epi32(clip(gated, -body::kActivationMax, body::kActivationMax),
                                    _mm512_set1_epi32(kOffset)));
}

LMCODEC_VNNI void recur(const std::int8_t* z, const std::int8_t* v, const std::int8_t* o, int n,
                        const NetworkTables& tables, std::int32_t* h, std::uint8_t* out) {
  const WordTable decay(tables.decay), input_scale(tables.input_scale);
  const __m512i one = _mm512_set1_epi32(1);
  for (int i = 0; i < n; i += kRecurLanes) {
    const __m512i index = load_index(z + i);
    const __m512i a = decay(index), s = input_scale(index), gate = decay(load_index(o + i));
    recur16(widen_words(_mm512_castsi512_si256(a)),
            _mm512_add_epi32(widen_words(_mm512_castsi512_si256(s)), one),
            widen_words(_mm512_castsi512_si256(gate)), v + i, h + i, out + i);
    recur16(widen_words(_mm512_extracti64x4_epi64(a, 1)),
            _mm512_add_epi32(widen_words(_mm512_extracti64x4_epi64(s, 1)), one),
            widen_words(_mm512_extracti64x4_epi64(gate, 1)), v + i + 16, h + i + 16, out + i + 16);
  }
}

// 16 frequencies. A permute takes the lower 4 bits of its indices; a shift by 32 or more gives 0.
LMCODEC_VNNI_INLINE __m512i weigh16(__m512i below, __m512i coarse, __m512i fine) {
  const __m512i c = _mm512_permutexvar_epi32(_mm512_srli_epi32(below, 4), coarse);
  const __m512i f = _mm512_permutexvar_epi32(below, fine);
  const __m512i value = _mm512_srli_epi32(_mm512_mullo_epi32(c, f), 7);
  return _mm512_max_epu32(_mm512_srlv_epi32(value, _mm512_srli_epi32(below, 8)), _mm512_set1_epi32(1));
}

LMCODEC_VNNI void weigh(const std::int32_t* logits, const std::int32_t* max, int n, const NetworkTables& tables,
                        std::uint32_t* freq, std::uint64_t* cum) {
  const __m512i top = _mm512_set1_epi32(_mm512_reduce_max_epi32(load(max)));
  const __m512i coarse = load(tables.exp2_coarse), fine = load(tables.exp2_fine);
  std::uint64_t total = 0;
  const int n_full = n / kPanel;
  for (int b = 0; b < n_full; ++b, logits += kPanel, freq += kPanel) {
    __m512i f[kVectors];
    LMCODEC_UNROLL
    for (int z = 0; z < kVectors; ++z) {
      f[z] = weigh16(_mm512_sub_epi32(top, load(logits + 16 * z)), coarse, fine);
      _mm512_storeu_si512(freq + 16 * z, f[z]);
    }
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(f[0], f[1]), _mm512_add_epi32(f[2], f[3]));
    cum[b] = total;
    total += static_cast<std::uint32_t>(_mm512_reduce_add_epi32(sum));
  }
  const int left = n % kPanel;
  if (left) {
    const std::uint64_t some = (std::uint64_t{1} << left) - 1;
    __m512i sum = _mm512_setzero_si512();
    for (int z = 0; z < kVectors; ++z) {
      const __mmask16 mask = static_cast<__mmask16>(some >> (16 * z));
      const __m512i f =
          _mm512_maskz_mov_epi32(mask, weigh16(_mm512_sub_epi32(top, load(logits + 16 * z)), coarse, fine));
      _mm512_storeu_si512(freq + 16 * z, f);
      sum = _mm512_add_epi32(sum, f);
    }
    cum[n_full] = total;
    total += static_cast<std::uint32_t>(_mm512_reduce_add_epi32(sum));
  }
  cum[n_full + (left ? 1 : 0)] = total;
}

LMCODEC_VNNI std::uint32_t sum(const std::uint32_t* freq, int n) {
  const std::uint64_t some = n >= kPanel ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
  __m512i total = _mm512_maskz_loadu_epi32(static_cast<__mmask16>(some), freq);
  for (int z = 1; z < kVectors && some >> (16 * z); ++z)
    total = _mm512_add_epi32(total, _mm512_maskz_loadu_epi32(static_cast<__mmask16>(some >> (16 * z)), freq + 16 * z));
  return static_cast<std::uint32_t>(_mm512_reduce_add_epi32(total));
}

}  // namespace

int add_avx512vnni_kernels(NetworkKernels* kernels) {
  const Cpu& has = cpu();
  if (!(has.avx512f && has.avx512bw && has.avx512dq && has.avx512vl && has.avx512vnni)) return 0;
  *kernels = {"avx512vnni", kOffset, 1, avx512::product, embed, normalise, recur, weigh, sum};
  return 1;
}

}  // namespace lmcodec

#else

namespace lmcodec {
int add_avx512vnni_kernels(NetworkKernels*) { return 0; }
}  // namespace lmcodec

#endif
