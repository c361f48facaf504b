#include "module_vocabulary.h"

#include <algorithm>
#include <cstddef>

#include "language_model.h"
#include "module_gil.h"
#include "segment.h"

namespace nb = nanobind;

namespace lmcodec {
namespace {

using Bytes = VocabularyStrings;
using Tokens = nb::ndarray<std::uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void require(bool holds, const char* what) {
  if (!holds) throw nb::value_error(what);
}

std::size_t segment(const Segmenter& self, Bytes data, Tokens out) {
  require(out.size() >= data.size(), "out must have room for one token a byte");
  const GilReleased released;
  return self.segment(data.data(), data.size(), out.data());
}

}  // namespace

void check_vocabulary(const VocabularyStrings& strings, const VocabularyOffsets& offsets, std::size_t n_token) {
  const std::uint32_t* o = offsets.data();
  require(n_token >= 1 && n_token <= kVocabMax, "a vocabulary has 1 to 2^20 tokens");
  require(offsets.size() == n_token + 1 && o[0] == 0 && o[n_token] == strings.size(), "offsets do not span the strings");
  const std::uint8_t* bytes = strings.data();
  bool single[256] = {};
  for (std::size_t t = 0; t < n_token; ++t) {
    require(o[t + 1] > o[t] && o[t + 1] - o[t] < 65536 && o[t + 1] <= strings.size(), "offsets do not rise strictly");
    if (o[t + 1] - o[t] == 1) single[bytes[o[t]]] = true;
    require(t == 0 || std::lexicographical_compare(bytes + o[t - 1], bytes + o[t], bytes + o[t], bytes + o[t + 1]),
            "strings do not rise strictly");
  }
  for (bool s : single) require(s, "every single byte must be a token");
}

void bind_vocabulary(nb::module_& m) {
  nb::class_<Segmenter>(m, "Segmenter", "Longest-match segmentation; lmcodec.lm.vocab defines it.")
      .def("__init__",
           [](Segmenter* self, VocabularyStrings strings, VocabularyOffsets offsets) {
             require(offsets.size() >= 1, "offsets do not span the strings");
             const std::size_t n_token = offsets.size() - 1;
             check_vocabulary(strings, offsets, n_token);
             new (self) Segmenter(strings.data(), offsets.data(), n_token);
           },
           nb::arg("strings"), nb::arg("offsets"))
      .def("segment", &segment, nb::arg("data"), nb::arg("out"),
           "Write the tokens of data (n,) uint8 to out (>= n,) uint32; return how many there are.");
}

}  // namespace lmcodec
