#include "planes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LMCODEC_PLANES_X86 1
#if !defined(__clang__)
// GCC 12 warns of its own header's undefined vectors (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define LMCODEC_INLINE inline __attribute__((always_inline))
#else
#define LMCODEC_INLINE inline
#endif

#include "cpu.h"

namespace lmcodec {

std::size_t PlaneLayout::record_nbytes() const {
  std::size_t sum = 0;
  for (const PlaneField& field : fields) sum += static_cast<std::size_t>(field.width) * field.count;
  return sum;
}

bool PlaneLayout::valid() const {
  if (fields.empty() || fields.size() > kPlaneFields) return false;
  std::size_t sum = 0;
  for (const PlaneField& field : fields) {
    if (field.width != 1 && field.width != 2 && field.width != 4 && field.width != 8) return false;
    if (field.count < 1 || field.count > kPlaneRecord) return false;
    sum += static_cast<std::size_t>(field.width) * field.count;
  }
  return sum <= kPlaneRecord;
}

namespace {

constexpr std::uint32_t kSlots = 1u << kPlanePrecision;
constexpr std::uint32_t kLeastState = 1u << 16;  // a state lies in [2^16, 2^32)
constexpr std::size_t kBlock = 64 * kPlaneLanes;  // bytes whose contexts are laid out at a time
constexpr std::size_t kCancelEvery = 32 * kBlock;  // bytes between two looks at the flag

enum Mode : std::uint8_t { kStored = 0, kConstant = 1, kOneTable = 2, kByClass = 3, kByAbove = 4, kByBase = 5 };

using Bytes = std::vector<std::uint8_t>;
using Raw = std::unique_ptr<std::uint8_t[]>;

inline int lanes_of(std::size_t n) { return n >= kPlaneWide ? kPlaneLanes : kPlaneFewLanes; }
inline std::uint32_t load16(const std::uint8_t* p) { return p[0] | static_cast<std::uint32_t>(p[1]) << 8; }
inline std::uint32_t load32(const std::uint8_t* p) { return load16(p) | load16(p + 2) << 16; }

// What a slot's symbol is and how the state goes on: (frequency - 1) << 20 | symbol << 12 | slot - start.
using Slot = std::uint32_t;

inline std::uint32_t advance(std::uint32_t x, Slot slot) {
  // (x >> 12) * f + i <= (2^20 - 1) * 2^12 + 2^12 - 1 < 2^32.
  return ((slot >> 20) + 1) * (x >> kPlanePrecision) + (slot & (kSlots - 1));
}

// What a byte's context depends on.
struct Contexts {
  int n = 1;
  const std::uint8_t* context = nullptr;  // laid out, of the encoder
  const std::int8_t *rows = nullptr, *columns = nullptr;  // classes
  std::size_t n_column = 0;
  const std::uint8_t* above = nullptr;  // the plane above, mapped by
  std::uint8_t map[256] = {};

  // context[i] of the n bytes from byte `first` of the plane on.
  void fill(std::size_t first, std::size_t n_byte, std::uint8_t* out) const {
    if (above != nullptr) {
      for (std::size_t i = 0; i < n_byte; ++i) out[i] = map[above[first + i]];
      return;
    }
    const auto last = static_cast<std::int8_t>(n - 1);
    std::size_t row = first / n_column, column = first % n_column;
    while (n_byte > 0) {
      const std::size_t run = std::min(n_byte, n_column - column);
      const std::int8_t r = rows[row];
      for (std::size_t i = 0; i < run; ++i) {
        const auto sum = static_cast<std::int8_t>(r + columns[column + i]);  // |sum| <= 126
        const std::int8_t low = sum < 0 ? std::int8_t{0} : sum;
        out[i] = static_cast<std::uint8_t>(low < last ? low : last);
      }
      out += run;
      n_byte -= run;
      column = 0;
      ++row;
    }
  }
};

// ---------------------------------------------------------------------------------------------------- decoding bytes

// Decodes whole groups of 32 lanes, at most n_group, while 64 bytes are left to read before data_end; returns how many.
using DecodeGroups = std::size_t (*)(std::uint32_t* state, const std::uint8_t** word, const std::uint8_t* data_end,
                                     const std::uint8_t* context, const Slot* slots, std::uint8_t* out,
                                     std::size_t n_group);

std::size_t decode_groups_scalar(std::uint32_t* state, const std::uint8_t** next_word, const std::uint8_t* data_end,
                                 const std::uint8_t* context, const Slot* slots, std::uint8_t* out,
                                 std::size_t n_group) {
  const std::uint8_t* word = *next_word;
  std::size_t group = 0;
  for (; group < n_group && data_end - word >= 2 * kPlaneLanes; ++group) {
    for (int lane = 0; lane < kPlaneLanes; ++lane) {
      const std::uint32_t x = state[lane];
      const std::size_t table = context != nullptr ? static_cast<std::size_t>(context[lane]) << kPlanePrecision : 0;
      const Slot slot = slots[table | (x & (kSlots - 1))];
      const std::uint32_t y = advance(x, slot);
      // No branch: whether a state takes a word is what no branch predictor can know.
      const std::uint32_t few = y < kLeastState ? 1u : 0u;
      state[lane] = y << (few << 4) | (load16(word) & (0u - few));
      word += 2 * few;
      out[lane] = static_cast<std::uint8_t>(slot >> kPlanePrecision);
    }
    if (context != nullptr) context += kPlaneLanes;
    out += kPlaneLanes;
  }
  *next_word = word;
  return group;
}

#if defined(LMCODEC_PLANES_X86)
template <bool kHasContext>
__attribute__((target("avx512f"))) std::size_t decode_groups_512(std::uint32_t* state, const std::uint8_t** next_word,
                                                                  const std::uint8_t* data_end,
                                                                  const std::uint8_t* context, const Slot* slots,
                                                                  std::uint8_t* out, std::size_t n_group) {
  const std::uint8_t* word = *next_word;
  __m512i x[2] = {_mm512_loadu_si512(state), _mm512_loadu_si512(state + 16)};
  const __m512i low = _mm512_set1_epi32(kSlots - 1), least = _mm512_set1_epi32(kLeastState);
  const __m512i one = _mm512_set1_epi32(1);
  std::size_t group = 0;
  for (; group < n_group && data_end - word >= 2 * kPlaneLanes; ++group) {
    for (int half = 0; half < 2; ++half) {
      __m512i index = _mm512_and_si512(x[half], low);
      if (kHasContext) {
        const __m512i table = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(context) + half));
        index = _mm512_or_si512(_mm512_slli_epi32(table, kPlanePrecision), index);
      }
      const __m512i slot = _mm512_i32gather_epi32(index, slots, 4);
      const __m512i freq = _mm512_add_epi32(_mm512_srli_epi32(slot, 20), one);
      const __m512i y = _mm512_add_epi32(_mm512_mullo_epi32(freq, _mm512_srli_epi32(x[half], kPlanePrecision)),
                                         _mm512_and_si512(slot, low));
      const __mmask16 few = _mm512_cmplt_epu32_mask(y, least);
      // The next words go, in order, to the lanes that lack one.
      const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(word)));
      x[half] = _mm512_mask_or_epi32(y, few, _mm512_slli_epi32(y, 16), _mm512_maskz_expand_epi32(few, words));
      word += 2 * __builtin_popcount(few);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out) + half,
                       _mm512_cvtepi32_epi8(_mm512_srli_epi32(slot, kPlanePrecision)));
    }
    if (kHasContext) context += kPlaneLanes;
    out += kPlaneLanes;
  }
  _mm512_storeu_si512(state, x[0]);
  _mm512_storeu_si512(state + 16, x[1]);
  *next_word = word;
  return group;
}

