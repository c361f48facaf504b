// The bodies of the transformer's inner loops, written once over vectors of kLanes floats. Each instruction set's file
// includes this after it has defined, in the namespace it includes this in, the types F and I (vectors of float and
// int32), kLanes, kQueryOffset and the small functions on them that are used below. LMCODEC_BODY is what functions are
// declared with, LMCODEC_LANE those that take or give vectors. No include guard.
//
// Every operation on floats is one of reference.py, in its order; nothing is fused (-ffp-contract=off).

LMCODEC_LANE F hold(F x) {
  return zero_below(smaller(larger(x, set(-body::kLargest)), set(body::kLargest)), body::kSmallest);
}

// |x| <= most afterwards; to the nearest integer.
LMCODEC_LANE I to_integer(F x, float most) { return nearest(smaller(larger(x, set(-most)), set(most))); }

LMCODEC_BODY float largest(const float* x, int n) {
  F most = set(0.0f);
  for (int i = 0; i < n; i += kLanes) most = larger(most, magnitude(load(x + i)));
  return reduce_max(most);
}

template <bool kHold>
LMCODEC_LANE F first_steps(F v, int n) {
  if (kHold) v = hold(v);
  return n > 1 ? butterflies(v, n) : v;
}

// The Hadamard transform of every block of n elements, a power of two; kHold: they are held before.
template <bool kHold>
LMCODEC_BODY void rotate_blocks(float* x, int width, int n) {
  if (n < kLanes || kLanes == 1) {
    for (int i = 0; i < width; i += kLanes) store(x + i, first_steps<kHold>(load(x + i), kLanes == 1 ? 1 : n));
  } else {
    for (int i = 0; i < width; i += kLanes) store(x + i, first_steps<kHold>(load(x + i), kLanes));
  }
  int h = kLanes;
  for (; 4 * h <= n; h *= 4)  // two steps at once
    for (int block = 0; block < width; block += 4 * h)
      for (int i = block; i < block + h; i += kLanes) {
        const F a = load(x + i), b = load(x + i + h), c = load(x + i + 2 * h), d = load(x + i + 3 * h);
        const F ab = add(a, b), a_b = sub(a, b), cd = add(c, d), c_d = sub(c, d);
        store(x + i, add(ab, cd));
        store(x + i + h, add(a_b, c_d));
        store(x + i + 2 * h, sub(ab, cd));
        store(x + i + 3 * h, sub(a_b, c_d));
      }
  if (2 * h <= n)
    for (int block = 0; block < width; block += 2 * h)
      for (int i = block; i < block + h; i += kLanes) {
        const F a = load(x + i), b = load(x + i + h);
        store(x + i, add(a, b));
        store(x + i + h, sub(a, b));
      }
}

template <bool kHold>
LMCODEC_BODY void rotate(float* x, int n) {
  rotate_blocks<kHold>(x, padded_floats(n), n & -n);
}

LMCODEC_BODY float quantiser(float most) { return 127.0f / most; }

LMCODEC_BODY void to_codes(const float* x, int width, float by, int offset, std::uint8_t* code) {
  const F factor = set(by);
  for (int i = 0; i < width; i += kLanes) store_codes(code + i, to_integer(mul(load(x + i), factor), 127.0f), offset);
}

LMCODEC_BODY float at_least(float most) {
  constexpr float kScaleMin = 9.094947017729282379e-13f;  // 2^-40
  return most < kScaleMin ? kScaleMin : most;
}

LMCODEC_BODY void quantise_held(const float* x, int width, int offset, std::uint8_t* code, float* scale) {
  const float most = at_least(largest(x, width));
  to_codes(x, width, quantiser(most), offset, code);
  *scale = most / 127.0f;
}

LMCODEC_BODY void embed(const std::int8_t* quads, int n, float scale, float* x) {
  const int width = padded_floats(n);
  for (int i = 0; i < width; ++i)
    x[i] = i < n ? static_cast<float>(quads[i / kQuad * (kPanel * kQuad) + i % kQuad]) * scale : 0.0f;
  rotate<false>(x, n);
  for (int i = 0; i < width; i += kLanes) store(x + i, hold(load(x + i)));
}

