#include "module_weights.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "module_gil.h"
#include "weight_coder.h"

namespace nb = nanobind;

namespace {

template <typename T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Shape = std::tuple<std::size_t, std::size_t, std::size_t>;

std::string decode(Array<const std::uint8_t, 1> data, const std::vector<std::uint32_t>& n_word,
                   const std::vector<Shape>& tensors, Array<const std::int8_t, 1> row_class,
                   Array<const std::int8_t, 1> column_class, Array<const std::uint16_t, 2> freq,
                   Array<std::int8_t, 1> out, int n_thread, bool portable) {
  if (freq.shape(1) != lmcodec::kWeightSymbols) throw nb::value_error("a table has 128 frequencies");
  lmcodec::CodedWeights coded;
  coded.data = data.data();
  coded.nbytes = data.size();
  coded.n_word = n_word;
  for (const auto& [n_row, n_column, n_context] : tensors) coded.tensors.push_back({n_row, n_column, n_context});
  coded.row_class = row_class.data();
  coded.n_row_class = row_class.size();
  coded.column_class = column_class.data();
  coded.n_column_class = column_class.size();
  coded.freq = freq.data();
  coded.n_freq = freq.size();
  const lmcodec::GilReleased released;
  const char* wrong = lmcodec::decode_weights(coded, out.data(), out.size(), n_thread, portable);
  return wrong ? wrong : "";
}

}  // namespace

namespace lmcodec {

void bind_weights(nb::module_& m) {
  m.def("decode_weights", &decode, nb::arg("data"), nb::arg("n_word"), nb::arg("tensors"), nb::arg("row_class"),
        nb::arg("column_class"), nb::arg("freq"), nb::arg("out"), nb::arg("n_thread") = 1, nb::arg("portable") = false,
        "Write the weights of tensors (rows, columns, contexts) to out (n,) int8; return what is wrong, or ''.");
}

}  // namespace lmcodec