std::size_t decode_groups_avx512(std::uint32_t* state, const std::uint8_t** word, const std::uint8_t* data_end,
                                 const std::uint8_t* context, const Slot* slots, std::uint8_t* out, std::size_t n_group) {
  return context != nullptr ? decode_groups_512<true>(state, word, data_end, context, slots, out, n_group)
                            : decode_groups_512<false>(state, word, data_end, context, slots, out, n_group);
}

// For every set of 8 lanes, which of the next words each of them takes.
struct Expansion {
  alignas(32) std::uint32_t lane[256][8];
  Expansion() {
    for (std::uint32_t mask = 0; mask < 256; ++mask)
      for (std::uint32_t i = 0, next = 0; i < 8; ++i) lane[mask][i] = mask >> i & 1 ? next++ : 7;
  }
};

__attribute__((target("avx2,popcnt"))) std::size_t decode_groups_avx2(
    std::uint32_t* state, const std::uint8_t** next_word, const std::uint8_t* data_end, const std::uint8_t* context,
    const Slot* slots, std::uint8_t* out, std::size_t n_group) {
  static const Expansion expansion;
  const std::uint8_t* word = *next_word;
  __m256i x[4];
  for (int q = 0; q < 4; ++q) x[q] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(state) + q);
  const __m256i low = _mm256_set1_epi32(kSlots - 1), one = _mm256_set1_epi32(1), byte = _mm256_set1_epi32(255);
  const __m256i zero = _mm256_setzero_si256();
  std::size_t group = 0;
  for (; group < n_group && data_end - word >= 2 * kPlaneLanes; ++group) {
    __m256i symbol[4];
    for (int q = 0; q < 4; ++q) {
      __m256i index = _mm256_and_si256(x[q], low);
      if (context != nullptr) {
        const __m256i table = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(context + 8 * q)));
        index = _mm256_or_si256(_mm256_slli_epi32(table, kPlanePrecision), index);
      }
      const __m256i slot = _mm256_i32gather_epi32(reinterpret_cast<const int*>(slots), index, 4);
      const __m256i freq = _mm256_add_epi32(_mm256_srli_epi32(slot, 20), one);
      const __m256i y = _mm256_add_epi32(_mm256_mullo_epi32(freq, _mm256_srli_epi32(x[q], kPlanePrecision)),
                                         _mm256_and_si256(slot, low));
      const __m256i is_few = _mm256_cmpeq_epi32(_mm256_srli_epi32(y, 16), zero);
      const auto few = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(is_few)));
      const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(word)));
      const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(expansion.lane[few]));
      const __m256i more =
          _mm256_or_si256(_mm256_slli_epi32(y, 16), _mm256_permutevar8x32_epi32(words, order));
      x[q] = _mm256_blendv_epi8(y, more, is_few);
      word += 2 * __builtin_popcount(few);
      symbol[q] = _mm256_and_si256(_mm256_srli_epi32(slot, kPlanePrecision), byte);
    }
    // Packing works within halves of 16 bytes.
    const __m256i packed = _mm256_packus_epi16(_mm256_packus_epi32(symbol[0], symbol[1]),
                                               _mm256_packus_epi32(symbol[2], symbol[3]));
    const __m256i sorted = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), sorted);
    if (context != nullptr) context += kPlaneLanes;
    out += kPlaneLanes;
  }
  for (int q = 0; q < 4; ++q) _mm256_storeu_si256(reinterpret_cast<__m256i*>(state) + q, x[q]);
  *next_word = word;
  return group;
}
#endif

enum class Isa { kPortable, kAvx2, kAvx512 };

Isa best_isa(bool portable) {
#if defined(LMCODEC_PLANES_X86)
  if (!portable && cpu().avx512f && cpu().avx512bw && cpu().avx512vl) return Isa::kAvx512;
  if (!portable && cpu().avx2) return Isa::kAvx2;
#endif
  (void)portable;
  return Isa::kPortable;
}

DecodeGroups decode_groups(Isa isa) {
#if defined(LMCODEC_PLANES_X86)
  if (isa == Isa::kAvx512) return decode_groups_avx512;
  if (isa == Isa::kAvx2) return decode_groups_avx2;
#endif
  (void)isa;
  return decode_groups_scalar;
}

// ------------------------------------------------------------------------------------------------------------ reading

class Reader {
 public:
  Reader(const std::uint8_t* data, std::size_t nbytes) : at_(data), end_(data + nbytes) {}
  std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }
  const std::uint8_t* end() const { return end_; }
  const std::uint8_t* take(std::size_t n) {
    if (left() < n) return nullptr;
    const std::uint8_t* const found = at_;
    at_ += n;
    return found;
  }
  bool byte(std::uint8_t& value) {
    if (at_ == end_) return false;
    value = *at_++;
    return true;
  }
  // The shortest form of a number below 2^(7 n_most).
  bool varint(std::uint64_t& value, int n_most = 9) {
    value = 0;
    for (int i = 0; i < n_most; ++i) {
      std::uint8_t b;
      if (!byte(b)) return false;
      value |= static_cast<std::uint64_t>(b & 127) << 7 * i;
      if (b < 128) return i == 0 || b != 0;
    }
    return false;
  }

 private:
  const std::uint8_t *at_, *end_;
};

void put_varint(Bytes& out, std::uint64_t value) {
  for (; value > 127; value >>= 7) out.push_back(static_cast<std::uint8_t>(value | 128));
  out.push_back(static_cast<std::uint8_t>(value));
}

using Freq = std::array<std::uint16_t, 256>;

bool read_table(Reader& reader, Slot* slot) {
  std::uint8_t first, last;
  if (!reader.byte(first) || !reader.byte(last) || first > last) return false;
  std::uint32_t sum = 0;
  for (std::uint32_t s = first; s <= last; ++s) {
    std::uint64_t f;
    if (!reader.varint(f, 2) || f > kSlots - sum) return false;
    for (std::uint32_t i = 0; i < f; ++i) *slot++ = static_cast<std::uint32_t>(f - 1) << 20 | s << 12 | i;
    sum += static_cast<std::uint32_t>(f);
  }
  return sum == kSlots;
}

void put_table(Bytes& out, const Freq& freq) {
  int first = 0, last = 255;
  while (freq[static_cast<std::size_t>(first)] == 0) ++first;
  while (freq[static_cast<std::size_t>(last)] == 0) --last;
  out.push_back(static_cast<std::uint8_t>(first));
  out.push_back(static_cast<std::uint8_t>(last));
  for (int s = first; s <= last; ++s) put_varint(out, freq[static_cast<std::size_t>(s)]);
}

constexpr const char* kWrongPlane = "a plane is not one";

