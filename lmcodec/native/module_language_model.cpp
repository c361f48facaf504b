#include "module_language_model.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>

#include <optional>
#include <string>
#include <tuple>

#include "module_gil.h"

namespace nb = nanobind;

namespace lmcodec {
namespace {

template <typename T, int kDim>
using Array = nb::ndarray<T, nb::ndim<kDim>, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

void step(LmSession& self, Array<const std::uint32_t, 1> tokens) {
  require(tokens.size() == static_cast<std::size_t>(self.n_stream()), "expected one token a stream");
  const GilReleased released;
  check_tokens(tokens.data(), tokens.size(), self.model().n_input());
  self.step(tokens.data());
}

std::uint64_t span(const LmSession& self, int stream, std::int64_t low, std::int64_t high) {
  require(low >= 0 && low <= high && high <= self.model().n_token(), "no such span of the vocabulary");
  return self.span(stream_of(self, stream), static_cast<std::uint32_t>(low), static_cast<std::uint32_t>(high));
}

}  // namespace

void check_tokens(const std::uint32_t* tokens, std::size_t n, std::size_t n_input) {
  for (std::size_t i = 0; i < n; ++i)
    if (tokens[i] >= n_input)
      throw nb::value_error(
          ("token " + std::to_string(tokens[i]) + " is not below " + std::to_string(n_input)).c_str());
}

void run_session(LmSession& self, StepTokens tokens, std::optional<StepFrequencies> freq,
                 const std::function<void(std::size_t at, int row)>& also) {
  const std::size_t v = self.model().n_token();
  require(tokens.shape(1) == static_cast<std::size_t>(self.n_stream()), "expected one token a stream and step");
  require(!freq || freq->size() == tokens.size() * v, "an output has not the shape (T, B, V)");
  const GilReleased released;
  check_tokens(tokens.data(), tokens.size(), self.model().n_input());
  self.run(tokens.data(), tokens.shape(0), [&](std::size_t first, int n) {
    for (int row = 0; row < n; ++row) {
      const std::size_t at = first + static_cast<std::size_t>(row);
      if (freq) std::memcpy(freq->data() + at * v, self.frequencies(row), v * sizeof(std::uint32_t));
      if (also) also(at, row);
    }
  });
}

int stream_of(const LmSession& session, int stream) {
  require(stream >= 0 && stream < session.n_stream(), "no such stream");
  return stream;
}

void bind_language_model(nb::module_& m) {
  nb::class_<LanguageModel>(m, "LanguageModel", "What predicts tokens; every kind is a class derived from it.")
      .def_prop_ro("n_token", &LanguageModel::n_token)
      .def_prop_ro("n_input", &LanguageModel::n_input)
      .def("start_token", &LanguageModel::start_token, nb::arg("cut"))
      .def("session",
           [](const LanguageModel& self, int streams, bool timed) {
             return self.session(streams, {Help::kNone, timed});
           },
           nb::arg("streams"), nb::arg("timed") = false, nb::keep_alive<0, 1>());
  nb::class_<LmSession>(m, "LmSession", "The states of B streams and what their last step gave.")
      .def("begin", [](LmSession& self, int stream, bool cut) { self.begin(stream_of(self, stream), cut); },
           nb::arg("stream"), nb::arg("cut"))
      .def("step", &step, nb::arg("tokens"))
      .def("run",
           [](LmSession& self, StepTokens tokens, std::optional<StepFrequencies> freq) { run_session(self, tokens, freq); },
           nb::arg("tokens"), nb::arg("freq").none())
      .def("span", &span, nb::arg("stream"), nb::arg("low"), nb::arg("high"))
      .def("frequencies",
           [](const LmSession& self) {
             return copied_rows<std::uint32_t>(self.n_stream(), self.model().n_token(),
                                               [&](int b) { return self.frequencies(b); });
           })
      .def_prop_ro("times", [](const LmSession& self) {
        const SessionTimes times = self.times();
        return std::make_tuple(times.products, times.elements, times.frequencies);
      });
}

}  // namespace lmcodec
