// The Python face of the kernel: argument checks and the release of the GIL, nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>

#include "segment.h"

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Offsets = nb::ndarray<const std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<std::uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::unique_ptr<lmcodec::Segmenter> make_segmenter(Bytes strings, Offsets offsets) {
  if (offsets.size() < 2 || offsets.size() - 1 > 65536) throw nb::value_error("a vocabulary has 1 to 65536 tokens");
  const std::size_t n_token = offsets.size() - 1;
  const std::uint32_t* o = offsets.data();
  if (o[0] != 0 || o[n_token] != strings.size()) throw nb::value_error("offsets do not span the strings");
  bool single[256] = {};
  for (std::size_t t = 0; t < n_token; ++t) {
    if (o[t + 1] <= o[t] || o[t + 1] > strings.size()) throw nb::value_error("offsets do not rise strictly");
    if (o[t + 1] - o[t] == 1) single[strings.data()[o[t]]] = true;
  }
  for (bool s : single)
    if (!s) throw nb::value_error("every single byte must be a token");
  return std::make_unique<lmcodec::Segmenter>(strings.data(), o, n_token);
}

std::size_t segment(const lmcodec::Segmenter& self, Bytes data, Tokens out) {
  if (out.size() < data.size()) throw nb::value_error("out must have room for one token a byte");
  nb::gil_scoped_release release;
  return self.segment(data.data(), data.size(), out.data());
}

}  // namespace

NB_MODULE(_kernel, m) {
  m.doc() = "lmcodec's native kernel: integers only, the GIL released while it works.";
  nb::class_<lmcodec::Segmenter>(m, "Segmenter", "Longest-match segmentation; lmcodec.lm.vocab defines it.")
      .def("__init__",
           [](lmcodec::Segmenter* self, Bytes strings, Offsets offsets) {
             new (self) lmcodec::Segmenter(*make_segmenter(strings, offsets));
           },
           nb::arg("strings"), nb::arg("offsets"))
      .def("segment", &segment, nb::arg("data"), nb::arg("out"),
           "Write the tokens of data (n,) uint8 to out (>= n,) uint16; return how many there are.");
}