// States and words of n bytes; nullptr or what is wrong.
const char* decode_words(Reader& reader, const Contexts& contexts, const Slot* slots, Isa isa, std::uint8_t* out,
                         std::size_t n, const CancelRef& cancel) {
  const auto n_lane = static_cast<std::size_t>(lanes_of(n));
  std::uint64_t n_word;
  if (!reader.varint(n_word, 4) || n_word > n) return "a number of words is out of range";
  const std::uint8_t* word = reader.take(4 * n_lane);
  const std::uint8_t* const first = word == nullptr ? nullptr : reader.take(2 * static_cast<std::size_t>(n_word));
  if (first == nullptr) return "it ends within a plane";
  std::uint32_t state[kPlaneLanes];
  for (std::size_t lane = 0; lane < n_lane; ++lane, word += 4) {
    state[lane] = load32(word);
    if (state[lane] < kLeastState) return "a state is out of range";
  }
  const std::uint8_t* const end = word + 2 * n_word;
  const bool has_contexts = contexts.n > 1;
  const DecodeGroups groups = decode_groups(isa);
  std::uint8_t context[kBlock] = {};
  for (std::size_t at = 0; at < n; at += kBlock) {
    if (at % kCancelEvery == 0) throw_if_set(cancel);
    const std::size_t size = std::min(kBlock, n - at);
    if (has_contexts) contexts.fill(at, size, context);
    std::size_t i = 0;
    if (n_lane == kPlaneLanes) {
      // Whole groups may read past the plane, never past the payload: a plane that does so is found out.
      i = kPlaneLanes * groups(state, &word, reader.end(), has_contexts ? context : nullptr, slots, out + at,
                               size / kPlaneLanes);
      if (word > end) return kWrongPlane;
    }
    for (; i < size; ++i) {
      std::uint32_t& x = state[(at + i) % n_lane];
      const Slot slot = slots[static_cast<std::size_t>(context[i]) << kPlanePrecision | (x & (kSlots - 1))];
      x = advance(x, slot);
      if (x < kLeastState) {
        if (end - word < 2) return kWrongPlane;
        x = x << 16 | load16(word);
        word += 2;
      }
      out[at + i] = static_cast<std::uint8_t>(slot >> kPlanePrecision);
    }
  }
  const bool ended = word == end && std::all_of(state, state + n_lane, [](std::uint32_t x) { return x == kLeastState; });
  return ended ? nullptr : kWrongPlane;
}

// A plane of n bytes: *plane is where it lies, within the payload or in `room`. above: the plane above, or nullptr; base: the
// base's first plane, or nullptr.
const char* decode_plane(Reader& reader, const std::uint8_t* above, const std::uint8_t* base, bool is_nested, Isa isa,
                         std::size_t n, Raw& room, const std::uint8_t** plane, const CancelRef& cancel) {
  std::uint8_t mode;
  if (!reader.byte(mode)) return "it ends before a plane";
  if (mode > kByBase || (is_nested && mode > kOneTable)) return "a plane's mode is unknown";
  if (mode == kStored) {
    *plane = reader.take(n);
    return *plane == nullptr ? "it ends within a plane" : nullptr;
  }
  room.reset(new std::uint8_t[n]);
  *plane = room.get();
  if (mode == kConstant) {
    std::uint8_t value;
    if (!reader.byte(value)) return "it ends within a plane";
    std::memset(room.get(), value, n);
    return nullptr;
  }
  Contexts contexts;
  Raw rows_room, columns_room;
  std::vector<std::int8_t> rows, columns;
  if (mode != kOneTable) {
    std::uint8_t n_context;
    if (!reader.byte(n_context) || n_context < 2 || n_context > kPlaneContexts) return "a number of contexts is out of range";
    contexts.n = n_context;
  }
  if (mode == kByClass) {
    std::uint64_t n_column;
    if (!reader.varint(n_column, 4) || n_column < 1 || n_column > n) return "a length of rows is out of range";
    contexts.n_column = static_cast<std::size_t>(n_column);
    const std::size_t n_row = (n + contexts.n_column - 1) / contexts.n_column;
    const std::uint8_t *row, *column;
    if (const char* wrong = decode_plane(reader, nullptr, nullptr, true, isa, n_row, rows_room, &row, cancel)) return wrong;
    if (const char* wrong = decode_plane(reader, nullptr, nullptr, true, isa, contexts.n_column, columns_room, &column, cancel))
      return wrong;
    for (const auto& [from, size, to] : {std::tuple(row, n_row, &rows), std::tuple(column, contexts.n_column, &columns)})
      for (std::size_t i = 0; i < size; ++i) {
        if (from[i] < 1 || from[i] > 127) return "a class is out of range";
        to->push_back(static_cast<std::int8_t>(from[i] - 64));
      }
    contexts.rows = rows.data();
    contexts.columns = columns.data();
  } else if (mode == kByAbove || mode == kByBase) {
    contexts.above = mode == kByAbove ? above : base;
    if (contexts.above == nullptr) return "a plane has none above it";
    int context = 0, next = 0;
    for (int c = 1; c < contexts.n; ++c) {
      std::uint8_t from;
      if (!reader.byte(from) || from <= next) return "contexts are out of order";
      for (; next < from; ++next) contexts.map[next] = static_cast<std::uint8_t>(context);
      context = c;
    }
    for (; next < 256; ++next) contexts.map[next] = static_cast<std::uint8_t>(context);
  }
  std::vector<Slot> slots(static_cast<std::size_t>(contexts.n) << kPlanePrecision);
  for (int c = 0; c < contexts.n; ++c)
    if (!read_table(reader, slots.data() + (static_cast<std::size_t>(c) << kPlanePrecision))) return "a table's frequencies are wrong";
  return decode_words(reader, contexts, slots.data(), isa, room.get(), n, cancel);
}

// ----------------------------------------------------------------------------------------------------- encoding bytes

// How a symbol is encoded in a context: start << 13 | frequency.
using Code = std::uint32_t;

// Codes whole groups of lanes from the last to the first, n_group of them, which end at `data` + 32 n_group; words go
// before `word`, which is returned as it is then.
using EncodeGroups = std::uint16_t* (*)(std::uint32_t* state, std::uint16_t* word, const std::uint8_t* data,
                                        const std::uint8_t* context, const Code* codes, std::size_t n_group);

LMCODEC_INLINE void encode_one(std::uint32_t& state, std::uint16_t*& word, Code code) {
  const std::uint32_t f = code & 0x1FFF, start = code >> 13;
  std::uint32_t x = state;
  // With x < f 2^20 the state after coding stays below 2^32.
  if (x >> 20 >= f) {
    *--word = static_cast<std::uint16_t>(x);
    x >>= 16;
  }
  const std::uint32_t quotient = x / f;
  state = (quotient << kPlanePrecision) + (x - quotient * f) + start;
}

std::uint16_t* encode_groups_scalar(std::uint32_t* state, std::uint16_t* word, const std::uint8_t* data,
                                    const std::uint8_t* context, const Code* codes, std::size_t n_group) {
  for (std::size_t i = kPlaneLanes * n_group; i-- > 0;) {
    const std::size_t table = context != nullptr ? static_cast<std::size_t>(context[i]) << 8 : 0;
    encode_one(state[i % kPlaneLanes], word, codes[table | data[i]]);
  }
  return word;
}

#if defined(LMCODEC_PLANES_X86)
__attribute__((target("avx512f,avx512bw,avx512vl"))) std::uint16_t* encode_groups_avx512(
    std::uint32_t* state, std::uint16_t* word, const std::uint8_t* data, const std::uint8_t* context, const Code* codes,
    std::size_t n_group) {
  __m512i x[2] = {_mm512_loadu_si512(state), _mm512_loadu_si512(state + 16)};
  const __m512i low = _mm512_set1_epi32(0x1FFF), one = _mm512_set1_epi32(1);
  for (std::size_t group = n_group; group-- > 0;) {
    for (int half = 1; half >= 0; --half) {
      const std::size_t at = kPlaneLanes * group + 16 * static_cast<std::size_t>(half);
      __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data + at)));
      if (context != nullptr) {
        const __m512i table = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(context + at)));
        index = _mm512_or_si512(_mm512_slli_epi32(table, 8), index);
      }
      const __m512i code = _mm512_i32gather_epi32(index, codes, 4);
      const __m512i f = _mm512_and_si512(code, low), start = _mm512_srli_epi32(code, 13);
      __m512i v = x[half];
      const __mmask16 full = _mm512_cmpge_epu32_mask(_mm512_srli_epi32(v, 20), f);
      const int n = __builtin_popcount(full);
      word -= n;
      _mm256_mask_storeu_epi16(word, static_cast<__mmask16>((1u << n) - 1),
                               _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, v)));
      v = _mm512_mask_srli_epi32(v, full, v, 16);
      // x / f: the quotient is below 2^20, so that the one of floats is off by at most one.
      __m512i quotient = _mm512_cvttps_epu32(_mm512_div_ps(_mm512_cvtepu32_ps(v), _mm512_cvtepu32_ps(f)));
      __m512i rest = _mm512_sub_epi32(v, _mm512_mullo_epi32(quotient, f));
      const __mmask16 above = _mm512_cmplt_epi32_mask(rest, _mm512_setzero_si512());
      quotient = _mm512_mask_sub_epi32(quotient, above, quotient, one);
      rest = _mm512_mask_add_epi32(rest, above, rest, f);
      const __mmask16 below = _mm512_cmpge_epu32_mask(rest, f);
      quotient = _mm512_mask_add_epi32(quotient, below, quotient, one);
      rest = _mm512_mask_sub_epi32(rest, below, rest, f);
      x[half] = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(quotient, kPlanePrecision), rest), start);
    }
  }
  _mm512_storeu_si512(state, x[0]);
  _mm512_storeu_si512(state + 16, x[1]);
  return word;
}
#endif

