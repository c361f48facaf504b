// Entropy-coded weights: interleaved rANS with static tables. FORMAT.md section 7.4.
//
// lmcodec/lm/weight_coding.py is the definition and chooses classes and tables. All that is decoded is read from a file
// that may be hostile: sizes are checked before a byte is read or written, and a wrong one is an answer, not a crash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmcodec {

constexpr int kWeightLanes = 32;                       // states of a chunk; weight i belongs to lane i % 32
constexpr int kWeightPrecision = 12;                   // bits of a probability
constexpr int kWeightSymbols = 128;                    // symbol s stands for weight s - 64; 0 never occurs
constexpr std::size_t kWeightChunk = std::size_t{1} << 19;  // weights of every chunk of a tensor but its last
constexpr int kWeightContexts = 16;                    // of a tensor at most

// A tensor's part of the arrays below.
struct WeightTensor {
  std::size_t n_row, n_column, n_context;
};

struct CodedWeights {
  const std::uint8_t* data = nullptr;  // states and words of all chunks, one chunk after another
  std::size_t nbytes = 0;
  std::vector<std::uint32_t> n_word;  // 16-bit words of each chunk
  std::vector<WeightTensor> tensors;
  const std::int8_t* row_class = nullptr;     // of all tensors' rows, |class| <= 63
  std::size_t n_row_class = 0;
  const std::int8_t* column_class = nullptr;  // of all tensors' columns, |class| <= 63
  std::size_t n_column_class = 0;
  const std::uint16_t* freq = nullptr;  // (contexts of all tensors, 128), each row sums to 2^12
  std::size_t n_freq = 0;
};

// Writes the weights of all tensors, one after another, to out. What is wrong is said in a word or two, and then
// out holds nothing of use; nullptr if all is well. At most n_thread threads work, the calling one among them; portable: no
// instructions but those every machine has.
const char* decode_weights(const CodedWeights& coded, std::int8_t* out, std::size_t n_out, int n_thread, bool portable);

// Counts the symbols of a tensor in each context: counts (n_context, 128). Weights are -64 to 63, classes within 63 of 0.
void count_weights(const WeightTensor& tensor, const std::int8_t* weight, const std::int8_t* rows,
                   const std::int8_t* columns, std::uint64_t* counts, int n_thread);

// Each chunk of a tensor: its states and words. freq: (n_context, 128). False if a weight that occurs has no frequency,
// or the frequencies of a context have a sum above 2^12.
bool encode_weights(const WeightTensor& tensor, const std::int8_t* weight, const std::int8_t* rows,
                    const std::int8_t* columns, const std::uint16_t* freq, int n_thread,
                    std::vector<std::vector<std::uint8_t>>& chunks);

}  // namespace lmcodec