template <bool kSquares>
LMCODEC_LANE F term(F x) {
  return kSquares ? mul(x, x) : x;
}

template <bool kSquares>
LMCODEC_BODY float term_of(float x) {
  return kSquares ? x * x : x;
}

// Of n values, or of their squares.
template <bool kSquares>
LMCODEC_BODY float sum_of(const float* x, int n, float* scratch) {
  int h = 1;
  while (2 * h < n) h *= 2;
  if (n == 1) return term_of<kSquares>(x[0]);
  if (h < kLanes || kLanes == 1) {
    for (int i = 0; i < h; ++i) {
      const float low = term_of<kSquares>(x[i]);
      scratch[i] = i + h < n ? low + term_of<kSquares>(x[i + h]) : low;
    }
    for (h /= 2; h >= 1; h /= 2)
      for (int i = 0; i < h; ++i) scratch[i] = scratch[i] + scratch[i + h];
    return scratch[0];
  }
  const int width = padded_floats(n);
  for (int i = 0; i < h; i += kLanes) {
    const F low = term<kSquares>(load(x + i));
    store(scratch + i, i + h < width ? add(low, term<kSquares>(load(x + i + h))) : low);
  }
  for (h /= 2; h >= kLanes; h /= 2)
    for (int i = 0; i < h; i += kLanes) store(scratch + i, add(load(scratch + i), load(scratch + i + h)));
  return fold(load(scratch));
}

LMCODEC_BODY void normalise(const float* x, const float* weight, int n, float eps, float* scratch, float* out) {
  const float square = sum_of<true>(x, n, scratch);
  const F root = set(1.0f / square_root(square / static_cast<float>(n) + eps));
  const int width = padded_floats(n);
  for (int i = 0; i < width; i += kLanes) store(out + i, hold(mul(mul(load(x + i), root), load(weight + i))));
}

LMCODEC_BODY void layer_normalise(const float* x, const float* weight, const float* bias, int n, float eps,
                                  float* scratch, float* out) {
  const F mean = set(sum_of<false>(x, n, scratch) / static_cast<float>(n));
  const int width = padded_floats(n);
  for (int i = 0; i < width; i += kLanes) store(out + i, sub(load(x + i), mean));
  for (int i = n; i < width; ++i) out[i] = 0.0f;
  const float square = sum_of<true>(out, n, scratch);
  const F root = set(1.0f / square_root(square / static_cast<float>(n) + eps));
  for (int i = 0; i < width; i += kLanes)
    store(out + i, hold(add(mul(mul(load(out + i), root), load(weight + i)), load(bias + i))));
}

LMCODEC_BODY void add_held(const float* y, int n, float* x) {
  const int width = padded_floats(n);
  for (int i = 0; i < width; i += kLanes) store(x + i, hold(add(load(x + i), load(y + i))));
}

LMCODEC_BODY void quantise(float* x, int n, int offset, std::uint8_t* code, float* scale) {
  rotate<true>(x, n);
  quantise_held(x, padded_floats(n), offset, code, scale);
}

// e^-x of x >= 0.
LMCODEC_LANE F exp_of_negative(F x) {
  const F t = mul(smaller(x, set(80.0f)), set(-1.4426950408889634f));
  const I n = nearest(t);
  const F f = sub(t, to_float(n));
  F p = set(0.00015403530393381608f);
  p = add(mul(p, f), set(0.0013333558146428443f));
  p = add(mul(p, f), set(0.009618129107628477f));
  p = add(mul(p, f), set(0.05550410866482158f));
  p = add(mul(p, f), set(0.2402265069591007f));
  p = add(mul(p, f), set(0.6931471805599453f));
  p = add(mul(p, f), set(1.0f));
  return mul(p, power_of_two(n));
}

LMCODEC_LANE F sigmoid(F x) {
  const F e = exp_of_negative(magnitude(x)), one = set(1.0f);
  return div(where_negative(x, e, one), add(one, e));
}

