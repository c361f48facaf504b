#include "text_state.h"

#include <algorithm>

namespace lmcodec {
namespace {

constexpr int kRowMax = 1 << 30;  // a count that stops, so that no line is too long for it
constexpr std::uint8_t kDelimiterByte[kDelimiters] = {' ', ',', ';', '\t', '|'};

std::uint32_t join(std::uint32_t hash, std::uint32_t value) { return (hash + value + 1) * 0x2F0B4C47u; }

bool is_lower(std::uint8_t c) { return c >= 'a' && c <= 'z'; }
bool is_upper(std::uint8_t c) { return c >= 'A' && c <= 'Z'; }
bool is_letter(std::uint8_t c) { return is_lower(c) || is_upper(c) || c >= 128; }
bool is_digit(std::uint8_t c) { return c >= '0' && c <= '9'; }
bool is_space(std::uint8_t c) { return c == ' ' || c == '\t'; }

}  // namespace

const char* const kFeatureNames[kFeatureCount] = {
#define FEATURE(enumerator, name) name,
#include "features.def"
#undef FEATURE
};

std::uint32_t History::reserve(std::uint32_t n) {
  base_ = end_;
  const std::uint32_t before = full_ ? kWindow : end_;
  const std::size_t size = size_for(std::size_t{before} + n);
  if (size > bytes_.size()) {
    if (!before) Table<std::uint8_t>().swap(bytes_);  // nothing to keep: both at once might be too much
    bytes_.resize(size);  // nothing has wrapped: positions stay where they are
    mask_ = static_cast<std::uint32_t>(size - 1);
  }
  if (std::uint64_t{before} + n > kWindow) full_ = true;
  for (std::uint32_t i = 0; i < n; ++i) bytes_[(base_ + i) & mask_] = 0;
  end_ = base_ + n;
  return base_;
}

int TextState::byte_class(std::uint8_t c) {
  if (is_lower(c)) return 1;
  if (is_upper(c)) return 2;
  if (is_digit(c)) return 3;
  if (c >= 128) return 4;
  if (is_space(c)) return 5;
  if (c == '\n' || c == '\r') return 6;
  if (c == '.' || c == ',' || c == ';' || c == ':' || c == '!' || c == '?') return 7;
  return 0;
}

void TextState::reset() {
  std::vector<std::uint16_t> i1(std::move(indirect1_)), i2(std::move(indirect2_)), i3(std::move(indirect3_));
  std::fill(i1.begin(), i1.end(), std::uint16_t{0});
  std::fill(i2.begin(), i2.end(), std::uint16_t{0});
  std::fill(i3.begin(), i3.end(), std::uint16_t{0});
  position_ = 0;
  tail_ = 0;
  word_ = word1_ = word2_ = word3_ = gap_ = identifier_ = identifier1_ = last_text_ = 0;
  shape_ = number_ = sentence_ = first_word_ = 0;
  shape_long_ = 0;
  classes_ = 0;
  word_length_ = 0;
  line_ = previous_line_ = 0;
  has_previous_ = false;
  column_ = previous_length_ = indent_width_ = 0;
  line_start_ = indent_ = previous_indent_ = 0;
  indenting_ = true;
  delimiter_ = field_ = 0;
  for (int d = 0; d < kDelimiters; ++d) count_[d] = previous_count_[d] = score_[d] = 0;
  for (int f = 0; f < kFieldMax + 2; ++f)
    field_begin_[f] = previous_field_begin_[f] = field_hash_[f] = previous_field_hash_[f] = 0;
  previous_fields_ = 0;
  field_text_ = field_before_ = 0;
  depth_ = 0;
  quote_ = 0;
  quote_text_ = key_ = path_ = tag_ = key_before_ = value_ = 0;
  enclosed_ = 0;
  first_identifier_ = parent_ = 0;
  tag_state_ = 0;
  indirect1_ = std::move(i1);
  indirect2_ = std::move(i2);
  indirect3_ = std::move(i3);
}

void TextState::move_to(std::uint32_t position) {
  position_ = line_ = position;
  has_previous_ = false;
  previous_fields_ = 0;
  column_ = 0;
  field_ = 0;
  field_begin_[0] = position;
  field_text_ = field_before_ = 0;
  line_start_ = indent_ = 0;
  indenting_ = true;
  first_identifier_ = 0;
  for (int d = 0; d < kDelimiters; ++d) count_[d] = 0;
}

void TextState::end_line() {
  if (!indenting_ && enclosed_ < kDepthMax) enclosing_[enclosed_++] = {indent_width_, first_identifier_};
  first_identifier_ = 0;
  // The delimiter that separates fields is the one whose number in a row repeats most.
  int best = 0;
  for (int d = 0; d < kDelimiters; ++d) {
    if (count_[d] && count_[d] == previous_count_[d])
      score_[d] = std::min(score_[d] + 1, 31);
    else
      score_[d] -= (score_[d] + 3) / 4;
    previous_count_[d] = count_[d];
    count_[d] = 0;
    if (score_[d] > score_[best]) best = d;
  }
  field_hash_[field_] = field_text_;
  previous_fields_ = field_ + 1;
  field_begin_[previous_fields_] = position_;  // where the row's last field ends, its newline included
  std::copy(field_begin_, field_begin_ + previous_fields_ + 1, previous_field_begin_);
  std::copy(field_hash_, field_hash_ + previous_fields_, previous_field_hash_);
  if (best != delimiter_) previous_fields_ = 0;
  delimiter_ = best;
  previous_line_ = line_;
  previous_length_ = column_;
  has_previous_ = true;
  line_ = position_;
  column_ = 0;
  field_ = 0;
  field_begin_[0] = position_;
  field_text_ = field_before_ = 0;
  previous_indent_ = indent_;
  indent_ = line_start_ = 0;
  indenting_ = true;
  first_word_ = 0;
}

void TextState::update(std::uint8_t c, const History&) {
  const std::uint32_t c1 = tail_ & 0xff, c2 = (tail_ >> 8) & 0xff, c3 = (tail_ >> 16) & 0xff;
  // Indirect: what followed the contexts that this byte follows.
  std::uint16_t* slot = &indirect1_[c1];
  *slot = static_cast<std::uint16_t>(*slot << 8 | c);
  if (!indirect2_.empty()) {
    slot = &indirect2_[c1 | c2 << 8];
    *slot = static_cast<std::uint16_t>(*slot << 8 | c);
  }
  if (!indirect3_.empty()) {
    slot = &indirect3_[join(c1 | c2 << 8 | c3 << 16, 0) >> 16];
    *slot = static_cast<std::uint16_t>(*slot << 8 | c);
  }

  tail_ = tail_ << 8 | c;
  ++position_;
  const int cls = byte_class(c);
  classes_ = classes_ << 4 | static_cast<std::uint32_t>(cls);
  const std::uint32_t kind = cls ? static_cast<std::uint32_t>(cls) : 8u + (c & 63);
  if (cls == 0 || kind != (shape_ & 127)) {
    shape_ = shape_ << 7 | kind;
    shape_long_ = shape_long_ << 7 | kind;
  }

  // Words.
  if (is_letter(c)) {
    if (word_length_ == 0) gap_ = join(gap_, 256);
    const std::uint32_t folded = is_upper(c) ? c + 32u : c;
    if (word_length_ == 0) word_ = 0;
    word_ = join(word_, folded);
    if (word_length_ < kRowMax) ++word_length_;
  } else {
    if (word_length_) {
      if (!first_word_) first_word_ = word_;
      sentence_ += word_ * 0x9E3779B1u;
      word3_ = word2_;
      word2_ = word1_;
      word1_ = word_;
      word_ = 0;
      word_length_ = 0;
      gap_ = 0;
    }
    gap_ = join(gap_, c);
    if (c == '.' || c == '!' || c == '?' || c == ':' || c == '\n') sentence_ = 0;
  }
  if (is_letter(c) || is_digit(c) || c == '_') {
    identifier_ = join(identifier_, c);
  } else {
    if (identifier_) {
      if (!first_identifier_) first_identifier_ = identifier_;
      identifier1_ = identifier_;
      last_text_ = identifier_;
    }
    identifier_ = 0;
  }
  if (is_digit(c))
    number_ = join(number_, c);
  else
    number_ = join(c, 512);

  // Nesting, keys, tags.
  if (quote_) {
    if (c == quote_ && c1 != '\\') {
      quote_ = 0;
      last_text_ = quote_text_;
    } else if (c == '\n') {
      quote_ = 0;
    } else {
      quote_text_ = join(quote_text_, c);
    }
  } else if (c == '"' || (c == '\'' && !is_letter(static_cast<std::uint8_t>(c1)))) {
    quote_ = c;
    quote_text_ = 0;
  } else if (c == ':' || c == '=') {
    key_before_ = key_;
    key_ = last_text_;
  } else if (c == '{' || c == '[' || c == '(') {
    if (depth_ < kDepthMax) nest_[depth_++] = {c, key_};
    path_ = join(path_, key_ ^ c);
    key_ = 0;
  } else if (c == '}' || c == ']' || c == ')') {
    if (depth_) --depth_;
    path_ = 0;
    for (int d = 0; d < depth_; ++d) path_ = join(path_, nest_[d].key ^ nest_[d].open);
    key_ = depth_ ? nest_[depth_ - 1].key : 0;
  }
  // Tags of XML and HTML.
  if (c == '<') {
    tag_state_ = 1;
    tag_ = 0;
  } else if (tag_state_ == 1) {
    if (c == '/')
      tag_state_ = 3;
    else if (is_letter(c)) {
      tag_state_ = 2;
      tag_ = join(0, c);
    } else
      tag_state_ = 0;
  } else if (tag_state_ == 2 && (is_letter(c) || is_digit(c) || c == ':' || c == '_' || c == '-')) {
    tag_ = join(tag_, c);
  } else if (tag_state_ && c == '>') {
    if (tag_state_ == 3 || c1 == '/') {
      if (tag_state_ == 3 && depth_ && nest_[depth_ - 1].open == '<') --depth_;
      path_ = 0;
      for (int d = 0; d < depth_; ++d) path_ = join(path_, nest_[d].key ^ nest_[d].open);
      key_ = tag_;
    } else {
      if (depth_ < kDepthMax) nest_[depth_++] = {'<', tag_};
      path_ = join(path_, tag_ ^ '<');
      key_before_ = key_;
      key_ = tag_;
    }
    tag_state_ = 0;
    quote_ = 0;
  } else if (tag_state_ == 2) {
    tag_state_ = 4;
  }

  const bool separates = c == ':' || c == '=' || c == '>' || c == ',' || c == '{' || c == '}' || c == '[' || c == ']';
  value_ = c == '\n' || (separates && !quote_) ? 0 : join(value_, c);

  // Rows and fields.
  if (c == '\n') {
    end_line();
  } else {
    if (column_ < kRowMax) ++column_;
    if (column_ <= 4) line_start_ = join(line_start_, c);
    if (indenting_) {
      indent_ = join(indent_, c);
      if (!is_space(c)) {
        indenting_ = false;
        indent_width_ = column_;
        while (enclosed_ && enclosing_[enclosed_ - 1].width >= column_) --enclosed_;
        parent_ = 0;
        for (int d = enclosed_ > 2 ? enclosed_ - 2 : 0; d < enclosed_; ++d) parent_ = join(parent_, enclosing_[d].name);
      }
    }
    for (int d = 0; d < kDelimiters; ++d)
      if (c == kDelimiterByte[d]) ++count_[d];
    if (c == kDelimiterByte[delimiter_]) {
      field_hash_[field_] = field_text_;
      field_before_ = field_text_;
      field_text_ = 0;
      if (field_ < kFieldMax) ++field_;
      field_begin_[field_] = position_;
    } else {
      field_text_ = join(field_text_, c);
    }
  }
}

std::uint8_t TextState::above(const History& history) const {
  if (!has_previous_ || column_ > previous_length_) return 0;
  return history.at(previous_line_ + static_cast<std::uint32_t>(column_));
}

std::uint8_t TextState::field_above(const History& history, std::uint32_t further) const {
  if (field_ >= previous_fields_) return 0;
  const std::uint32_t at = previous_field_begin_[field_] + (position_ - field_begin_[field_]) + further;
  if (at - previous_field_begin_[field_] >= previous_field_begin_[field_ + 1] - previous_field_begin_[field_])
    return 1;
  return history.at(at);
}

void TextState::features(const History& history, std::uint32_t value[kFeatureCount]) const {
  const auto low = [](std::uint64_t v) {
    return static_cast<std::uint32_t>((v ^ v >> 32) * 0x9E3779B97F4A7C15ull >> 32);
  };
  const std::uint32_t tail = static_cast<std::uint32_t>(tail_);
  const std::uint32_t c1 = tail & 0xff, c2 = tail >> 8 & 0xff, c3 = tail >> 16 & 0xff;
  value[kNone] = 0;
  value[kOrder1] = c1;
  value[kOrder2] = tail & 0xffff;
  value[kOrder3] = tail & 0xffffff;
  value[kOrder4] = tail;
  value[kOrder5] = low(tail_ & 0xffffffffffull);
  value[kOrder6] = low(tail_ & 0xffffffffffffull);
  value[kOrder7] = low(tail_ & 0xffffffffffffffull);
  value[kOrder8] = low(tail_);
  value[kSparse2] = c2;
  value[kSparse3] = c3;
  value[kSparse23] = tail >> 8 & 0xffff;
  value[kSparse34] = tail >> 16;
  value[kSparse234] = tail >> 8;
  value[kWord] = word_;
  value[kWord1] = word1_;
  value[kWord2] = word2_;
  value[kWord3] = word3_;
  value[kGap] = gap_;
  value[kIdentifier] = identifier_;
  value[kIdentifier1] = identifier1_;
  value[kShape] = shape_ & 0xfffffff;
  value[kShapeLong] = low(shape_long_);
  value[kClasses] = classes_ & 0xffff;
  value[kColumn] = static_cast<std::uint32_t>(std::min(column_, 255));
  const std::uint32_t up = above(history);
  value[kAbove] = up;
  value[kAboveNext] = up;
  if (has_previous_ && column_ < previous_length_)
    value[kAboveNext] |= static_cast<std::uint32_t>(history.at(previous_line_ + static_cast<std::uint32_t>(column_) + 1)) << 8;
  if (has_previous_ && column_ && column_ <= previous_length_)
    value[kAboveNext] |= static_cast<std::uint32_t>(history.at(previous_line_ + static_cast<std::uint32_t>(column_) - 1)) << 16;
  value[kRowLength] = static_cast<std::uint32_t>(has_previous_ ? std::min(previous_length_, 255) + 1 : 0);
  value[kLineStart] = line_start_;
  value[kIndent] = indent_;
  value[kPreviousIndent] = previous_indent_;
  value[kField] = static_cast<std::uint32_t>(field_ * 8 + delimiter_);
  value[kFieldText] = field_text_;
  const std::uint32_t field_up = field_above(history);
  value[kFieldAbove] = field_up;
  value[kFieldAboveNext] = field_up | static_cast<std::uint32_t>(field_above(history, 1)) << 8;
  value[kFieldAboveText] = field_ < previous_fields_ ? previous_field_hash_[field_] : 0;
  value[kFieldBefore] = field_before_;
  value[kKey] = key_;
  value[kPath] = path_;
  value[kNest] = static_cast<std::uint32_t>(nest_top()) | static_cast<std::uint32_t>(quote_) << 8 |
                 (depth_ > 1 ? static_cast<std::uint32_t>(nest_[depth_ - 2].open) << 16 : 0);
  value[kIndirect1] = indirect1_[c1] | c1 << 16;
  value[kIndirect2] = indirect2_.empty() ? 0u : indirect2_[tail & 0xffff];
  value[kIndirect3] = indirect3_.empty() ? 0u : indirect3_[join(tail & 0xffffff, 0) >> 16];
  value[kMatchByte] = 0;
  value[kSentence] = sentence_;
  value[kFirstWord] = first_word_;
  value[kNumber] = number_;
  value[kKeyBefore] = key_before_;
  value[kValue] = value_;
  value[kParent] = parent_;
}

}  // namespace lmcodec
