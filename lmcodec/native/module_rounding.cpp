#include "module_rounding.h"

#include <nanobind/ndarray.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "module_gil.h"
#include "rounding.h"

namespace nb = nanobind;

namespace {

template <typename T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

void factor(Array<double, 2> matrix, double least, bool portable) {
  if (matrix.shape(0) != matrix.shape(1)) throw nb::value_error("expected a square matrix");
  if (!(least > 0)) throw nb::value_error("the least pivot is not positive");
  const lmcodec::GilReleased released;
  lmcodec::factor_gram(matrix.data(), matrix.shape(0), least, portable);
}

void round_weights(Array<const float, 2> weight, Array<const float, 2> by, Array<std::int8_t, 2> out, bool portable) {
  const std::size_t n_row = weight.shape(0), n = weight.shape(1);
  if (by.shape(0) != n || by.shape(1) != n || out.shape(0) != n_row || out.shape(1) != n)
    throw nb::value_error("shapes do not fit");
  const lmcodec::GilReleased released;
  lmcodec::round_with_feedback(weight.data(), n_row, n, by.data(), out.data(), portable);
}

}  // namespace

namespace lmcodec {

void bind_rounding(nb::module_& m) {
  m.def("factor_gram", &factor, nb::arg("matrix"), nb::arg("least"), nb::arg("portable") = false,
        "Of (n, n) H = L D L^T, in place: L's columns, each in its row behind the diagonal.");
  m.def("round_with_feedback", &round_weights, nb::arg("weight"), nb::arg("factor"), nb::arg("out"), nb::arg("portable") = false,
        "int8 weights (N, K) of float32 ones in units of their scales, errors fed into the columns before.");
}

}  // namespace lmcodec