LMCODEC_LANE F gelu_tanh(F x) {
  const F cubic = mul(mul(mul(x, x), x), set(0.044715f));
  return mul(x, sigmoid(mul(add(x, cubic), set(1.5957691216057308f))));
}

LMCODEC_LANE F gelu(F x) {
  const F one = set(1.0f), u = smaller(mul(magnitude(x), set(0.7071067811865476f)), set(8.0f));
  const F t = div(one, add(one, mul(set(0.3275911f), u)));
  F p = set(0.5307027145f);
  p = add(mul(p, t), set(-0.7265760135f));
  p = add(mul(p, t), set(0.7107068705f));
  p = add(mul(p, t), set(-0.142248368f));
  p = add(mul(p, t), set(0.127414796f));
  const F half = mul(mul(p, t), exp_of_negative(mul(u, u)));
  return mul(x, where_negative(x, half, sub(one, half)));
}

template <Activation kActivation>
LMCODEC_LANE F activated(F x) {
  if (kActivation == Activation::kGelu) return gelu(x);
  if (kActivation == Activation::kGeluTanh) return gelu_tanh(x);
  return mul(x, sigmoid(x));
}

template <Activation kActivation>
LMCODEC_BODY void gate_by(const float* gates, const float* up, int n, float* out) {
  const int width = padded_floats(n);
  for (int i = 0; i < width; i += kLanes) {
    const F y = activated<kActivation>(load(gates + i));
    store(out + i, up ? mul(y, load(up + i)) : y);
  }
}

LMCODEC_BODY void gate(Activation activation, const float* gates, const float* up, int n, float* out) {
  if (activation == Activation::kSilu) gate_by<Activation::kSilu>(gates, up, n, out);
  else if (activation == Activation::kGelu) gate_by<Activation::kGelu>(gates, up, n, out);
  else gate_by<Activation::kGeluTanh>(gates, up, n, out);
}

// cap * tanh(x / cap).
LMCODEC_LANE F capped(F x, F cap) {
  const F v = magnitude(div(x, cap)), e = exp_of_negative(add(v, v)), one = set(1.0f);
  const F tanh = div(sub(one, e), add(one, e));
  return mul(where_negative(x, sub(set(0.0f), tanh), tanh), cap);
}

LMCODEC_LANE I capped_logit(F x, F scale, F cap) {
  const F least = set(-4194304.0f), y = larger(mul(x, scale), least);
  return to_integer(where_negative(sub(least, y), capped(y, cap), y), 4194304.0f);
}

LMCODEC_BODY std::int32_t cap_logits(std::int32_t* row, int n, float scale, float cap) {
  const F by = set(scale), most = set(cap);
  const int whole = n / kLanes * kLanes;
  float values[kLanes] = {};
  I top = set(-(1 << 30));
  for (int i = 0; i < whole; i += kLanes) {
    std::memcpy(values, row + i, sizeof values);
    const I logit = capped_logit(load(values), by, most);
    store(row + i, logit);
    top = imax(top, logit);
  }
  std::int32_t best = reduce_max(top);
  if (whole == n) return best;
  std::int32_t logits[kLanes];
  std::memcpy(values, row + whole, static_cast<std::size_t>(n - whole) * sizeof(float));
  store(logits, capped_logit(load(values), by, most));
  for (int i = whole; i < n; ++i) {
    row[i] = logits[i - whole];
    best = row[i] > best ? row[i] : best;
  }
  return best;
}

// Attention

constexpr int kLine = 64;

LMCODEC_BODY void codes(const float* x, int n, int offset, std::uint8_t* code, float* scale) {
  float padded[kFloatLanes];
  const int whole = n / kFloatLanes * kFloatLanes, rest = n - whole;
  float most = largest(x, whole);
  if (rest) {
    for (int i = 0; i < kFloatLanes; ++i) padded[i] = i < rest ? x[whole + i] : 0.0f;
    const float more = largest(padded, kFloatLanes);
    most = more > most ? more : most;
  }
  most = at_least(most);
  to_codes(x, whole, quantiser(most), offset, code);
  if (rest) to_codes(padded, kFloatLanes, quantiser(most), offset, code + whole);
  *scale = most / 127.0f;
}

