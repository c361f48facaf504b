#include "token_trie.h"

namespace lmcodec {

TokenTrie::TokenTrie(const std::uint8_t* strings, const std::uint32_t* offsets, std::size_t n_token)
    : length_(n_token) {
  for (std::size_t t = 0; t < n_token; ++t) length_[t] = static_cast<std::uint16_t>(offsets[t + 1] - offsets[t]);
  // Breadth first: the children of a node are made, one after another, when its turn comes.
  std::vector<std::uint32_t> depth(1, 0);
  nodes_.push_back({0, static_cast<std::uint32_t>(n_token), 0, 0, false});
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const std::uint32_t d = depth[i], high = nodes_[i].high;
    std::uint32_t token = nodes_[i].low;
    if (i && offsets[token + 1] - offsets[token] == d) {
      nodes_[i].is_token = true;
      ++token;
    }
    nodes_[i].first_child = static_cast<std::uint32_t>(child_.size());
    while (token < high) {
      const std::uint8_t byte = strings[offsets[token] + d];
      const std::uint32_t low = token;
      while (token < high && strings[offsets[token] + d] == byte) ++token;
      child_byte_.push_back(byte);
      child_.push_back(static_cast<std::uint32_t>(nodes_.size()));
      nodes_.push_back({low, token, 0, 0, false});
      depth.push_back(d + 1);
    }
    nodes_[i].last_child = static_cast<std::uint32_t>(child_.size());
  }
}

bool TokenTrie::spells(std::uint32_t token, const std::uint8_t* bytes) const {
  std::uint32_t node = 0;
  for (const std::uint8_t* end = bytes + nbytes(token); bytes != end; ++bytes) {
    const std::uint32_t last = last_child(node), entry = split(first_child(node), last, *bytes);
    if (entry == last || child_byte_[entry] != *bytes) return false;
    node = child_[entry];
  }
  return nodes_[node].is_token && nodes_[node].low == token;
}

int TokenTrie::longest(const History& history, std::uint32_t position, std::uint32_t most) const {
  std::uint32_t node = 0;
  int best = 0;
  for (std::uint32_t n = 0; n < most;) {
    const std::uint8_t byte = history.at(position + n);
    const std::uint32_t last = last_child(node), entry = split(first_child(node), last, byte);
    if (entry == last || child_byte_[entry] != byte) break;
    node = child_[entry];
    ++n;
    if (nodes_[node].is_token) best = static_cast<int>(n);
  }
  return best;
}

}  // namespace lmcodec
