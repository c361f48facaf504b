#include "weight_coder.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#if !defined(__clang__)
// GCC 12 warns of its own header's undefined vectors (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

#include "cpu.h"

namespace lmcodec {
namespace {

constexpr std::uint32_t kSlots = 1u << kWeightPrecision;
constexpr std::uint32_t kLeastState = 1u << 16;  // a state lies in [2^16, 2^32)
constexpr std::size_t kStateBytes = 4 * kWeightLanes;
constexpr std::size_t kBlock = 64 * kWeightLanes;  // weights whose contexts are laid out at a time

// What a slot's symbol is and how the state goes on: frequency << 19 | symbol << 12 | slot - start.
using Slot = std::uint32_t;

struct Chunk {
  std::size_t tensor;    // index
  std::size_t first;     // weight within the tensor
  std::size_t n;         // weights
  std::size_t out_at;    // of the first weight
  std::size_t data_at;   // of its states
  std::size_t n_word;
};

struct Layout {
  std::vector<std::size_t> row_at, column_at, context_at;  // of each tensor
  std::vector<Chunk> chunks;
};

inline std::uint32_t load16(const std::uint8_t* p) { return p[0] | static_cast<std::uint32_t>(p[1]) << 8; }
inline std::uint32_t load32(const std::uint8_t* p) { return load16(p) | load16(p + 2) << 16; }

const char* lay_out(const CodedWeights& coded, std::size_t n_out, Layout& layout) {
  std::size_t row = 0, column = 0, context = 0, out = 0, data = 0, chunk = 0;
  for (std::size_t t = 0; t < coded.tensors.size(); ++t) {
    const WeightTensor& tensor = coded.tensors[t];
    if (tensor.n_context < 1 || tensor.n_context > kWeightContexts) return "number of contexts";
    if (tensor.n_row < 1 || tensor.n_row > coded.n_row_class - row) return "number of rows";
    if (tensor.n_column < 1 || tensor.n_column > coded.n_column_class - column) return "number of columns";
    if (tensor.n_row > (n_out - out) / tensor.n_column) return "number of weights";
    if (tensor.n_context > coded.n_freq / kWeightSymbols - context) return "number of tables";
    layout.row_at.push_back(row);
    layout.column_at.push_back(column);
    layout.context_at.push_back(context);
    const std::size_t size = tensor.n_row * tensor.n_column;
    for (std::size_t first = 0; first < size; first += kWeightChunk, ++chunk) {
      if (chunk == coded.n_word.size()) return "number of chunks";
      const std::size_t n_word = coded.n_word[chunk];
      if (coded.nbytes - data < kStateBytes || n_word > (coded.nbytes - data - kStateBytes) / 2) return "size of a chunk";
      layout.chunks.push_back({t, first, std::min(kWeightChunk, size - first), out + first, data, n_word});
      data += kStateBytes + 2 * n_word;
    }
    row += tensor.n_row;
    column += tensor.n_column;
    context += tensor.n_context;
    out += size;
  }
  if (row != coded.n_row_class || column != coded.n_column_class) return "number of classes";
  if (context * kWeightSymbols != coded.n_freq) return "number of tables";
  if (out != n_out) return "number of weights";
  if (chunk != coded.n_word.size() || data != coded.nbytes) return "size of the chunks";
  const auto wide = [](std::int8_t c) { return c < -63 || c > 63; };
  if (std::any_of(coded.row_class, coded.row_class + row, wide) ||
      std::any_of(coded.column_class, coded.column_class + column, wide))
    return "class";
  return nullptr;
}

bool tables_are_sound(const CodedWeights& coded) {
  for (const std::uint16_t* freq = coded.freq; freq != coded.freq + coded.n_freq; freq += kWeightSymbols) {
    std::uint32_t sum = 0;
    for (int s = 0; s < kWeightSymbols; ++s) sum += freq[s];
    if (freq[0] != 0 || sum != kSlots) return false;
  }
  return true;
}

void make_slots(const std::uint16_t* freq, std::size_t n_table, Slot* slot) {
  for (std::size_t t = 0; t < n_table; ++t, freq += kWeightSymbols)
    for (std::uint32_t s = 0; s < kWeightSymbols; ++s)
      for (std::uint32_t i = 0, f = freq[s]; i < f; ++i) *slot++ = f << 19 | s << 12 | i;
}

// context[i] of the n weights from weight `first` of the tensor on: class of the row plus class of the column, within
// the tensor's contexts.
void fill_contexts(const WeightTensor& tensor, const std::int8_t* rows, const std::int8_t* columns, std::size_t first,
                   std::size_t n, std::uint8_t* context) {
  const auto last = static_cast<std::int8_t>(tensor.n_context - 1);
  std::size_t row = first / tensor.n_column, column = first % tensor.n_column;
  while (n > 0) {
    const std::size_t run = std::min(n, tensor.n_column - column);
    const std::int8_t r = rows[row];
    for (std::size_t i = 0; i < run; ++i) {
      const auto sum = static_cast<std::int8_t>(r + columns[column + i]);  // |sum| <= 126
      const std::int8_t low = sum < 0 ? std::int8_t{0} : sum;
      context[i] = static_cast<std::uint8_t>(low < last ? low : last);
    }
    context += run;
    n -= run;
    column = 0;
    ++row;
  }
}

inline std::uint32_t advance(std::uint32_t x, Slot slot) {
  // (x >> 12) * f + i <= (2^20 - 1) * 2^12 + 2^12 - 1 < 2^32.
  return (slot >> 19) * (x >> kWeightPrecision) + (slot & (kSlots - 1));
}

inline std::int8_t weight_of(Slot slot) { return static_cast<std::int8_t>(static_cast<int>(slot >> 12 & 127) - 64); }

// Decodes whole groups of lanes, at most n_group, while 64 bytes are left to read before data_end; returns how many.
// Moves on the states and the word that is next.
using DecodeGroups = std::size_t (*)(std::uint32_t* state, const std::uint8_t** word, const std::uint8_t* data_end,
                                     const std::uint8_t* context, const Slot* slots, std::int8_t* out,
                                     std::size_t n_group);

std::size_t decode_groups_scalar(std::uint32_t* state, const std::uint8_t** next_word, const std::uint8_t* data_end,
                                 const std::uint8_t* context, const Slot* slots, std::int8_t* out, std::size_t n_group) {
  const std::uint8_t* word = *next_word;
  std::size_t group = 0;
  for (; group < n_group && data_end - word >= 2 * kWeightLanes; ++group) {
    for (int lane = 0; lane < kWeightLanes; ++lane) {
      const std::uint32_t x = state[lane];
      const Slot slot = slots[static_cast<std::size_t>(context[lane]) << kWeightPrecision | (x & (kSlots - 1))];
      const std::uint32_t y = advance(x, slot);
      // No branch: whether a state takes a word is what no branch predictor can know.
      const std::uint32_t few = y < kLeastState ? 1u : 0u;
      state[lane] = y << (few << 4) | (load16(word) & (0u - few));
      word += 2 * few;
      out[lane] = weight_of(slot);
    }
    context += kWeightLanes;
    out += kWeightLanes;
  }
  *next_word = word;
  return group;
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
__attribute__((target("avx512f"))) std::size_t decode_groups_avx512(
    std::uint32_t* state, const std::uint8_t** next_word, const std::uint8_t* data_end, const std::uint8_t* context,
    const Slot* slots, std::int8_t* out, std::size_t n_group) {
  const std::uint8_t* word = *next_word;
  __m512i x[2] = {_mm512_loadu_si512(state), _mm512_loadu_si512(state + 16)};
  const __m512i low = _mm512_set1_epi32(kSlots - 1), least = _mm512_set1_epi32(kLeastState);
  const __m512i seven = _mm512_set1_epi32(127), middle = _mm512_set1_epi32(64);
  std::size_t group = 0;
  for (; group < n_group && data_end - word >= 2 * kWeightLanes; ++group) {
    for (int half = 0; half < 2; ++half) {
      const __m512i table = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(context) + half));
      const __m512i index = _mm512_or_si512(_mm512_slli_epi32(table, kWeightPrecision), _mm512_and_si512(x[half], low));
      const __m512i slot = _mm512_i32gather_epi32(index, slots, 4);
      const __m512i y = _mm512_add_epi32(
          _mm512_mullo_epi32(_mm512_srli_epi32(slot, 19), _mm512_srli_epi32(x[half], kWeightPrecision)),
          _mm512_and_si512(slot, low));
      const __mmask16 few = _mm512_cmplt_epu32_mask(y, least);
      // The next words go, in order, to the lanes that lack one.
      const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(word)));
      x[half] = _mm512_mask_or_epi32(y, few, _mm512_slli_epi32(y, 16), _mm512_maskz_expand_epi32(few, words));
      word += 2 * __builtin_popcount(few);
      const __m512i weight = _mm512_sub_epi32(_mm512_and_si512(_mm512_srli_epi32(slot, 12), seven), middle);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out) + half, _mm512_cvtepi32_epi8(weight));
    }
    context += kWeightLanes;
    out += kWeightLanes;
  }
  _mm512_storeu_si512(state, x[0]);
  _mm512_storeu_si512(state + 16, x[1]);
  *next_word = word;
  return group;
}
#endif