LMCODEC_BODY void turn(const float* x, int n, const float* angle, float* scratch, int offset, std::uint8_t* code,
                       float* scale) {
  const int half = n / 2, width = padded_floats(half);
  const float *first = x, *second = x + half;
  if (half != width) {
    for (int i = 0; i < width; ++i) {
      scratch[i] = i < half ? x[i] : 0.0f;
      scratch[width + i] = i < half ? x[half + i] : 0.0f;
    }
    first = scratch;
    second = scratch + width;
  }
  for (int i = 0; i < width; i += kLanes) {
    F a = load(first + i), b = load(second + i);
    if (angle) {
      const F cosine = load(angle + i), sine = load(angle + width + i);
      const F turned = hold(sub(mul(a, cosine), mul(b, sine)));
      b = hold(add(mul(b, cosine), mul(a, sine)));
      a = turned;
    }
    store(scratch + i, a);
    store(scratch + width + i, b);
  }
  quantise_held(scratch, 2 * width, offset, code, scale);
}

LMCODEC_BODY void turn_by(double* a, double* b, const double* by, int n) {
  for (int i = 0; i < n; ++i) {
    const double c = by[i], s = by[n + i], before = a[i];
    a[i] = before * c - b[i] * s;
    b[i] = b[i] * c + before * s;
  }
}

LMCODEC_BODY void some_angles(const double* powers, int n, std::uint32_t multiple, double* a, double* b) {
  for (int i = 0; i < n; ++i) {
    a[i] = 1.0;
    b[i] = 0.0;
  }
  for (; multiple; multiple >>= 1, powers += 2 * n)
    if (multiple & 1) turn_by(a, b, powers, n);
}

LMCODEC_BODY void angles(const double* powers, int n, std::uint32_t position, double* scratch, float* out) {
  const int width = padded_floats(n);
  double *a = scratch, *b = a + n, *c = b + n, *s = c + n;
  some_angles(powers, n, position & ((1u << kLowPositionBits) - 1), c, s);
  some_angles(powers + 2 * kLowPositionBits * n, n, position >> kLowPositionBits, a, b);
  for (int i = 0; i < n; ++i) {
    const float high_cosine = static_cast<float>(a[i]), high_sine = static_cast<float>(b[i]);
    const float low_cosine = static_cast<float>(c[i]), low_sine = static_cast<float>(s[i]);
    out[i] = high_cosine * low_cosine - high_sine * low_sine;
    out[width + i] = high_sine * low_cosine + high_cosine * low_sine;
  }
}

template <bool kCapped>
LMCODEC_LANE I score_of(const std::int32_t* dot, const float* key_scale, F by, F cap) {
  const F score = mul(mul(to_float(load(dot)), load(key_scale)), by);
  return to_integer(kCapped ? capped(score, cap) : score, 8388608.0f);
}

// n scalar products become scores; the largest of those that are seen, which are those from low on that are below high.
template <bool kCapped>
LMCODEC_BODY std::int32_t scores(std::int32_t* score, int n, int low, int high, const float* key_scale, float scale,
                                 float most) {
  const F by = set(scale), cap = set(most);
  // Blocks of which all is seen, from first on that are below last.
  const int some = (low + kSlots - 1) / kSlots * kSlots, whole = high / kSlots * kSlots;
  const int first = some < n ? some : n, last = whole > first ? whole : first;
  for (int i = 0; i < first; i += kLanes) store(score + i, score_of<kCapped>(score + i, key_scale + i, by, cap));
  for (int i = last; i < n; i += kLanes) store(score + i, score_of<kCapped>(score + i, key_scale + i, by, cap));
  for (int i = 0; i < low; ++i) score[i] = -kUnseen;
  for (int i = high; i < n; ++i) score[i] = -kUnseen;
  I top = set(-kUnseen);
  for (int i = 0; i < first; i += kLanes) top = imax(top, load(score + i));
  for (int i = last; i < n; i += kLanes) top = imax(top, load(score + i));
  for (int i = first; i < last; i += kLanes) {
    const I value = score_of<kCapped>(score + i, key_scale + i, by, cap);
    store(score + i, value);
    top = imax(top, value);
  }
  return reduce_max(top);
}

