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

struct Tensor {
  lmcodec::WeightTensor size;
  const std::int8_t *weight, *rows, *columns;
};

Tensor tensor_of(Array<const std::int8_t, 2> weight, Array<const std::int8_t, 1> row_class,
                 Array<const std::int8_t, 1> column_class, std::size_t n_context) {
  if (row_class.size() != weight.shape(0) || column_class.size() != weight.shape(1) || weight.size() == 0)
    throw nb::value_error("expected a class for each row and each column");
  if (n_context < 1 || n_context > lmcodec::kWeightContexts) throw nb::value_error("expected 1 to 16 contexts");
  for (const auto& classes : {row_class, column_class})
    for (std::size_t i = 0; i < classes.size(); ++i)
      if (classes.data()[i] < -63 || classes.data()[i] > 63) throw nb::value_error("a class is -63 to 63");
  return {{weight.shape(0), weight.shape(1), n_context}, weight.data(), row_class.data(), column_class.data()};
}

void count(Array<const std::int8_t, 2> weight, Array<const std::int8_t, 1> row_class,
           Array<const std::int8_t, 1> column_class, Array<std::uint64_t, 2> counts, int n_thread) {
  const Tensor t = tensor_of(weight, row_class, column_class, counts.shape(0));
  if (counts.shape(1) != lmcodec::kWeightSymbols) throw nb::value_error("a table has 128 counts");
  const lmcodec::GilReleased released;
  lmcodec::count_weights(t.size, t.weight, t.rows, t.columns, counts.data(), n_thread);
}

nb::list encode(Array<const std::int8_t, 2> weight, Array<const std::int8_t, 1> row_class,
                Array<const std::int8_t, 1> column_class, Array<const std::uint16_t, 2> freq, int n_thread) {
  const Tensor t = tensor_of(weight, row_class, column_class, freq.shape(0));
  if (freq.shape(1) != lmcodec::kWeightSymbols) throw nb::value_error("a table has 128 frequencies");
  std::vector<std::vector<std::uint8_t>> chunks;
  bool good = false;
  {
    const lmcodec::GilReleased released;
    good = lmcodec::encode_weights(t.size, t.weight, t.rows, t.columns, freq.data(), n_thread, chunks);
  }
  if (!good) throw nb::value_error("a weight has no frequency, or frequencies have a sum above 4096");
  nb::list parts;
  for (const auto& chunk : chunks) parts.append(nb::bytes(chunk.data(), chunk.size()));
  return parts;
}

}  // namespace

namespace lmcodec {

void bind_weights(nb::module_& m) {
  m.def("decode_weights", &decode, nb::arg("data"), nb::arg("n_word"), nb::arg("tensors"), nb::arg("row_class"),
        nb::arg("column_class"), nb::arg("freq"), nb::arg("out"), nb::arg("n_thread") = 1, nb::arg("portable") = false,
        "Write the weights of tensors (rows, columns, contexts) to out (n,) int8; return what is wrong, or ''.");
  m.def("count_weights", &count, nb::arg("weight"), nb::arg("row_class"), nb::arg("column_class"), nb::arg("counts"),
        nb::arg("n_thread") = 1, "Count the symbols of a tensor (N, K) in each of its contexts: counts (C, 128).");
  m.def("encode_weights", &encode, nb::arg("weight"), nb::arg("row_class"), nb::arg("column_class"), nb::arg("freq"),
        nb::arg("n_thread") = 1, "The chunks of a tensor (N, K) under frequencies (C, 128): bytes of each.");
}

}  // namespace lmcodec