DecodeGroups decode_groups(bool portable) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
  if (!portable && cpu().avx512f) return decode_groups_avx512;
#endif
  (void)portable;
  return decode_groups_scalar;
}

bool decode_chunk(const CodedWeights& coded, const Layout& layout, const Chunk& chunk, const Slot* slots,
                  DecodeGroups decode_groups, std::int8_t* out) {
  std::uint32_t state[kWeightLanes];
  const std::uint8_t* word = coded.data + chunk.data_at;
  for (std::uint32_t& x : state) {
    x = load32(word);
    word += 4;
    if (x < kLeastState) return false;
  }
  const std::uint8_t* const end = word + 2 * chunk.n_word;
  // Whole groups may read past the chunk, never past the data: a chunk that does so is found out at its end.
  const std::uint8_t* const data_end = coded.data + coded.nbytes;
  std::uint8_t context[kBlock];
  const WeightTensor& tensor = coded.tensors[chunk.tensor];
  const std::int8_t* const rows = coded.row_class + layout.row_at[chunk.tensor];
  const std::int8_t* const columns = coded.column_class + layout.column_at[chunk.tensor];
  for (std::size_t at = 0; at < chunk.n; at += kBlock) {
    const std::size_t n = std::min(kBlock, chunk.n - at);
    fill_contexts(tensor, rows, columns, chunk.first + at, n, context);
    std::int8_t* target = out + chunk.out_at + at;
    std::size_t i = kWeightLanes * decode_groups(state, &word, data_end, context, slots, target, n / kWeightLanes);
    for (; i < n; ++i) {
      std::uint32_t& x = state[i % kWeightLanes];
      const Slot slot = slots[static_cast<std::size_t>(context[i]) << kWeightPrecision | (x & (kSlots - 1))];
      x = advance(x, slot);
      if (x < kLeastState) {
        if (end - word < 2) return false;
        x = x << 16 | load16(word);
        word += 2;
      }
      target[i] = weight_of(slot);
    }
    if (word > end) return false;
  }
  return word == end && std::all_of(state, state + kWeightLanes, [](std::uint32_t x) { return x == kLeastState; });
}