#ifndef LMCODEC_OWN_SPLIT
// Of n shares (t * by) >> 16, as two bytes each, and their sum. `bits` as below.
LMCODEC_BODY std::int32_t split_shares(const std::uint16_t* shares, int n, std::uint32_t by, std::uint8_t* low,
                                       std::uint8_t* high, std::uint8_t* bits) {
  std::int32_t of = 0;
  for (int i = 0; i < n; i += kSlots) {
    std::uint32_t any = 0;
    for (int k = i; k < i + kSlots; ++k) {
      const std::uint32_t p = (shares[k] * by) >> 16;
      of += static_cast<std::int32_t>(p);
      any |= p;
      low[k] = static_cast<std::uint8_t>(p & 255);
      high[k] = static_cast<std::uint8_t>(p >> 8);
    }
    bits[i / kSlots] = static_cast<std::uint8_t>((any != 0) | (any > 255) << 1);
  }
  return of;
}
#endif

// One query's probabilities of n scores, the largest of which is `top`, as bytes, and what the mean of the values' codes
// is multiplied by. `bits[block]` gets 1 for a block that has any, and 2 for one of whose upper bytes any is not 0. From
// `ahead` on n_ahead lines are fetched for each block.
LMCODEC_BODY float weigh_scores(const std::int32_t* score, int n, std::int32_t top, const Queries& queries,
                                const float* value_scale, const NetworkTables& tables, const AttentionScratch& scratch,
                                std::uint8_t* low, std::uint8_t* high, std::uint8_t* bits, const std::int8_t* ahead,
                                int n_ahead) {
  const I most = set(top);
  const Exp2 exp2(tables);
  float* const a = scratch.weighted;
  // 64 exponentials of at most 2^24 in a lane stay below 2^31.
  std::int64_t sum = 0;
  F most_a = set(0.0f);
  int at = 0;
  for (int r = 0; r < queries.n_range; ++r) {
    const SlotRange& range = queries.range[r];
    const float* scale = value_scale + range.block * kSlots;
    const int end = at + range.n_block * kSlots;
    while (at < end) {
      const int stop = end - at > 64 * kLanes ? at + 64 * kLanes : end;
      I part = set(0);
      for (; at < stop; at += kLanes, scale += kLanes) {
        const I e = exp2(isub(most, load(score + at)));
        part = iadd(part, e);
        const F weighted = mul(to_float(e), load(scale));
        most_a = larger(most_a, weighted);
        store(a + at, weighted);
      }
      sum += reduce_add(part);
    }
  }
  const float largest_a = reduce_max(most_a);
  const F ratio = set(32768.0f / largest_a);
  std::uint16_t* const shares = scratch.share;
  I many = set(0);
  for (int i = 0; i < n; i += kSlots) {
    for (int k = 0; k < n_ahead; ++k, ahead += kLine) body::fetch(ahead);
    for (int k = i; k < i + kSlots; k += kLanes) {
      const I t = nearest(smaller(mul(load(a + k), ratio), set(32768.0f)));
      many = iadd(many, t);
      store_words(shares + k, t);
    }
  }
  const std::int32_t total = static_cast<std::int32_t>(reduce_add(many));
  const std::uint32_t most_by = 65535, by_total = (32767u << 16) / static_cast<std::uint32_t>(total);
  const std::int32_t of = split_shares(shares, n, by_total < most_by ? by_total : most_by, low, high, bits);
  const float back = ((largest_a * 3.0517578125e-05f) * static_cast<float>(total)) / static_cast<float>(sum);
  return back / static_cast<float>(of);
}