EncodeGroups encode_groups(Isa isa) {
#if defined(LMCODEC_PLANES_X86)
  if (isa == Isa::kAvx512) return encode_groups_avx512;
#endif
  (void)isa;
  return encode_groups_scalar;
}

// Appends the number of words, states and words of n bytes; context: laid out, or nullptr.
void encode_words(Bytes& out, const std::uint8_t* data, const std::uint8_t* context, const Code* codes, Isa isa,
                  std::size_t n, const CancelRef& cancel) {
  const auto n_lane = static_cast<std::size_t>(lanes_of(n));
  const std::unique_ptr<std::uint16_t[]> words(new std::uint16_t[n]);  // a byte takes at most one
  std::uint16_t *const end = words.get() + n, *word = end;
  std::uint32_t state[kPlaneLanes];
  std::fill_n(state, kPlaneLanes, kLeastState);
  std::size_t left = n;
  const std::size_t whole = n_lane == kPlaneLanes ? n / kPlaneLanes * kPlaneLanes : 0;
  for (; left > whole; --left) {
    const std::size_t i = left - 1;
    const std::size_t table = context != nullptr ? static_cast<std::size_t>(context[i]) << 8 : 0;
    encode_one(state[i % n_lane], word, codes[table | data[i]]);
  }
  const EncodeGroups groups = encode_groups(isa);
  while (left > 0) {
    throw_if_set(cancel);
    const std::size_t size = std::min(kCancelEvery, left);
    left -= size;
    word = groups(state, word, data + left, context != nullptr ? context + left : nullptr, codes, size / kPlaneLanes);
  }
  const auto n_word = static_cast<std::size_t>(end - word);
  put_varint(out, n_word);
  const std::size_t at = out.size();
  out.resize(at + 4 * n_lane + 2 * n_word);
  std::uint8_t* to = out.data() + at;
  for (std::size_t lane = 0; lane < n_lane; ++lane)
    for (int byte = 0; byte < 4; ++byte) *to++ = static_cast<std::uint8_t>(state[lane] >> 8 * byte);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  std::memcpy(to, word, 2 * n_word);
#else
  for (std::size_t i = 0; i < n_word; ++i) {
    *to++ = static_cast<std::uint8_t>(word[i]);
    *to++ = static_cast<std::uint8_t>(word[i] >> 8);
  }
#endif
}

using Counts = std::array<std::uint32_t, 256>;

// Counts of bytes in n_context contexts.
std::vector<Counts> count(const std::uint8_t* data, const std::uint8_t* context, int n_context, std::size_t n) {
  // Neighbours count in different tables: an increment need not wait for the one before.
  std::vector<std::uint32_t> own(4 * 256 * static_cast<std::size_t>(n_context));
  std::uint32_t* const table = own.data();
  const std::size_t size = 256 * static_cast<std::size_t>(n_context);
  std::size_t i = 0;
  if (context == nullptr) {
    for (; i + 4 <= n; i += 4) {
      ++table[data[i]];
      ++table[size + data[i + 1]];
      ++table[2 * size + data[i + 2]];
      ++table[3 * size + data[i + 3]];
    }
    for (; i < n; ++i) ++table[data[i]];
  } else {
    const auto at = [&](std::size_t k) { return static_cast<std::size_t>(context[k]) << 8 | data[k]; };
    for (; i + 4 <= n; i += 4) {
      ++table[at(i)];
      ++table[size + at(i + 1)];
      ++table[2 * size + at(i + 2)];
      ++table[3 * size + at(i + 3)];
    }
    for (; i < n; ++i) ++table[at(i)];
  }
  std::vector<Counts> counts(static_cast<std::size_t>(n_context));
  for (std::size_t k = 0; k < size; ++k)
    counts[k >> 8][k & 255] = table[k] + table[size + k] + table[2 * size + k] + table[3 * size + k];
  return counts;
}

double n_log2(std::uint64_t n) {
  struct Table {
    std::array<double, 4096> value;
    Table() {
      value[0] = 0;
      for (std::size_t i = 1; i < value.size(); ++i) value[i] = static_cast<double>(i) * std::log2(static_cast<double>(i));
    }
  };
  static const Table table;
  if (n < table.value.size()) return table.value[n];
  return static_cast<double>(n) * std::log2(static_cast<double>(n));
}

// Bits of n bytes of these counts under their own frequencies, without rounding.
double entropy_bits(const Counts& counts) {
  std::uint64_t sum = 0;
  double inner = 0;
  for (const std::uint32_t c : counts) {
    sum += c;
    inner += n_log2(c);
  }
  return n_log2(sum) - inner;
}

int n_used(const Counts& counts) {
  return static_cast<int>(std::count_if(counts.begin(), counts.end(), [](std::uint32_t c) { return c != 0; }));
}

// Frequencies that sum to 2^12; every symbol that occurs has one. Of no symbols: all of it is symbol 0's.
Freq normalise(const Counts& counts) {
  Freq freq{};
  std::uint64_t n = 0;
  for (const std::uint32_t c : counts) n += c;
  if (n == 0) {
    freq[0] = kSlots;
    return freq;
  }
  int left = kSlots;
  for (std::size_t s = 0; s < 256; ++s) {
    if (counts[s] == 0) continue;
    const std::uint64_t f = (2 * static_cast<std::uint64_t>(counts[s]) * kSlots + n) / (2 * n);
    freq[s] = static_cast<std::uint16_t>(std::max<std::uint64_t>(f, 1));
    left -= freq[s];
  }
  // What is left over, or lacks, goes where it matters most, or least.
  while (left != 0) {
    std::size_t best = 256;
    double best_cost = 0;
    for (std::size_t s = 0; s < 256; ++s) {
      if (counts[s] == 0 || (left < 0 && freq[s] < 2)) continue;
      const double cost = left > 0 ? -static_cast<double>(counts[s]) / (freq[s] + 0.5)
                                   : static_cast<double>(counts[s]) / (freq[s] - 0.5);
      if (best == 256 || cost < best_cost) {
        best = s;
        best_cost = cost;
      }
    }
    freq[best] = static_cast<std::uint16_t>(freq[best] + (left > 0 ? 1 : -1));
    left += left > 0 ? -1 : 1;
  }
  return freq;
}

