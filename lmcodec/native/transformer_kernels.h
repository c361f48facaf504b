// The transformer's inner loops beside its products (gemm.h), one version per instruction set, the same bits from each.
// FORMAT.md section 9 and lm/transformer/reference.py define the numbers.
//
// Vectors of floats are padded with zeros to a multiple of kFloatLanes; what pads stays zero. Whoever calls has set the
// control word (float_control.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "gemm.h"

namespace lmcodec {

constexpr int kFloatLanes = 16;
constexpr int kSlots = 16;       // positions of the cache that lie together
constexpr int kQueriesAtOnce = 8;  // heads' queries that look at the same keys and values together

constexpr int kLowPositionBits = 10, kHighPositionBits = 12;  // of a position: angles are the sum of two
constexpr std::int32_t kUnseen = 1 << 30;  // the score of what is not seen is as far below 0

constexpr int padded_floats(int n) { return (n + kFloatLanes - 1) / kFloatLanes * kFloatLanes; }
// A key's or a query's codes: two halves, each padded; the sum over both is the scalar product.
constexpr int key_width(int head_dim) { return 2 * padded_floats(head_dim / 2); }
constexpr int value_width(int head_dim) { return padded_floats(head_dim); }

// Slots that lie together.
struct SlotRange {
  int block;  // its first kSlots slots
  int n_block;
};
constexpr int kRanges = 3;

// Keys and values of one stream, layer and head, by slots. Slots 0 to kSlots - 1 are the sinks'.
struct HeldHead {
  const std::int8_t* key;         // blocks of (key_width / 4, kSlots, 4)
  const std::int32_t* key_sum;    // what undoes the offset of the queries' bytes
  const float* key_scale;
  const std::int8_t* value;       // blocks of (kSlots / 4, value_width, 4)
  const float* value_scale;
  // Slots from here to the head that is wanted next: it is fetched while this one is looked at, its values too. 0 where
  // that is this one.
  std::ptrdiff_t next;
};

// One head of one position.
struct Query {
  const std::uint8_t* near;  // (key_width) codes for keys of the window
  const std::uint8_t* far;   // for sinks that have left the window
  float near_scale, far_scale;
  float* out;  // (head_dim)
};

// Up to kQueriesAtOnce queries, of several positions or of one.
struct Queries {
  int n_query;
  int head_dim;
  float score_scale;
  float score_cap;  // 0 for none
  Query query[kQueriesAtOnce];
  SlotRange range[kRanges];  // what any of them sees
  // Of a range's slots, counted from its first block's first one, a query sees those from low on that are below high.
  int low[kRanges][kQueriesAtOnce], high[kRanges][kQueriesAtOnce];
  int n_range;
  bool has_far;  // range[0] is of sinks that have left the window
};

// Where a block's probabilities are among those of all ranges, and where its slots are.
struct BlockPlace {
  std::int32_t at;
  std::int32_t block;
};

struct AttentionScratch {
  std::uint8_t* query;    // (kQueriesAtOnce, key_width): codes
  std::int32_t* score;    // (kQueriesAtOnce, n_slot)
  float* weighted;        // (n_slot): of one query, exponentials times the values' scales
  std::uint16_t* share;   // (n_slot): and of what it becomes when the largest is 2^15
  std::uint8_t* low;      // (kQueriesAtOnce, n_slot): bytes of the probabilities
  std::uint8_t* high;
  std::uint8_t* bits;     // (kQueriesAtOnce, n_slot / kSlots)
  BlockPlace* place;      // (2, n_slot / kSlots)
  std::int32_t* mean;     // (kQueriesAtOnce, value_width)
  std::size_t n_slot;
};

enum class Activation { kSilu, kGelu, kGeluTanh };

struct TransformerKernels {
  const char* isa;
  int query_offset;  // of the queries' bytes

  // A row of an embedding, (n_quad, 4) int8 whose quads are kPanel * kQuad apart, rotated back: n floats.
  void (*embed)(const std::int8_t* quads, int n, float scale, float* x);
  // RMS norm, held. scratch: as long as x; out may be x.
  void (*normalise)(const float* x, const float* weight, int n, float eps, float* scratch, float* out);
  // Layer norm, held. scratch: as long as x; out may be x.
  void (*layer_normalise)(const float* x, const float* weight, const float* bias, int n, float eps, float* scratch,
                          float* out);
  // x becomes hold(x + y).
  void (*add)(const float* y, int n, float* x);
  // What a product takes of x, n floats that are overwritten: hold, rotate, quantise.
  void (*quantise)(float* x, int n, int offset, std::uint8_t* code, float* scale);
  // activation(gate) * up; up may be null: activation(gate).
  void (*gate)(Activation activation, const float* gate, const float* up, int n, float* out);
  // A row of logits: n floats in the place of integers become cap * tanh of their multiple / cap (no cap where it is 0
  // or where what is capped is at most -2^22), held within +-2^22, to the nearest integer; the largest.
  std::int32_t (*cap_logits)(std::int32_t* row, int n, float scale, float cap);
  // Codes of a query or a key of n floats (even), in two halves: turned by n / 2 angles (padded cosines, then padded
  // sines) unless null; quantised.
  void (*turn)(const float* x, int n, const float* angle, float* scratch, int offset, std::uint8_t* code, float* scale);
  // Codes of a value: as it is, quantised.
  void (*codes)(const float* x, int n, int offset, std::uint8_t* code, float* scale);
  // What the queries make of the values.
  void (*attend)(const Queries& queries, const HeldHead& held, const NetworkTables& tables,
                 const AttentionScratch& scratch);
  // Padded cosines and sines of a position's n angles. powers: (22, 2, n) cosines and sines of the angles of positions
  // 2^0 to 2^21. scratch: 4 n.
  void (*angles)(const double* powers, int n, std::uint32_t position, double* scratch, float* out);
};

// The versions that go with the products of that name.
const TransformerKernels& transformer_kernels(const char* isa);

// Each null where the compiler lacks the instruction set.
const TransformerKernels* transformer_kernels_avx512();
const TransformerKernels* transformer_kernels_avx2();
const TransformerKernels* transformer_kernels_neon();

}  // namespace lmcodec