// How a symbol is encoded in a context.
struct Code {
  std::uint16_t freq, start;
};

// Appends states and words of the n weights from weight `first` of the tensor on to out; false if a weight has no
// frequency. The inverse of decode_chunk: from the last weight to the first, words from the last to the first.
bool encode_chunk(const WeightTensor& tensor, const std::int8_t* weight, const std::int8_t* rows,
                  const std::int8_t* columns, const Code* codes, std::size_t first, std::size_t n,
                  std::vector<std::uint8_t>& context, std::vector<std::uint16_t>& words, std::vector<std::uint8_t>& out) {
  fill_contexts(tensor, rows, columns, first, n, context.data());
  std::uint32_t state[kWeightLanes];
  std::fill_n(state, kWeightLanes, kLeastState);
  std::size_t at = n;
  for (std::size_t i = n; i-- > 0;) {
    const int symbol = weight[first + i] + kWeightSymbols / 2;
    if (symbol < 0 || symbol >= kWeightSymbols) return false;
    const Code code = codes[static_cast<std::size_t>(context[i]) * kWeightSymbols + static_cast<std::size_t>(symbol)];
    const std::uint32_t f = code.freq;
    if (f == 0) return false;
    std::uint32_t x = state[i % kWeightLanes];
    // With x < f 2^20 the state after coding stays below 2^32.
    if (x >> 20 >= f) {
      words[--at] = static_cast<std::uint16_t>(x);
      x >>= 16;
    }
    const std::uint32_t quotient = x / f;
    state[i % kWeightLanes] = (quotient << kWeightPrecision) + (x - quotient * f) + code.start;
  }
  out.reserve(out.size() + kStateBytes + 2 * (n - at));
  for (const std::uint32_t x : state)
    for (int byte = 0; byte < 4; ++byte) out.push_back(static_cast<std::uint8_t>(x >> 8 * byte));
  for (std::size_t i = at; i < n; ++i) {
    out.push_back(static_cast<std::uint8_t>(words[i]));
    out.push_back(static_cast<std::uint8_t>(words[i] >> 8));
  }
  return true;
}

