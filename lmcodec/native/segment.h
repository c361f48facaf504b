// Longest-match segmentation of bytes into tokens of a vocabulary. lm/vocab.py is its definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "token_trie.h"

namespace lmcodec {

// Tables give the node of the first two bytes; from there on the trie is followed, whose nodes have few children.
class Segmenter {
 public:
  // strings: the tokens' bytes, one after another; offsets: n_token + 1 positions into it. The caller has checked that
  // offsets rise strictly from 0 to the length of strings, that the strings rise strictly, and that every single byte is
  // a token.
  Segmenter(const std::uint8_t* strings, const std::uint32_t* offsets, std::size_t n_token);

  // Writes the tokens of data[0, n) to out, which has room for n of them (a token is at least one byte), and
  // returns how many there are.
  std::size_t segment(const std::uint8_t* data, std::size_t n, std::uint32_t* out) const;

 private:
  TokenTrie trie_;
  std::vector<std::uint32_t> first_;   // (256) node of a byte
  std::vector<std::uint32_t> second_;  // (256, 256) node of two bytes, 0 for none
};

}  // namespace lmcodec
