// The Python face of vocabularies: checks of their strings, and segmentation.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

namespace lmcodec {

using VocabularyStrings = nanobind::ndarray<const std::uint8_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using VocabularyOffsets = nanobind::ndarray<const std::uint32_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

// Throws nb::value_error unless these are the strings of a vocabulary of n_token tokens: they rise strictly, have 1 to
// 65,535 bytes each, and every single byte is among them.
void check_vocabulary(const VocabularyStrings& strings, const VocabularyOffsets& offsets, std::size_t n_token);

void bind_vocabulary(nanobind::module_& m);

}  // namespace lmcodec