// Bits of these counts under frequencies, tables included.
double coded_bits(const std::vector<Counts>& counts, const std::vector<Freq>& freq) {
  double bits = 0;
  for (std::size_t c = 0; c < counts.size(); ++c) {
    Bytes table;
    put_table(table, freq[c]);
    bits += 8.0 * static_cast<double>(table.size());
    for (std::size_t s = 0; s < 256; ++s)
      if (counts[c][s] != 0) bits += counts[c][s] * (kPlanePrecision - std::log2(static_cast<double>(freq[c][s])));
  }
  return bits;
}

std::vector<Freq> normalised(const std::vector<Counts>& counts) {
  std::vector<Freq> freq;
  freq.reserve(counts.size());
  for (const Counts& each : counts) freq.push_back(normalise(each));
  return freq;
}

void put_tables(Bytes& out, const std::vector<Freq>& freq, std::vector<Code>& codes) {
  codes.resize(256 * freq.size());
  for (std::size_t c = 0; c < freq.size(); ++c) {
    put_table(out, freq[c]);
    std::uint32_t start = 0;
    for (std::size_t s = 0; s < 256; ++s) {
      codes[256 * c + s] = start << 13 | freq[c][s];
      start += freq[c][s];
    }
  }
}

struct Sample {
  std::vector<std::uint8_t> bytes, above;
};

constexpr std::size_t kSampled = std::size_t{1} << 16, kRun = 256;

// Runs of a plane, and what is above them.
Sample sample_of(const std::uint8_t* data, const std::uint8_t* above, std::size_t n) {
  Sample sample;
  const std::size_t n_run = n <= kSampled ? 1 : kSampled / kRun, run = n <= kSampled ? n : kRun;
  for (std::size_t r = 0; r < n_run; ++r) {
    const std::size_t at = n_run == 1 ? 0 : r * ((n - run) / (n_run - 1));
    sample.bytes.insert(sample.bytes.end(), data + at, data + at + run);
    if (above != nullptr) sample.above.insert(sample.above.end(), above + at, above + at + run);
  }
  return sample;
}

constexpr double kUnseen = 0.7213;  // bits that a symbol's estimated frequency costs: 1 / (2 ln 2)
constexpr double kTableBits = 9;    // that a symbol takes in a table

// A group of neighbouring bytes above, and what the bytes below them cost.
struct Group {
  int from;
  Counts counts;
  double cost;
};

double group_cost(const Counts& counts, double scale) {
  const int used = n_used(counts);
  return scale * (entropy_bits(counts) + (used > 0 ? used - 1 : 0) * kUnseen) + used * kTableBits + 24;
}

// Borders of the bytes above between contexts: those that pay most, at most kPlaneContexts - 1. bits: estimated, of the plane.
std::vector<int> borders_of(const Sample& sample, std::size_t n, double& bits) {
  const double scale = static_cast<double>(n) / static_cast<double>(sample.bytes.size());
  std::vector<Counts> joint(256, Counts{});
  for (std::size_t i = 0; i < sample.bytes.size(); ++i) ++joint[sample.above[i]][sample.bytes[i]];
  std::vector<Group> groups;
  for (int above = 0; above < 256; ++above) {
    const Counts& counts = joint[static_cast<std::size_t>(above)];
    const int used = n_used(counts);
    if (used == 0) continue;
    std::uint64_t seen = 0;
    for (const std::uint32_t c : counts) seen += c;
    // Few bytes say nothing: they go with those before.
    if (!groups.empty() && seen * 256 < sample.bytes.size()) {
      for (std::size_t s = 0; s < 256; ++s) groups.back().counts[s] += counts[s];
      groups.back().cost = group_cost(groups.back().counts, scale);
      continue;
    }
    groups.push_back({above, counts, group_cost(counts, scale)});
  }
  const auto merged = [&](std::size_t g) {
    Group both = groups[g];
    for (std::size_t s = 0; s < 256; ++s) both.counts[s] += groups[g + 1].counts[s];
    both.cost = group_cost(both.counts, scale);
    return both;
  };
  std::vector<Group> pairs;
  for (std::size_t g = 0; g + 1 < groups.size(); ++g) pairs.push_back(merged(g));
  while (groups.size() > 1) {
    std::size_t best = 0;
    double best_gain = -1e300;
    for (std::size_t g = 0; g < pairs.size(); ++g) {
      const double gain = groups[g].cost + groups[g + 1].cost - pairs[g].cost;
      if (gain > best_gain) {
        best = g;
        best_gain = gain;
      }
    }
    if (best_gain <= 0 && groups.size() <= kPlaneContexts) break;
    groups[best] = pairs[best];
    groups.erase(groups.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    pairs.erase(pairs.begin() + static_cast<std::ptrdiff_t>(best));
    if (best > 0) pairs[best - 1] = merged(best - 1);
    if (best < pairs.size()) pairs[best] = merged(best);
  }
  bits = 0;
  std::vector<int> borders;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    bits += groups[g].cost;
    if (g > 0) borders.push_back(groups[g].from);
  }
  return borders;
}

// Where what is coded is so near to as many bits as are stored, decoding it costs more than it saves.
constexpr double kWorthWhile = 0.9975, kWorthWhileFast = 0.99;
constexpr double kNoise = 7.995;  // bits of a byte
constexpr std::size_t kClassedLeast = std::size_t{1} << 14;
constexpr double kClassesOfDeviation = 3;
constexpr double kExcess = 1.5;  // of rows' or columns' means over chance, from which classes are tried

class PlaneEncoder {
 public:
  PlaneEncoder(const PlaneOptions& options, const CancelRef& cancel)
      : options_(options), isa_(best_isa(options.portable)), cancel_(cancel) {}

  // Appends a plane of n bytes. above, base: the plane above and the base's first one, or nullptr; n_column: of a matrix that
  // is worth classes, else 0.
  void put(Bytes& out, const std::uint8_t* data, const std::uint8_t* above, const std::uint8_t* base, std::size_t n_column,
           std::size_t n) const {
    throw_if_set(cancel_);
    if (std::all_of(data, data + n, [first = data[0]](std::uint8_t b) { return b == first; })) {
      out.push_back(kConstant);
      out.push_back(data[0]);
      return;
    }
    const double stored = 8.0 * static_cast<double>(n);
    const double most = stored * (options_.contexts ? kWorthWhile : kWorthWhileFast);
    const Sample sample = sample_of(data, above, n);
    const double scale = static_cast<double>(n) / static_cast<double>(sample.bytes.size());
    const double alone = group_cost(count(sample.bytes.data(), nullptr, 1, sample.bytes.size())[0], scale);
    if (options_.contexts && alone < kNoise / 8 * stored) {
      double bits = kWorthWhile * std::min(alone, stored);
      Mode mode = kStored;
      std::vector<int> borders;
      for (const auto& [by, plane] : {std::pair(kByAbove, above), std::pair(kByBase, base)}) {
        if (plane == nullptr) continue;
        double found_bits = 0;
        std::vector<int> found = borders_of(mode == kStored && by == kByAbove ? sample : sample_of(data, plane, n), n, found_bits);
        if (found.empty() || found_bits >= bits) continue;
        borders = std::move(found);
        bits = found_bits;
        mode = by;
      }
      if (n_column > 0) {
        const ClassPlan plan = plan_classes(data, n_column, n);
        if (plan.bits < bits) return put_by_class(out, data, plan, n);
      }
      if (mode != kStored) return put_by_bytes(out, mode, data, mode == kByAbove ? above : base, borders, n);
    }
    if (alone < most) {
      const std::vector<Counts> counts = count(data, nullptr, 1, n);
      const std::vector<Freq> freq = normalised(counts);
      if (coded_bits(counts, freq) + 32.0 * lanes_of(n) + 16 < most) {
        out.push_back(kOneTable);
        std::vector<Code> codes;
        put_tables(out, freq, codes);
        encode_words(out, data, nullptr, codes.data(), isa_, n, cancel_);
        return;
      }
    }
    out.push_back(kStored);
    out.insert(out.end(), data, data + n);
  }

