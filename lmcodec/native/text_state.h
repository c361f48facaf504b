// What the context models know of the text before the next byte: hashes and positions, one value a feature.
// FORMAT.md section 5.4 defines each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "table_memory.h"

namespace lmcodec {

// The bytes that a block's streams have produced, and before them those of the blocks it continues. Positions are
// absolute and wrap at 2^32; a byte is kept until kWindow further ones have been reserved.
class History {
 public:
  static constexpr std::uint32_t kWindow = 1u << 25;

  void clear() {
    base_ = end_ = 0;
    full_ = false;
  }
  // Makes room for n more bytes (all zero if the place is new); they begin at the position returned.
  std::uint32_t reserve(std::uint32_t n);
  // Bytes that a history takes at most which reserves n bytes, after a clear or (chained) after any number of others.
  static std::size_t memory_nbytes(std::uint32_t n, bool chained) {
    if (!chained) return table_nbytes<std::uint8_t>(size_for(n));
    // While it grows to its largest, the half that was there is there as well.
    return table_nbytes<std::uint8_t>(kWindow) + table_nbytes<std::uint8_t>(kWindow / 2);
  }
  // Forgets what was reserved since it was as `before`, a copy of its places without the bytes; false where bytes that were
  // kept then are lost.
  struct Places {
    std::uint32_t base, end;
    bool full;
  };
  Places places() const { return {base_, end_, full_}; }
  bool go_back(const Places& before) {
    if (full_) return false;
    base_ = before.base;
    end_ = before.end;
    return true;
  }
  std::uint8_t at(std::uint32_t position) const { return bytes_[position & mask_]; }
  void put(std::uint32_t position, std::uint8_t byte) { bytes_[position & mask_] = byte; }
  // Whether position lies in the part that is kept or reserved, which ends before end_.
  bool kept(std::uint32_t position) const { return end_ - position - 1 < held(); }
  // How many bytes from position on are reserved; it is kept.
  std::uint32_t kept_after(std::uint32_t position) const { return end_ - position; }
  // How many bytes before position are kept.
  std::uint32_t held_before(std::uint32_t position) const {
    const std::uint32_t after = end_ - position, all = held();
    return after < all ? all - after : 0;
  }

 private:
  // Of the buffer, a power of two: for n bytes kept and reserved, or the whole window.
  static std::size_t size_for(std::size_t n) {
    std::size_t size = 1u << 12;
    while (size < kWindow && size < n) size *= 2;
    return size;
  }
  std::uint32_t held() const { return full_ || end_ > kWindow ? kWindow : end_; }

  Table<std::uint8_t> bytes_;
  std::uint32_t mask_ = 0, base_ = 0, end_ = 0;
  bool full_ = false;  // more than kWindow bytes have been reserved since the last clear
};

enum Feature : std::uint8_t {
#define FEATURE(enumerator, name) enumerator,
#include "features.def"
#undef FEATURE
  kFeatureCount
};
extern const char* const kFeatureNames[kFeatureCount];
static_assert(kFeatureCount <= 64, "a set of features is 64 bits");

constexpr int kDelimiters = 5;
constexpr int kFieldMax = 63;
constexpr int kDepthMax = 31;

// One stream's view of its own text.
class TextState {
 public:
  // wanted: a bit for each feature that is asked for. Without kIndirect2 or kIndirect3 there are no such tables: with many
  // streams no near cache holds them.
  explicit TextState(std::uint64_t wanted = ~std::uint64_t{0})
      : indirect1_(n_indirect(wanted, kIndirect1)), indirect2_(n_indirect(wanted, kIndirect2)),
        indirect3_(n_indirect(wanted, kIndirect3)) {
    reset();
  }
  // Bytes that one takes besides itself.
  static std::size_t memory_nbytes(std::uint64_t wanted) {
    return sizeof(std::uint16_t) *
           (n_indirect(wanted, kIndirect1) + n_indirect(wanted, kIndirect2) + n_indirect(wanted, kIndirect3));
  }
  void reset();
  // The stream goes on at `position` (its own bytes are contiguous from there): a new line for all that is positional.
  void move_to(std::uint32_t position);
  // Takes one byte, which history already holds at the stream's position.
  void update(std::uint8_t byte, const History& history);
  // Fills value[], with 0 for features without a table; kMatchByte is the caller's.
  void features(const History& history, std::uint32_t value[kFeatureCount]) const;

  std::uint64_t tail() const { return tail_; }
  std::uint32_t position() const { return position_; }
  int column() const { return column_; }
  std::uint8_t above(const History& history) const;
  std::uint8_t field_above(const History& history, std::uint32_t further = 0) const;
  int field() const { return field_; }
  int delimiter() const { return delimiter_; }
  std::uint32_t word() const { return word_; }
  int word_length() const { return word_length_; }
  int nest_top() const { return depth_ ? nest_[depth_ - 1].open : 0; }
  bool quoted() const { return quote_ != 0; }
  static int byte_class(std::uint8_t byte);

 private:
  struct Nest {
    std::uint8_t open;
    std::uint32_t key;
  };

  // Entries of a table, which for the last byte alone is small and always there.
  static std::size_t n_indirect(std::uint64_t wanted, Feature feature) {
    return feature == kIndirect1 ? 256 : wanted >> feature & 1 ? 65536 : 0;
  }
  void end_line();

  std::uint32_t position_ = 0;
  std::uint64_t tail_ = 0;
  std::uint32_t word_ = 0, word1_ = 0, word2_ = 0, word3_ = 0, gap_ = 0, identifier_ = 0, identifier1_ = 0;
  std::uint32_t last_text_ = 0;  // the last identifier or quoted text that ended
  std::uint32_t shape_ = 0, number_ = 0, sentence_ = 0, first_word_ = 0;
  std::uint64_t shape_long_ = 0;
  std::uint32_t classes_ = 0;
  int word_length_ = 0;
  // Rows.
  std::uint32_t line_ = 0, previous_line_ = 0;  // positions where they begin
  bool has_previous_ = false;
  int column_ = 0, previous_length_ = 0, indent_width_ = 0;
  std::uint32_t line_start_ = 0, indent_ = 0, previous_indent_ = 0;
  bool indenting_ = true;
  // Fields.
  int delimiter_ = 0, field_ = 0;
  int count_[kDelimiters] = {}, previous_count_[kDelimiters] = {}, score_[kDelimiters] = {};
  std::uint32_t field_begin_[kFieldMax + 2] = {}, previous_field_begin_[kFieldMax + 2] = {};
  std::uint32_t field_hash_[kFieldMax + 2] = {}, previous_field_hash_[kFieldMax + 2] = {};
  int previous_fields_ = 0;
  std::uint32_t field_text_ = 0, field_before_ = 0;
  // Nesting.
  Nest nest_[kDepthMax + 1] = {};
  int depth_ = 0;
  std::uint8_t quote_ = 0;
  std::uint32_t quote_text_ = 0, key_ = 0, path_ = 0;
  std::uint32_t tag_ = 0, key_before_ = 0, value_ = 0;
  int tag_state_ = 0;  // 0 outside, 1 after '<', 2 in an opening tag's name, 3 in a closing tag, 4 in attributes
  // Lines that enclose this one: width of their indentation, hash of their first identifier.
  struct Line {
    int width;
    std::uint32_t name;
  };
  Line enclosing_[kDepthMax + 1] = {};
  int enclosed_ = 0;
  std::uint32_t first_identifier_ = 0, parent_ = 0;
  // Indirect.
  std::vector<std::uint16_t> indirect1_, indirect2_, indirect3_;
};

}  // namespace lmcodec
