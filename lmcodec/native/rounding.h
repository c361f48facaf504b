// Rounding of weights with feedback of errors, for the import of models: binary operations alone, in the order that
// lm/transformer/importing/feedback.py states, so that every machine gives the same integers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmcodec {

// Of a symmetric positive matrix (n, n), of which the upper triangle is read: H = L D L^T, L with a unit diagonal. On
// return row k holds at j > k what is in row j, column k of L. Pivots below `least` count as it. portable: without AVX2,
// the same numbers.
void factor_gram(double* matrix, std::size_t n, double least, bool portable = false);

// Integers within +-63 near to the weights (n_row, n), in units of their rows' scales and within +-63 themselves: from the
// last column to the first, each with the errors of those after it times `factor` (n, n), of which row k, columns j > k
// are read.
void round_with_feedback(const float* weight, std::size_t n_row, std::size_t n, const float* factor, std::int8_t* out,
                         bool portable = false);

}  // namespace lmcodec