 private:
  void put_by_bytes(Bytes& out, Mode mode, const std::uint8_t* data, const std::uint8_t* above,
                    const std::vector<int>& borders, std::size_t n) const {
    Contexts contexts;
    contexts.n = static_cast<int>(borders.size()) + 1;
    contexts.above = above;
    out.push_back(mode);
    out.push_back(static_cast<std::uint8_t>(contexts.n));
    for (const int border : borders) out.push_back(static_cast<std::uint8_t>(border));
    for (int b = 0; b < 256; ++b)
      contexts.map[b] = static_cast<std::uint8_t>(
          std::upper_bound(borders.begin(), borders.end(), b) - borders.begin());
    const Raw context(new std::uint8_t[n]);
    contexts.fill(0, n, context.get());
    put_contexts(out, data, context.get(), normalised(count(data, context.get(), contexts.n, n)), n);
  }

  void put_contexts(Bytes& out, const std::uint8_t* data, const std::uint8_t* context, const std::vector<Freq>& freq,
                    std::size_t n) const {
    std::vector<Code> codes;
    put_tables(out, freq, codes);
    encode_words(out, data, context, codes.data(), isa_, n, cancel_);
  }

  // How a plane is coded by classes of its rows and columns.
  struct ClassPlan {
    double bits = 1e300;  // estimated, or that it is not worth a try
    Bytes head;           // what stands before the tables
    Raw context;
    std::vector<Freq> freq;
  };

  ClassPlan plan_classes(const std::uint8_t* data, std::size_t n_column, std::size_t n) const {
    ClassPlan plan;
    const std::size_t n_row = (n + n_column - 1) / n_column;
    if (n < kClassedLeast || n_column < 32 || n_row < 8) return plan;
    std::vector<std::uint32_t> row_sum(n_row), column_sum(n_column);
    std::uint64_t total = 0, squares = 0;
    for (std::size_t row = 0; row < n_row; ++row) {
      const std::uint8_t* const begin = data + row * n_column;
      const std::size_t size = std::min(n_column, n - row * n_column);
      std::uint32_t sum = 0;
      std::uint64_t square = 0;
      for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t b = begin[i];
        sum += b;
        square += b * b;
        column_sum[i] += b;
      }
      row_sum[row] = sum;
      total += sum;
      squares += square;
    }
    const double size = static_cast<double>(n), mean = static_cast<double>(total) / size;
    const double variance = static_cast<double>(squares) / size - mean * mean;
    if (!(variance > 0)) return plan;
    const auto rows_of = [&](std::size_t c) { return (n - c + n_column - 1) / n_column; };
    const auto columns_of = [&](std::size_t r) { return std::min(n_column, n - r * n_column); };
    const auto mean_of = [](std::uint32_t sum, std::size_t of) { return static_cast<double>(sum) / static_cast<double>(of); };
    // Means of bytes that have nothing in common vary by chance so much.
    double row_excess = 0, column_excess = 0;
    for (std::size_t r = 0; r < n_row; ++r) {
      const double d = mean_of(row_sum[r], columns_of(r)) - mean;
      row_excess += d * d * static_cast<double>(columns_of(r));
    }
    for (std::size_t c = 0; c < n_column; ++c) {
      const double d = mean_of(column_sum[c], rows_of(c)) - mean;
      column_excess += d * d * static_cast<double>(rows_of(c));
    }
    if (row_excess < kExcess * variance * static_cast<double>(n_row) &&
        column_excess < kExcess * variance * static_cast<double>(n_column))
      return plan;
    const double unit = std::sqrt(variance) / kClassesOfDeviation;
    const auto class_of = [&](double own_mean, int middle) {
      return static_cast<std::int8_t>(std::clamp(std::floor((own_mean - mean) / unit + 0.5) + middle, -63.0, 63.0));
    };
    std::vector<std::int8_t> rows(n_row), columns(n_column);
    for (std::size_t r = 0; r < n_row; ++r) rows[r] = class_of(mean_of(row_sum[r], columns_of(r)), kPlaneContexts / 2);
    for (std::size_t c = 0; c < n_column; ++c) columns[c] = class_of(mean_of(column_sum[c], rows_of(c)), 0);
    Contexts contexts;
    contexts.n = kPlaneContexts;
    contexts.rows = rows.data();
    contexts.columns = columns.data();
    contexts.n_column = n_column;
    plan.context.reset(new std::uint8_t[n]);
    contexts.fill(0, n, plan.context.get());
    const std::vector<Counts> counts = count(data, plan.context.get(), contexts.n, n);
    plan.freq = normalised(counts);
    plan.head.push_back(kByClass);
    plan.head.push_back(kPlaneContexts);
    put_varint(plan.head, n_column);
    for (const std::vector<std::int8_t>* classes : {&rows, &columns}) {
      std::vector<std::uint8_t> nested;
      for (const std::int8_t c : *classes) nested.push_back(static_cast<std::uint8_t>(c + 64));
      PlaneOptions plain = options_;
      plain.contexts = false;
      PlaneEncoder(plain, cancel_).put(plan.head, nested.data(), nullptr, nullptr, 0, nested.size());
    }
    plan.bits = coded_bits(counts, plan.freq) + 8.0 * static_cast<double>(plan.head.size());
    return plan;
  }

  void put_by_class(Bytes& out, const std::uint8_t* data, const ClassPlan& plan, std::size_t n) const {
    out.insert(out.end(), plan.head.begin(), plan.head.end());
    put_contexts(out, data, plan.context.get(), plan.freq, n);
  }

  const PlaneOptions options_;
  const Isa isa_;
  const CancelRef cancel_;
};

// ------------------------------------------------------------------------------------------- from numbers to planes and back

template <typename T>
LMCODEC_INLINE T load(const std::uint8_t* from, bool is_big) {
  T value = 0;
  if (is_big) {
    for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(static_cast<T>(value << (sizeof(T) > 1 ? 8 : 0)) | from[i]);
  } else {
    for (std::size_t i = 0; i < sizeof(T); ++i) value = static_cast<T>(value | static_cast<T>(static_cast<T>(from[i]) << 8 * i));
  }
  return value;
}

template <typename T>
LMCODEC_INLINE void store(std::uint8_t* to, T value, bool is_big) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    to[is_big ? sizeof(T) - 1 - i : i] = static_cast<std::uint8_t>(value >> 8 * i);
}

// The numbers' own order, of bits with a sign and a magnitude; its own inverse.
template <typename T>
LMCODEC_INLINE T ordered(T bits, bool is_float) {
  constexpr int kTop = 8 * sizeof(T) - 1;
  const T sign = static_cast<T>(0 - static_cast<T>(bits >> kTop));
  return is_float ? static_cast<T>(bits ^ static_cast<T>(sign >> 1)) : bits;
}

// With a base: how far a number is from the base's, small where they are near.
template <typename T>
LMCODEC_INLINE T difference(T value, T base, bool is_float) {
  constexpr int kTop = 8 * sizeof(T) - 1;
  const T d = static_cast<T>(ordered(value, is_float) - ordered(base, is_float));
  return static_cast<T>(static_cast<T>(d << 1) ^ static_cast<T>(0 - static_cast<T>(d >> kTop)));
}

template <typename T>
LMCODEC_INLINE T undo(T z, T base, bool is_float) {
  const T d = static_cast<T>(static_cast<T>(z >> 1) ^ static_cast<T>(0 - static_cast<T>(z & 1)));
  return ordered(static_cast<T>(ordered(base, is_float) + d), is_float);
}