LMCODEC_BODY void attend(const Queries& queries, const HeldHead& held, const NetworkTables& tables,
                         const AttentionScratch& scratch) {
  const int n_query = queries.n_query, width = key_width(queries.head_dim), v_width = value_width(queries.head_dim);
  std::int32_t top[kQueriesAtOnce];
  for (int h = 0; h < n_query; ++h) top[h] = -kUnseen;
  int n = 0;
  for (int r = 0; r < queries.n_range; ++r) {
    const SlotRange& range = queries.range[r];
    const bool far = r == 0 && queries.has_far;
    const std::ptrdiff_t slot = std::ptrdiff_t{range.block} * kSlots;
    if (r <= 1)
      for (int h = 0; h < n_query; ++h)
        std::memcpy(scratch.query + h * width, far ? queries.query[h].far : queries.query[h].near,
                    static_cast<std::size_t>(width));
    dots(scratch.query, n_query, width, held.key + slot * width, range.n_block, held.key_sum + slot, scratch.score + n,
         scratch.n_slot, held.next ? held.value + slot * v_width : nullptr);
    for (int h = 0; h < n_query; ++h) {
      std::int32_t* const score = scratch.score + static_cast<std::size_t>(h) * scratch.n_slot + n;
      const float by = (far ? queries.query[h].far_scale : queries.query[h].near_scale) * queries.score_scale;
      const float* const key_scale = held.key_scale + slot;
      const int n_slot = range.n_block * kSlots, low = queries.low[r][h], high = queries.high[r][h];
      const std::int32_t most =
          queries.score_cap > 0 ? scores<true>(score, n_slot, low, high, key_scale, by, queries.score_cap)
                                : scores<false>(score, n_slot, low, high, key_scale, by, 0.0f);
      top[h] = top[h] > most ? top[h] : most;
    }
    n += range.n_block * kSlots;
  }
  float factor[kQueriesAtOnce];
  const int n_block = n / kSlots;
  // The keys that follow are fetched in equal parts by all queries.
  const int n_ahead = held.next ? (kSlots * width + n_query * kLine - 1) / (n_query * kLine) : 0;
  const std::int8_t* ahead = held.key + held.next * width;
  for (int h = 0; h < n_query; ++h, ahead += n_block * n_ahead * kLine) {
    const std::size_t at = static_cast<std::size_t>(h) * scratch.n_slot;
    factor[h] = weigh_scores(scratch.score + at, n, top[h], queries, held.value_scale, tables, scratch, scratch.low + at,
                             scratch.high + at, scratch.bits + static_cast<std::size_t>(h * n_block), ahead, n_ahead);
  }
  // Blocks that any of the queries looks at, in two lists.
  BlockPlace *low = scratch.place, *high = low + scratch.n_slot / kSlots;
  int n_low = 0, n_high = 0, block = 0;
  for (int r = 0; r < queries.n_range; ++r)
    for (int i = 0; i < queries.range[r].n_block; ++i, ++block) {
      int found = 0;
      for (int h = 0; h < n_query; ++h) found |= scratch.bits[h * n_block + block];
      low[n_low].at = high[n_high].at = block;
      low[n_low].block = high[n_high].block = queries.range[r].block + i;
      n_low += found & 1;
      n_high += found >> 1;
    }
  std::int32_t* const mean = scratch.mean;
  const int n_mean = n_query * v_width;
  for (int i = 0; i < n_mean; ++i) mean[i] = 0;
  if (n_high) {
    weigh_values(scratch.high, scratch.n_slot, n_query, high, n_high, held.value, v_width, mean);
    for (int i = 0; i < n_mean; ++i) mean[i] *= 256;
  }
  weigh_values(scratch.low, scratch.n_slot, n_query, low, n_low, held.value, v_width, mean);
  for (int h = 0; h < n_query; ++h) {
    const std::int32_t* from = mean + h * v_width;
    float* const to = queries.query[h].out;
    for (int i = 0; i < queries.head_dim; ++i) to[i] = static_cast<float>(from[i]) * factor[h];
  }
}

constexpr TransformerKernels kernels(const char* isa) {
  return {isa,  kQueryOffset, embed, normalise, layer_normalise, add_held, quantise,
          gate, cap_logits,   turn,  codes,     attend,          angles};
}
