// The Python face that all kinds of language models share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>

#include "language_model.h"

namespace lmcodec {

void bind_language_model(nanobind::module_& m);

using StepTokens = nanobind::ndarray<const std::uint32_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using StepFrequencies = nanobind::ndarray<std::uint32_t, nanobind::ndim<3>, nanobind::c_contig, nanobind::device::cpu>;

using StepLogits = nanobind::ndarray<std::int32_t, nanobind::ndim<3>, nanobind::c_contig, nanobind::device::cpu>;

// Moves on by (T, B) tokens; freq: (T, B, V), filled, or none. also(at, row), if given: called for each row while it can
// be looked at, with its place among the T * B.
void run_session(LmSession& self, StepTokens tokens, std::optional<StepFrequencies> freq,
                 const std::function<void(std::size_t at, int row)>& also = nullptr);

// Likewise, and the logits too, of a kind's session that may keep them.
template <typename Session>
void run_with_logits(Session& self, StepTokens tokens, std::optional<StepLogits> logits,
                     std::optional<StepFrequencies> freq) {
  namespace nb = nanobind;
  const std::size_t v = self.model().n_token();
  if (!logits) return run_session(self, tokens, freq);
  if (!self.keeps_logits()) throw nb::value_error("this session keeps no logits");
  if (logits->size() != tokens.size() * v) throw nb::value_error("an output has not the shape (T, B, V)");
  run_session(self, tokens, freq, [&](std::size_t at, int row) {
    std::memcpy(logits->data() + at * v, self.logits(row), v * sizeof(std::int32_t));
  });
}

// Throws nb::value_error for a token that is not below n_input.
void check_tokens(const std::uint32_t* tokens, std::size_t n, std::size_t n_input);
// Throws nb::value_error for a stream that the session does not have.
int stream_of(const LmSession& session, int stream);

// (B, V) rows as a copy of their own.
template <typename T, typename RowOf>
nanobind::object copied_rows(int n_stream, std::uint32_t n_token, RowOf row_of) {
  namespace nb = nanobind;
  const std::size_t b = static_cast<std::size_t>(n_stream), v = n_token;
  T* data = new T[b * v];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  for (std::size_t i = 0; i < b; ++i) std::memcpy(data + i * v, row_of(static_cast<int>(i)), v * sizeof(T));
  return nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<2>>(data, {b, v}, owner));
}

// (B, V) logits of the last step, of a kind's session that keeps them.
template <typename Session>
nanobind::object kept_logits(const Session& self) {
  if (!self.keeps_logits()) throw nanobind::value_error("this session keeps no logits");
  return copied_rows<std::int32_t>(self.n_stream(), self.model().n_token(), [&](int b) { return self.logits(b); });
}

}  // namespace lmcodec