template <typename T>
LMCODEC_INLINE T turned(T bits, bool is_float) {  // the sign goes last
  return is_float ? static_cast<T>(static_cast<T>(bits << 1) | static_cast<T>(bits >> (8 * sizeof(T) - 1))) : bits;
}

template <typename T>
LMCODEC_INLINE T turned_back(T value, bool is_float) {
  return is_float ? static_cast<T>(static_cast<T>(value >> 1) | static_cast<T>(value << (8 * sizeof(T) - 1))) : value;
}

struct Place {
  std::size_t record, offset;  // bytes of a record; where the field lies in it
  std::size_t n;               // records
  std::size_t count;           // elements of the field
  bool is_float, is_big;
};

template <typename T>
LMCODEC_INLINE void split_body(const Place& p, const std::uint8_t* data, const std::uint8_t* base, std::uint8_t* plane) {
  const std::size_t m = p.n * p.count;
  const auto put = [&](std::size_t k, T value) {
    for (std::size_t b = 0; b < sizeof(T); ++b) plane[b * m + k] = static_cast<std::uint8_t>(value >> 8 * (sizeof(T) - 1 - b));
  };
  if (p.count == 1 && p.record == sizeof(T) && base == nullptr && !p.is_big) {
    if (p.is_float) {
      for (std::size_t k = 0; k < m; ++k) put(k, turned(load<T>(data + sizeof(T) * k, false), true));
    } else {
      for (std::size_t k = 0; k < m; ++k) put(k, load<T>(data + sizeof(T) * k, false));
    }
    return;
  }
  std::size_t k = 0;
  for (std::size_t i = 0; i < p.n; ++i) {
    const std::size_t at = i * p.record + p.offset;
    for (std::size_t c = 0; c < p.count; ++c, ++k) {
      const T value = load<T>(data + at + sizeof(T) * c, p.is_big);
      put(k, base != nullptr ? difference(value, load<T>(base + at + sizeof(T) * c, p.is_big), p.is_float)
                             : turned(value, p.is_float));
    }
  }
}

template <typename T>
LMCODEC_INLINE void join_body(const Place& p, const std::uint8_t* const* plane, const std::uint8_t* base, std::uint8_t* out) {
  const std::size_t m = p.n * p.count;
  const auto get = [&](std::size_t k) {
    T value = 0;
    for (std::size_t b = 0; b < sizeof(T); ++b) value = static_cast<T>(value | static_cast<T>(static_cast<T>(plane[b][k]) << 8 * (sizeof(T) - 1 - b)));
    return value;
  };
  if (p.count == 1 && p.record == sizeof(T) && base == nullptr && !p.is_big) {
    if (p.is_float) {
      for (std::size_t k = 0; k < m; ++k) store(out + sizeof(T) * k, turned_back(get(k), true), false);
    } else {
      for (std::size_t k = 0; k < m; ++k) store(out + sizeof(T) * k, get(k), false);
    }
    return;
  }
  if (p.count == 1 && p.record == sizeof(T) && !p.is_big) {
    for (std::size_t k = 0; k < m; ++k)
      store(out + sizeof(T) * k, undo(get(k), load<T>(base + sizeof(T) * k, false), p.is_float), false);
    return;
  }
  std::size_t k = 0;
  for (std::size_t i = 0; i < p.n; ++i) {
    const std::size_t at = i * p.record + p.offset;
    for (std::size_t c = 0; c < p.count; ++c, ++k) {
      const T value = base != nullptr ? undo(get(k), load<T>(base + at + sizeof(T) * c, p.is_big), p.is_float)
                                      : turned_back(get(k), p.is_float);
      store(out + at + sizeof(T) * c, value, p.is_big);
    }
  }
}

LMCODEC_INLINE void split_any(std::uint32_t width, const Place& p, const std::uint8_t* data, const std::uint8_t* base,
                              std::uint8_t* plane) {
  if (width == 1) split_body<std::uint8_t>(p, data, base, plane);
  else if (width == 2) split_body<std::uint16_t>(p, data, base, plane);
  else if (width == 4) split_body<std::uint32_t>(p, data, base, plane);
  else split_body<std::uint64_t>(p, data, base, plane);
}

LMCODEC_INLINE void join_any(std::uint32_t width, const Place& p, const std::uint8_t* const* plane, const std::uint8_t* base,
                             std::uint8_t* out) {
  if (width == 1) join_body<std::uint8_t>(p, plane, base, out);
  else if (width == 2) join_body<std::uint16_t>(p, plane, base, out);
  else if (width == 4) join_body<std::uint32_t>(p, plane, base, out);
  else join_body<std::uint64_t>(p, plane, base, out);
}

#if defined(LMCODEC_PLANES_X86)
__attribute__((target("avx2"))) void split_avx2(std::uint32_t width, const Place& p, const std::uint8_t* data,
                                                const std::uint8_t* base, std::uint8_t* plane) {
  split_any(width, p, data, base, plane);
}
__attribute__((target("avx2"))) void join_avx2(std::uint32_t width, const Place& p, const std::uint8_t* const* plane,
                                               const std::uint8_t* base, std::uint8_t* out) {
  join_any(width, p, plane, base, out);
}
#endif

void split(Isa isa, std::uint32_t width, const Place& p, const std::uint8_t* data, const std::uint8_t* base, std::uint8_t* plane) {
#if defined(LMCODEC_PLANES_X86)
  if (isa != Isa::kPortable) return split_avx2(width, p, data, base, plane);
#endif
  (void)isa;
  split_any(width, p, data, base, plane);
}

void join(Isa isa, std::uint32_t width, const Place& p, const std::uint8_t* const* plane, const std::uint8_t* base, std::uint8_t* out) {
#if defined(LMCODEC_PLANES_X86)
  if (isa != Isa::kPortable) return join_avx2(width, p, plane, base, out);
#endif
  (void)isa;
  join_any(width, p, plane, base, out);
}

