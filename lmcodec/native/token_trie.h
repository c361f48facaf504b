// The byte trie of a vocabulary whose tokens are sorted, so that the tokens below a node are a range.
// lm/vocab.py defines vocabularies, FORMAT.md section 8 what the trie is for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "text_state.h"

namespace lmcodec {

class TokenTrie {
 public:
  // As Segmenter: offsets rise strictly from 0 to the length of strings, every single byte is a token. The strings must
  // rise strictly, too.
  TokenTrie(const std::uint8_t* strings, const std::uint32_t* offsets, std::size_t n_token);

  // Nodes are numbered, the root is 0. The tokens that begin with a node's string are [low, high); if the string itself
  // is a token it is the first of them.
  std::uint32_t low(std::uint32_t node) const { return nodes_[node].low; }
  std::uint32_t high(std::uint32_t node) const { return nodes_[node].high; }
  bool is_token(std::uint32_t node) const { return nodes_[node].is_token; }
  // Children of a node, ascending by their byte: entries [first, last) of the child list.
  std::uint32_t first_child(std::uint32_t node) const { return nodes_[node].first_child; }
  std::uint32_t last_child(std::uint32_t node) const { return nodes_[node].last_child; }
  std::uint8_t child_byte(std::uint32_t entry) const { return child_byte_[entry]; }
  std::uint32_t child(std::uint32_t entry) const { return child_[entry]; }
  // First entry of [from, to) whose byte is at least `byte`; `to` if there is none.
  std::uint32_t split(std::uint32_t from, std::uint32_t to, unsigned byte) const {
    while (from < to) {
      const std::uint32_t middle = from + (to - from) / 2;
      if (child_byte_[middle] < byte) from = middle + 1;
      else to = middle;
    }
    return from;
  }
  std::size_t n_token() const { return length_.size(); }
  std::uint32_t nbytes(std::uint32_t token) const { return length_[token]; }
  // Whether bytes[0 .. nbytes(token)) are the token's string.
  bool spells(std::uint32_t token, const std::uint8_t* bytes) const;
  // Bytes of the longest token that `history` holds at `position`, `most` bytes at most; 0 for none.
  int longest(const History& history, std::uint32_t position, std::uint32_t most) const;

 private:
  struct Node {
    std::uint32_t low, high, first_child, last_child;
    bool is_token;
  };

  std::vector<std::uint16_t> length_;  // (V) bytes of each token, 1 to 65,535
  std::vector<Node> nodes_;
  std::vector<std::uint8_t> child_byte_;
  std::vector<std::uint32_t> child_;
};

}  // namespace lmcodec
