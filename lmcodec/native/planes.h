// Blocks of numbers by planes of bytes: the payload of method tensor in both directions. FORMAT.md section 12.
//
// A block is records of fields; the k-th bytes of all elements of a field are a plane, and each plane is stored or coded by
// interleaved rANS with static tables. All that is decoded may be hostile: sizes are checked before a byte is read or
// written, and a wrong one is an answer, not a crash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cancel.h"

namespace lmcodec {

constexpr int kPlaneLanes = 32;                       // states of a plane of kPlaneWide bytes or more
constexpr int kPlaneFewLanes = 4;                     // of a smaller one
constexpr std::size_t kPlaneWide = 4096;
constexpr int kPlanePrecision = 12;                   // bits of a probability
constexpr int kPlaneContexts = 8;                     // of a plane at most
constexpr int kPlaneFields = 16;                      // of a record at most
constexpr std::size_t kPlaneRecord = 4096;            // bytes of a record at most

// Elements of a record that lie one after another.
struct PlaneField {
  std::uint32_t width = 1;   // bytes of an element: 1, 2, 4 or 8
  bool is_float = false;     // its highest bit is a sign, and magnitude follows
  bool is_big = false;       // its most significant byte is first
  std::uint32_t count = 1;   // elements
};

struct PlaneLayout {
  std::vector<PlaneField> fields;
  std::size_t record_nbytes() const;
  bool valid() const;
};

struct PlaneOptions {
  std::size_t row_nbytes = 0;  // of a matrix's row; 0: unknown
  std::uint64_t base_at = 0;   // where the bytes that they are near lie in the base, for the decoder to find them
  bool contexts = true;        // look for contexts that pay
  bool portable = false;       // no instructions but those that every machine has
};

// The payload of `data`. base: as many bytes of another file that it is near, or nullptr.
std::vector<std::uint8_t> encode_planes(const PlaneLayout& layout, const PlaneOptions& options, const std::uint8_t* data,
                                        const std::uint8_t* base, std::size_t nbytes, const CancelRef& cancel);

// Writes the original of a payload to out; says what is wrong, or nullptr. base: as for encode_planes; a payload that was
// made with one needs it.
const char* decode_planes(const std::uint8_t* payload, std::size_t payload_nbytes, const std::uint8_t* base, std::uint8_t* out,
                          std::size_t nbytes, bool portable, const CancelRef& cancel);


// The CRC-32 of zlib, continued from `value`.
std::uint32_t crc32_of(const std::uint8_t* data, std::size_t nbytes, std::uint32_t value);

}  // namespace lmcodec