// The first plane of a base's own numbers; none without a base.
Raw tops_of(std::uint32_t width, const Place& p, const std::uint8_t* base) {
  if (base == nullptr) return nullptr;
  Raw tops(new std::uint8_t[p.n * p.count]);
  std::uint8_t* to = tops.get();
  for (std::size_t i = 0; i < p.n; ++i)
    for (std::size_t c = 0; c < p.count; ++c) {
      const std::uint8_t* const element = base + i * p.record + p.offset + c * width;
      const std::uint32_t high = p.is_big ? element[0] : element[width - 1];
      const std::uint32_t next = width == 1 ? high : p.is_big ? element[1] : element[width - 2];
      // With a sign first, the eight bits behind it; of a byte with a sign that comes last.
      *to++ = static_cast<std::uint8_t>(p.is_float ? high << 1 | next >> 7 : high);
    }
  return tops;
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------- payloads

std::vector<std::uint8_t> encode_planes(const PlaneLayout& layout, const PlaneOptions& options, const std::uint8_t* data,
                                        const std::uint8_t* base, std::size_t nbytes, const CancelRef& cancel) {
  const std::size_t record = layout.record_nbytes(), n = nbytes / record, whole = n * record;
  const Isa isa = best_isa(options.portable);
  Bytes out;
  out.reserve(nbytes / 2 + 1024);
  out.push_back(static_cast<std::uint8_t>((layout.fields.size() - 1) | (base != nullptr ? 0x10 : 0)));
  if (base != nullptr) put_varint(out, options.base_at);
  for (const PlaneField& field : layout.fields) {
    const int log2 = field.width == 8 ? 3 : field.width == 4 ? 2 : field.width == 2 ? 1 : 0;
    out.push_back(static_cast<std::uint8_t>(log2 | field.is_float << 2 | field.is_big << 3));
    put_varint(out, field.count);
  }
  out.insert(out.end(), data + whole, data + nbytes);
  const PlaneEncoder encoder(options, cancel);
  std::size_t offset = 0, m_before = 0;
  Raw before;  // the planes of the field before
  for (const PlaneField& field : layout.fields) {
    const std::size_t m = n * field.count;
    Raw planes(new std::uint8_t[m * field.width]);
    const Place place = {record, offset, n, field.count, field.is_float, field.is_big};
    split(isa, field.width, place, data, base, planes.get());
    const Raw tops = tops_of(field.width, place, base);
    const bool is_matrix = field.count == 1 && base == nullptr && options.row_nbytes % record == 0;
    for (std::size_t b = 0; b < field.width; ++b) {
      const std::uint8_t* const plane = planes.get() + b * m;
      const std::uint8_t* const above = b > 0 ? plane - m : m_before == m ? before.get() : nullptr;
      encoder.put(out, plane, above, tops.get(), is_matrix ? options.row_nbytes / record : 0, m);
    }
    before = std::move(planes);
    m_before = m;
    offset += static_cast<std::size_t>(field.width) * field.count;
  }
  return out;
}

const char* decode_planes(const std::uint8_t* payload, std::size_t payload_nbytes, const std::uint8_t* base, std::uint8_t* out,
                          std::size_t nbytes, bool portable, const CancelRef& cancel) {
  Reader reader(payload, payload_nbytes);
  std::uint8_t head;
  if (!reader.byte(head) || head & 0xE0) return "its first byte is unknown";
  if ((head & 0x10) && base == nullptr) return "it needs a base";
  if (!(head & 0x10)) base = nullptr;
  std::uint64_t base_at;
  if (base != nullptr && !reader.varint(base_at)) return "a place is not one";
  PlaneLayout layout;
  for (int f = 0; f <= (head & 0x0F); ++f) {
    std::uint8_t kind;
    std::uint64_t n_element;
    if (!reader.byte(kind) || kind & 0xF0 || !reader.varint(n_element, 2) || n_element < 1 || n_element > kPlaneRecord)
      return "a field is not one";
    layout.fields.push_back({1u << (kind & 3), (kind & 4) != 0, (kind & 8) != 0, static_cast<std::uint32_t>(n_element)});
  }
  if (!layout.valid()) return "a record is too long";
  const std::size_t record = layout.record_nbytes(), n = nbytes / record, whole = n * record;
  if (n == 0) return "a record is longer than the block";
  const std::uint8_t* const rest = reader.take(nbytes - whole);
  if (rest == nullptr) return "it ends before its planes";
  if (nbytes > whole) std::memcpy(out + whole, rest, nbytes - whole);
  const Isa isa = best_isa(portable);
  std::size_t offset = 0, m_before = 0;
  Raw room_before;
  const std::uint8_t* before = nullptr;  // the first plane of the field before
  for (const PlaneField& field : layout.fields) {
    const std::size_t m = n * field.count;
    const Place place = {record, offset, n, field.count, field.is_float, field.is_big};
    const Raw tops = tops_of(field.width, place, base);
    Raw room[8];
    const std::uint8_t* plane[8] = {};
    for (std::size_t b = 0; b < field.width; ++b) {
      const std::uint8_t* const above = b > 0 ? plane[b - 1] : m_before == m ? before : nullptr;
      if (const char* wrong = decode_plane(reader, above, tops.get(), false, isa, m, room[b], &plane[b], cancel)) return wrong;
    }
    throw_if_set(cancel);
    join(isa, field.width, place, plane, base, out);
    room_before = std::move(room[0]);
    before = plane[0];
    m_before = m;
    offset += static_cast<std::size_t>(field.width) * field.count;
  }
  return reader.left() == 0 ? nullptr : "bytes follow its planes";
}


// ------------------------------------------------------------------------------------------------------------ the check

namespace {

struct CrcTables {
  std::uint32_t value[8][256];
  CrcTables() {
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = c & 1 ? c >> 1 ^ 0xEDB88320u : c >> 1;
      value[0][i] = c;
    }
    for (int t = 1; t < 8; ++t)
      for (int i = 0; i < 256; ++i) value[t][i] = value[t - 1][i] >> 8 ^ value[0][value[t - 1][i] & 255];
  }
};

// Of the register, without the inversions before and after.
std::uint32_t crc_portable(const std::uint8_t* data, std::size_t n, std::uint32_t c) {
  static const CrcTables tables;
  const auto& t = tables.value;
  for (; n >= 8; n -= 8, data += 8) {
    const std::uint32_t a = load32(data) ^ c, b = load32(data + 4);
    c = t[7][a & 255] ^ t[6][a >> 8 & 255] ^ t[5][a >> 16 & 255] ^ t[4][a >> 24] ^ t[3][b & 255] ^ t[2][b >> 8 & 255] ^
        t[1][b >> 16 & 255] ^ t[0][b >> 24];
  }
  for (; n > 0; --n) c = c >> 8 ^ t[0][(c ^ *data++) & 255];
  return c;
}

#if defined(LMCODEC_PLANES_X86)
// Folding by carry-less products (Gopal et al., Fast CRC Computation Using PCLMULQDQ, Intel 2009). n is a multiple of 16
// and at least 64; the constants are powers of x modulo the polynomial, bits reflected.
__attribute__((target("pclmul,sse4.1"))) std::uint32_t crc_folded(const std::uint8_t* data, std::size_t n, std::uint32_t c) {
  const auto at = [&](std::size_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data + 16 * i)); };
  const __m128i by_512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), by_128 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
  __m128i x[4] = {_mm_xor_si128(at(0), _mm_cvtsi32_si128(static_cast<int>(c))), at(1), at(2), at(3)};
  data += 64;
  n -= 64;
  for (; n >= 64; n -= 64, data += 64)
    for (std::size_t i = 0; i < 4; ++i)
      x[i] = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x[i], by_512, 0x00), _mm_clmulepi64_si128(x[i], by_512, 0x11)), at(i));
  __m128i y = x[0];
  for (std::size_t i = 1; i < 4; ++i)
    y = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(y, by_128, 0x00), _mm_clmulepi64_si128(y, by_128, 0x11)), x[i]);
  for (; n >= 16; n -= 16, data += 16)
    y = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(y, by_128, 0x00), _mm_clmulepi64_si128(y, by_128, 0x11)), at(0));
  const __m128i low = _mm_setr_epi32(-1, 0, -1, 0);
  y = _mm_xor_si128(_mm_clmulepi64_si128(y, by_128, 0x10), _mm_srli_si128(y, 8));
  y = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(y, low), _mm_set_epi64x(0, 0x163cd6124), 0x00), _mm_srli_si128(y, 4));
  const __m128i reduce = _mm_set_epi64x(0x1f7011641, 0x1db710641);
  __m128i q = _mm_clmulepi64_si128(_mm_and_si128(y, low), reduce, 0x10);
  q = _mm_clmulepi64_si128(_mm_and_si128(q, low), reduce, 0x00);
  return static_cast<std::uint32_t>(_mm_extract_epi32(_mm_xor_si128(y, q), 1));
}

bool can_fold() {
  static const bool can = [] {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 1 & 1) && (c >> 19 & 1);
  }();
  return can;
}
#endif

}  // namespace

std::uint32_t crc32_of(const std::uint8_t* data, std::size_t n, std::uint32_t value) {
  std::uint32_t c = ~value;
#if defined(LMCODEC_PLANES_X86)
  if (n >= 64 && can_fold()) {
    const std::size_t whole = n & ~std::size_t{15};
    c = crc_folded(data, whole, c);
    data += whole;
    n -= whole;
  }
#endif
  return ~crc_portable(data, n, c);
}

}  // namespace lmcodec
