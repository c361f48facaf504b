// The Python face that all kinds of language models share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>

#include "language_model.h"

namespace lmcodec {

void bind_language_model(nanobind::module_& m);

using StepTokens = nanobind::ndarray<const std::uint32_t, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
using StepFrequencies = nanobind::ndarray<std::uint32_t, nanobind::ndim<3>, nanobind::c_contig, nanobind::device::cpu>;

// Moves on by (T, B) tokens; freq: (T, B, V), filled, or none.
void run_session(LmSession& self, StepTokens tokens, std::optional<StepFrequencies> freq);

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

}  // namespace lmcodec