// Runs work(0), ..., work(n - 1) in up to n_thread threads, the calling one among them.
template <typename Work>
void in_threads(std::size_t n, int n_thread, const Work& work) {
  constexpr int kMost = 64;
  const std::size_t n_worker =
      std::max<std::size_t>(1, std::min<std::size_t>(static_cast<std::size_t>(std::clamp(n_thread, 1, kMost)), n));
  std::atomic<std::size_t> next{0};
  const auto run = [&] {
    for (std::size_t i; (i = next++) < n;) work(i);
  };
  std::vector<std::thread> helpers;
  helpers.reserve(n_worker - 1);
  try {
    for (std::size_t i = 1; i < n_worker; ++i) helpers.emplace_back(run);
  } catch (const std::exception&) {
    // No more threads to be had: those that run do the work.
  }
  run();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace

void count_weights(const WeightTensor& tensor, const std::int8_t* weight, const std::int8_t* rows,
                   const std::int8_t* columns, std::uint64_t* counts, int n_thread) {
  constexpr std::size_t kPart = std::size_t{1} << 16;  // weights: counts of 32 bits suffice
  const std::size_t size = tensor.n_row * tensor.n_column, n_count = tensor.n_context * kWeightSymbols;
  std::fill_n(counts, n_count, std::uint64_t{0});
  std::mutex lock;
  in_threads((size + kPart - 1) / kPart, n_thread, [&](std::size_t part) {
    std::uint8_t context[kBlock];
    // Neighbours count in different tables: an increment need not wait for the one before.
    std::uint32_t own[2][kWeightContexts * kWeightSymbols] = {};
    const std::size_t end = std::min(size, (part + 1) * kPart);
    for (std::size_t at = part * kPart; at < end; at += kBlock) {
      const std::size_t n = std::min(kBlock, end - at);
      fill_contexts(tensor, rows, columns, at, n, context);
      for (std::size_t i = 0; i < n; ++i)
        ++own[i & 1][static_cast<std::size_t>(context[i]) * kWeightSymbols +
                     (static_cast<std::size_t>(weight[at + i] + kWeightSymbols / 2) & (kWeightSymbols - 1))];
    }
    const std::lock_guard<std::mutex> held(lock);
    for (std::size_t i = 0; i < n_count; ++i) counts[i] += own[0][i] + own[1][i];
  });
}

bool encode_weights(const WeightTensor& tensor, const std::int8_t* weight, const std::int8_t* rows,
                    const std::int8_t* columns, const std::uint16_t* freq, int n_thread,
                    std::vector<std::vector<std::uint8_t>>& chunks) {
  const std::size_t size = tensor.n_row * tensor.n_column;
  std::vector<Code> codes(tensor.n_context * kWeightSymbols);
  for (std::size_t at = 0, start = 0; at < codes.size(); ++at) {
    if (at % kWeightSymbols == 0) start = 0;
    codes[at] = {freq[at], static_cast<std::uint16_t>(start)};
    start += freq[at];
    if (start > kSlots) return false;
  }
  chunks.assign((size + kWeightChunk - 1) / kWeightChunk, {});
  std::atomic<bool> good{true};
  in_threads(chunks.size(), n_thread, [&](std::size_t c) {
    const std::size_t first = c * kWeightChunk, n = std::min(kWeightChunk, size - first);
    std::vector<std::uint8_t> context(n);
    std::vector<std::uint16_t> words(n);  // a weight takes at most one
    if (!encode_chunk(tensor, weight, rows, columns, codes.data(), first, n, context, words, chunks[c])) good = false;
  });
  return good;
}

const char* decode_weights(const CodedWeights& coded, std::int8_t* out, std::size_t n_out, int n_thread,
                           bool portable) {
  Layout layout;
  if (const char* wrong = lay_out(coded, n_out, layout)) return wrong;
  if (!tables_are_sound(coded)) return "frequencies";
  std::size_t n_context = 0;
  for (const WeightTensor& tensor : coded.tensors) n_context = std::max(n_context, tensor.n_context);
  constexpr int kMost = 64;
  const std::size_t n_worker =
      std::max<std::size_t>(1, std::min<std::size_t>(static_cast<std::size_t>(std::clamp(n_thread, 1, kMost)), layout.chunks.size()));
  // The tables of the tensor that a thread is at.
  std::vector<Slot> slots(n_worker * n_context * kSlots);
  const DecodeGroups groups = decode_groups(portable);
  std::atomic<std::size_t> next{0};
  std::atomic<bool> good{true};
  const auto work = [&](Slot* own) {
    std::size_t at = coded.tensors.size();
    for (std::size_t c; good && (c = next++) < layout.chunks.size();) {
      const Chunk& chunk = layout.chunks[c];
      if (chunk.tensor != at) {
        at = chunk.tensor;
        make_slots(coded.freq + layout.context_at[at] * kWeightSymbols, coded.tensors[at].n_context, own);
      }
      if (!decode_chunk(coded, layout, chunk, own, groups, out)) good = false;
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(n_worker - 1);
  try {
    for (std::size_t i = 1; i < n_worker; ++i) helpers.emplace_back(work, slots.data() + i * n_context * kSlots);
  } catch (const std::exception&) {
    // No more threads to be had: those that run do the work.
  }
  work(slots.data());
  for (std::thread& helper : helpers) helper.join();
  return good ? nullptr : "words";
}

}  // namespace lmcodec
