#include "segment.h"

namespace lmcodec {

Segmenter::Segmenter(const std::uint8_t* strings, const std::uint32_t* offsets, std::size_t n_token)
    : row_(1, -1), token_(1, -1) {
  for (std::size_t t = 0; t < n_token; ++t) {
    std::int32_t node = 0;
    for (std::uint32_t i = offsets[t]; i < offsets[t + 1]; ++i) node = add_child(node, strings[i]);
    token_[static_cast<std::size_t>(node)] = static_cast<std::int32_t>(t);
  }
}

std::int32_t Segmenter::add_child(std::int32_t node, std::uint8_t byte) {
  std::int32_t& row = row_[static_cast<std::size_t>(node)];
  if (row < 0) {
    row = static_cast<std::int32_t>(next_.size() / 256);
    next_.resize(next_.size() + 256, -1);
  }
  const std::size_t entry = static_cast<std::size_t>(row) * 256 + byte;
  if (next_[entry] < 0) {
    next_[entry] = static_cast<std::int32_t>(row_.size());
    row_.push_back(-1);
    token_.push_back(-1);
  }
  return next_[entry];
}

std::size_t Segmenter::segment(const std::uint8_t* data, std::size_t n, std::uint16_t* out) const {
  std::size_t n_out = 0;
  std::size_t i = 0;
  while (i < n) {
    std::int32_t node = 0;
    std::int32_t best = -1;
    std::size_t end = i;
    for (std::size_t j = i; j < n; ++j) {
      const std::int32_t row = row_[static_cast<std::size_t>(node)];
      if (row < 0) break;
      node = next_[static_cast<std::size_t>(row) * 256 + data[j]];
      if (node < 0) break;
      const std::int32_t token = token_[static_cast<std::size_t>(node)];
      if (token >= 0) {
        best = token;
        end = j + 1;
      }
    }
    // Every single byte is a token, so a match of at least one byte always exists: end > i.
    out[n_out++] = static_cast<std::uint16_t>(best);
    i = end;
  }
  return n_out;
}

}  // namespace lmcodec
