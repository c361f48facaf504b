#include "module_planes.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <new>
#include <string>
#include <tuple>
#include <vector>

#include "module_cancel.h"
#include "module_gil.h"
#include "planes.h"

namespace nb = nanobind;

namespace {

using Input = nb::ndarray<const std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Field = std::tuple<std::uint32_t, bool, bool, std::uint32_t>;

nb::bytes encode(Input data, const nb::object& base, const std::vector<Field>& fields, std::size_t row_nbytes, bool contexts,
                 bool portable, std::uint64_t base_at, const lmcodec::CancelHandle* cancel) {
  lmcodec::PlaneLayout layout;
  for (const auto& [width, is_float, is_big, count] : fields) layout.fields.push_back({width, is_float, is_big, count});
  if (!layout.valid() || data.size() < layout.record_nbytes() || data.size() > std::size_t{1} << 24)
    throw nb::value_error("a block has one record to 16 MiB, a record 1 to 16 fields and up to 4096 bytes");
  Input near;
  if (!base.is_none()) near = nb::cast<Input>(base);
  if (near.is_valid() && near.size() != data.size()) throw nb::value_error("the base is not as long as the data");
  const lmcodec::CancelRef flag = lmcodec::flag_of(cancel);
  std::vector<std::uint8_t> payload;
  {
    const lmcodec::GilReleased released;
    payload = lmcodec::encode_planes(layout, {row_nbytes, base_at, contexts, portable}, data.data(),
                                     near.is_valid() ? near.data() : nullptr, data.size(), flag);
  }
  return nb::bytes(payload.data(), payload.size());
}

std::string decode(Input payload, const nb::object& base, Output out, bool portable, const lmcodec::CancelHandle* cancel) {
  Input near;
  if (!base.is_none()) near = nb::cast<Input>(base);
  if (near.is_valid() && near.size() != out.size()) throw nb::value_error("the base is not as long as the data");
  const lmcodec::CancelRef flag = lmcodec::flag_of(cancel);
  const lmcodec::GilReleased released;
  const char* wrong = lmcodec::decode_planes(payload.data(), payload.size(), near.is_valid() ? near.data() : nullptr,
                                             out.data(), out.size(), portable, flag);
  return wrong ? wrong : "";
}

// A bytes object that is written before anyone else has it.
nb::object decode_to_bytes(Input payload, const nb::object& base, std::size_t nbytes, bool portable,
                           const lmcodec::CancelHandle* cancel) {
  if (nbytes > std::size_t{1} << 24) throw nb::value_error("a block has up to 16 MiB");
  Input near;
  if (!base.is_none()) near = nb::cast<Input>(base);
  if (near.is_valid() && near.size() != nbytes) throw nb::value_error("the base is not as long as the data");
  nb::object bytes = nb::steal(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(nbytes)));
  if (!bytes.is_valid()) throw std::bad_alloc();
  auto* const out = reinterpret_cast<std::uint8_t*>(PyBytes_AsString(bytes.ptr()));
  const lmcodec::CancelRef flag = lmcodec::flag_of(cancel);
  const char* wrong = nullptr;
  {
    const lmcodec::GilReleased released;
    wrong = lmcodec::decode_planes(payload.data(), payload.size(), near.is_valid() ? near.data() : nullptr, out, nbytes,
                                   portable, flag);
  }
  if (wrong != nullptr) return nb::str(wrong);
  return bytes;
}

std::uint32_t crc32(Input data, std::uint32_t value) {
  const lmcodec::GilReleased released;
  return lmcodec::crc32_of(data.data(), data.size(), value);
}

}  // namespace

namespace lmcodec {

void bind_planes(nb::module_& m) {
  m.def("encode_planes", &encode, nb::arg("data"), nb::arg("base").none(), nb::arg("fields"), nb::arg("row_nbytes") = 0,
        nb::arg("contexts") = true, nb::arg("portable") = false, nb::arg("base_at") = 0, nb::arg("cancel").none() = nb::none(),
        "The payload of numbers whose record has fields of (width, is float, is big-endian, count).");
  m.def("decode_planes", &decode, nb::arg("payload"), nb::arg("base").none(), nb::arg("out"), nb::arg("portable") = false,
        nb::arg("cancel").none() = nb::none(), "Write the original of a payload to out (n,) uint8; return what is wrong, or ''.");
  m.def("decode_planes_to_bytes", &decode_to_bytes, nb::arg("payload"), nb::arg("base").none(), nb::arg("nbytes"),
        nb::arg("portable") = false, nb::arg("cancel").none() = nb::none(), "The original of a payload, or (str) what is wrong.");
  m.def("crc32", &crc32, nb::arg("data"), nb::arg("value") = 0, "As zlib.crc32, faster where the processor helps.");
}

}  // namespace lmcodec
