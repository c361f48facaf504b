#include "segment.h"

namespace lmcodec {

Segmenter::Segmenter(const std::uint8_t* strings, const std::uint32_t* offsets, std::size_t n_token)
    : trie_(strings, offsets, n_token), first_(256), second_(256 * 256) {
  for (std::uint32_t i = trie_.first_child(0); i < trie_.last_child(0); ++i) {
    const std::uint32_t node = trie_.child(i), byte = trie_.child_byte(i);
    first_[byte] = node;
    for (std::uint32_t k = trie_.first_child(node); k < trie_.last_child(node); ++k)
      second_[byte << 8 | trie_.child_byte(k)] = trie_.child(k);
  }
}

std::size_t Segmenter::segment(const std::uint8_t* data, std::size_t n, std::uint32_t* out) const {
  std::size_t n_out = 0;
  std::size_t i = 0;
  while (i < n) {
    // Every single byte is a token, so a match of at least one byte always exists.
    std::uint32_t node = first_[data[i]];
    std::uint32_t best = trie_.low(node);
    std::size_t end = i + 1;
    if (end < n) {
      node = second_[static_cast<std::size_t>(data[i]) << 8 | data[i + 1]];
      for (std::size_t j = i + 2; node; ++j) {
        if (trie_.is_token(node)) {
          best = trie_.low(node);
          end = j;
        }
        if (j == n) break;
        const std::uint32_t last = trie_.last_child(node), entry = trie_.split(trie_.first_child(node), last, data[j]);
        node = entry < last && trie_.child_byte(entry) == data[j] ? trie_.child(entry) : 0;
      }
    }
    out[n_out++] = best;
    i = end;
  }
  return n_out;
}

}  // namespace lmcodec
