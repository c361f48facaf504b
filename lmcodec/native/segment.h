// Longest-match segmentation of bytes into tokens of a vocabulary. lm/vocab.py is its definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmcodec {

// A byte trie over the token strings. Nodes with children own a row of 256 entries; an entry holds the node
// reached by that byte, or -1. Node 0 is the root (the empty string).
class Segmenter {
 public:
  // strings: the tokens' bytes, one after another; offsets: n_token + 1 positions into it. The caller has
  // checked that offsets rise strictly from 0 to the length of strings, and that every single byte is a token.
  Segmenter(const std::uint8_t* strings, const std::uint32_t* offsets, std::size_t n_token);

  // Writes the tokens of data[0, n) to out, which has room for n of them (a token is at least one byte), and
  // returns how many there are.
  std::size_t segment(const std::uint8_t* data, std::size_t n, std::uint16_t* out) const;

 private:
  std::int32_t add_child(std::int32_t node, std::uint8_t byte);

  std::vector<std::int32_t> row_;     // (n_node) index of the node's row in next_, -1 if it has no child
  std::vector<std::int32_t> token_;   // (n_node) token that ends at the node, -1 if none
  std::vector<std::int32_t> next_;    // (n_row, 256) child node, -1 if none
};

}  // namespace lmcodec
